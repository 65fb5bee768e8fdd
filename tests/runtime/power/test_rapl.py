from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import SensorError
from runtime.power.rapl import find_rapl
from tests.runtime.power.fakes import rapl

TWO = {
    "intel-rapl:0": ("package-0", 5_000_000),
    "intel-rapl:0:0": ("core", 1),
    "intel-rapl:0:1": ("dram", 1_000_000),
    "intel-rapl:1": ("package-1", 7_000_000),
    "intel-rapl:2": ("psys", 50_000_000),
}


def test_packages_and_memory_are_added_and_what_is_within_them_is_not(tmp_path: Path) -> None:
    folder = rapl(tmp_path, TWO)
    sensor = find_rapl(tmp_path, [])
    assert sensor is not None
    assert sensor.name == "RAPL package-0+dram+package-1"
    assert sensor.joules() == 0
    (folder / "intel-rapl:0/energy_uj").write_text("6500000")
    (folder / "intel-rapl:0:0/energy_uj").write_text("900000")
    (folder / "intel-rapl:0:1/energy_uj").write_text("1250000")
    assert sensor.joules() == pytest.approx(1.75)
    assert sensor.joules() == pytest.approx(1.75)


def test_the_platform_where_nothing_else_is_counted(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:1": ("psys", 1)})
    sensor = find_rapl(tmp_path, [])
    assert sensor is not None
    assert sensor.name == "RAPL psys"


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    folder = rapl(tmp_path, {"intel-rapl:0": ("package-0", 9_000_000)}, range_uj=10_000_000)
    sensor = find_rapl(tmp_path, [])
    assert sensor is not None
    energy = folder / "intel-rapl:0/energy_uj"
    for now, joules in [(9_500_000, 0.5), (250_000, 1.25), (9_999_999, 11.0), (0, 11.0)]:
        energy.write_text(str(now))
        assert sensor.joules() == pytest.approx(joules, abs=1e-5)


def test_permission_denied_says_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rapl(tmp_path, {"intel-rapl:0": ("package-0", 1)})
    right = Path.read_text

    def read_text(self: Path, *args: object, **more: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return right(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    troubles: list[str] = []
    assert find_rapl(tmp_path, troubles) is None
    assert "Permission denied" in troubles[0]
    assert "sudo chmod" in troubles[0]


@pytest.mark.parametrize("missing", ["energy_uj", "max_energy_range_uj"])
def test_a_missing_file_leaves_the_domain_out(tmp_path: Path, missing: str) -> None:
    folder = rapl(tmp_path, TWO)
    (folder / "intel-rapl:1" / missing).unlink()
    troubles: list[str] = []
    sensor = find_rapl(tmp_path, troubles)
    assert sensor is not None
    assert sensor.name == "RAPL package-0+dram"
    assert missing in troubles[0]


def test_garbage_later_is_an_error(tmp_path: Path) -> None:
    folder = rapl(tmp_path, TWO)
    sensor = find_rapl(tmp_path, [])
    assert sensor is not None
    (folder / "intel-rapl:1/energy_uj").write_text("many")
    with pytest.raises(SensorError, match="energy_uj: expected a number, given 'many'"):
        sensor.joules()


def test_none_without_powercap(tmp_path: Path) -> None:
    (tmp_path / "class/powercap/intel-rapl:0").mkdir(parents=True)
    assert find_rapl(tmp_path, []) is None
    assert find_rapl(tmp_path / "gone", []) is None
