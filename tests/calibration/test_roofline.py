"""Device presets and files, and the time that a roofline gives an operator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.energy import StatePower
from calibration.roofline import DEVICES, Device, device_names, operator_s, preset
from engines.errors import SplitError

FIELDS = {
    "title": "mine",
    "fp32_tflops": 1.0,
    "fp16_tflops": 4.0,
    "memory_gb_per_s": 100.0,
    "launch_us": 10.0,
    "memory_gib": 8,
    "source": "measured",
}


def written(folder: Path, **changes: object) -> str:
    path = folder / "mine.json"
    path.write_text(json.dumps({**FIELDS, **changes}))
    return str(path)


@pytest.mark.parametrize("name", device_names())
def test_every_preset_is_a_device(name: str) -> None:
    device = preset(name)
    assert device.title
    assert device.source
    assert device.fp16_tflops >= device.fp32_tflops > 0
    assert device.power.compute > 0


def test_presets_cover_robots_servers_and_a_cpu() -> None:
    expected = {"xavier-nx", "orin-nano", "orin-nx", "agx-orin", "thor", "rtx2080ti", "cpu"}
    expected |= {f"rtx{n}" for n in (3060, 3070, 3080, 3090, 4060, 4070, 4080, 4090)}
    expected |= {f"rtx{n}" for n in (5060, 5070, 5080, 5090)}
    assert set(device_names()) == expected
    assert {path.stem for path in DEVICES.iterdir()} == expected


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        SplitError, match=r"device 'toaster': expected one of agx-orin, cpu, .*or a"
    ):
        preset("toaster")
    with pytest.raises(SplitError, match="expected one of"):
        preset("../devices/cpu")


def test_a_device_file_is_read(tmp_path: Path) -> None:
    device = preset(written(tmp_path, power_w={"compute": 20, "idle": 5}))
    assert (device.title, device.fp32_tflops) == ("mine", 1.0)
    assert device.power == StatePower(compute=20.0, idle=5.0)
    assert preset(written(tmp_path)).power == StatePower()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fp32_tflops": "fast"}, "fp32_tflops"),
        ({"fp32_tflops": 0}, "fp32_tflops: expected a number above 0, given 0"),
        ({"memory_gb_per_s": -1}, "memory_gb_per_s: expected a number above 0, given -1"),
        ({"launch_us": 0}, "launch_us: expected a number above 0"),
        ({"colour": "green"}, "unknown field `colour`"),
        ({"power_w": {"idle": -1}}, "power idle: expected watts of 0 or more"),
    ],
)
def test_a_wrong_device_file_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(SplitError, match=r"mine\.json: not a device file: ") as caught:
        preset(written(tmp_path, **changes))
    assert reason in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"gone\.json: No such file or directory; expected a dev"):
        preset(str(tmp_path / "gone.json"))
    for content in (b"", b"{}", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(SplitError, match="not a device file"):
            preset(str(tmp_path / "bad.json"))


def test_time_is_the_launch_and_the_longer_of_computing_and_moving(tmp_path: Path) -> None:
    device = preset(written(tmp_path))
    assert operator_s(device, flops=0, moved_bytes=0) == pytest.approx(10e-6)
    computing = operator_s(device, flops=45 * 10**9, moved_bytes=8)
    assert computing == pytest.approx(10e-6 + 0.1)
    assert operator_s(device, flops=8, moved_bytes=7 * 10**9) == pytest.approx(10e-6 + 0.1)
    half = operator_s(device, flops=45 * 10**9, moved_bytes=8, precision="fp16")
    assert half == pytest.approx(10e-6 + 0.025)


def test_newer_and_larger_devices_are_faster() -> None:
    def seconds(name: str) -> float:
        return operator_s(preset(name), flops=10**10, moved_bytes=10**8)

    ranked = ["rtx5090", "rtx4090", "rtx3080", "agx-orin", "orin-nx", "orin-nano", "cpu"]
    assert [*map(seconds, ranked)] == sorted(map(seconds, ranked))
    assert isinstance(preset("thor"), Device)
