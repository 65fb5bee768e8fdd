from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.energy import StatePower
from calibration.power_fit import (
    PowerFit,
    PowerSample,
    fit_power,
    load_power,
    power_path,
    read_power_samples,
    store_power,
)
from engines.bundle import Bundle
from engines.errors import SplitError
from engines.fingerprint import Fingerprint

DEVICE = Fingerprint("ort", {"device": "here"})


def _samples(
    power: StatePower, count: int = 40, *, noise_j: float = 0.0, seed: int = 0
) -> list[PowerSample]:
    draw = np.random.default_rng(seed)
    samples = []
    for compute, communicate, idle in draw.uniform(0, 0.1, (count, 3)):
        joules = power.energy_j(compute_s=compute, communicate_s=communicate, idle_s=idle)
        off = float(draw.normal(0, noise_j)) if noise_j else 0.0
        samples.append(PowerSample(compute, communicate, idle, joules + off))
    return samples


def test_exact_energies_give_the_power_back() -> None:
    power = StatePower(compute=11.0, communicate=5.5, idle=3.25)
    fit = fit_power(_samples(power), sensor="INA3221 VDD_IN")
    for state in ("compute", "communicate", "idle"):
        assert getattr(fit.power, state) == pytest.approx(getattr(power, state))
    assert fit.residual == pytest.approx(0, abs=1e-9)
    assert (fit.samples, fit.sensor, fit.assumed) == (40, "INA3221 VDD_IN", ())
    assert "compute=11.00,comm=5.50,idle=3.25 W (INA3221 VDD_IN; 40 samples" in str(fit)


def test_noise_shows_as_residual_and_the_power_stays_close() -> None:
    power = StatePower(compute=11.0, communicate=5.5, idle=3.25)
    fit = fit_power(_samples(power, 400, noise_j=0.05))
    assert fit.power.compute == pytest.approx(11.0, rel=0.1)
    assert 0.02 < fit.residual < 0.1


def test_no_power_is_below_0() -> None:
    """Plain least squares would make idle negative here."""
    samples = [
        PowerSample(c, m, i, 10 * c + 4 * m - 3 * i)
        for c, m, i, _ in _samples(StatePower(compute=1, communicate=1, idle=1))
    ]
    fit = fit_power(samples)
    assert fit.power.idle == 0
    assert fit.power.compute > 0
    # The best with idle held at 0, as plain least squares of the two others has it.
    table = np.array(samples)
    two = np.linalg.lstsq(table[:, :2], table[:, 3], rcond=None)[0]
    assert (fit.power.compute, fit.power.communicate) == pytest.approx(tuple(two))


def test_where_nothing_was_sent_sending_is_assumed_and_said_so() -> None:
    stints = [PowerSample(0.5, 0, 0, 6.0), PowerSample(0, 0, 0.5, 2.0)] * 6
    fit = fit_power(stints)
    assert fit.power.compute == pytest.approx(12)
    assert fit.power.idle == pytest.approx(4)
    assert fit.power.communicate == pytest.approx(4.21)
    assert fit.assumed == ("communicate",)
    assert "communicate assumed" in str(fit)


@pytest.mark.parametrize(
    "samples",
    [
        [PowerSample(0.05 * k, 0.02 * k, 0.03 * k, 1.0 * k) for k in range(1, 40)],  # one cut
        [PowerSample(0.1, 0, 0, 1.0)] * 20,  # computes only
        [PowerSample(0.05, 0.02, 0.03, 1.0)] * 20,
        [PowerSample(0.0, 0.0, 0.0, 0.0)] * 20,
        [PowerSample(0.05 + 1e-5 * k, 0.02, 0.03 - 1e-5 * k, 1.0) for k in range(20)],
    ],
)
def test_data_that_do_not_tell_the_states_apart_are_refused(samples: list[PowerSample]) -> None:
    with pytest.raises(SplitError, match="run several cuts") as caught:
        fit_power(samples)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_few_samples_are_refused(count: int) -> None:
    with pytest.raises(SplitError, match=f"at least [69] .*given {count}"):
        fit_power(_samples(StatePower(), count))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(SplitError, match="finite"):
        fit_power([*_samples(StatePower()), PowerSample(0.1, 0.1, 0.1, bad)])


def _record(latency_ms: float, robot_ms: float, link_ms: float, **more: object) -> str:
    given = {"latency_ms": latency_ms, "robot_ms": robot_ms, "link_ms": link_ms}
    return json.dumps({**given, "energy_j": 0.5, "energy_source": "measured", **more})


def test_measured_inferences_are_read_and_the_rest_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [
        _record(100, 20, 30),
        _record(90, 20, 30, energy_source="modelled"),
        json.dumps({"error": "no answer", "source": "random:0"}),
        _record(50, 50, 0, energy_j=0.6),
        json.dumps({"summary": {"count": 3}}),
    ]
    path.write_text("\n".join(lines))
    first, second = read_power_samples(path)
    assert first == pytest.approx((0.02, 0.03, 0.05, 0.5))
    assert second == pytest.approx((0.05, 0.0, 0.0, 0.6))


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"energy_source": "measured"}', "\x00"])
def test_other_files_are_refused_with_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(_record(100, 20, 30) + "\n" + line + "\n")
    with pytest.raises(SplitError, match=r"run\.jsonl:2: expected a JSON line"):
        read_power_samples(path)


def test_nothing_measured_or_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(_record(1, 1, 1, energy_source="modelled"))
    with pytest.raises(SplitError, match="runtime doctor"):
        read_power_samples(path)
    with pytest.raises(SplitError, match=r"gone\.jsonl"):
        read_power_samples(tmp_path / "gone.jsonl")


def test_a_fit_is_kept_beside_the_bundle(toy_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = Bundle.open(toy_copy)
    assert load_power(bundle, DEVICE) is None
    fit = PowerFit(power=StatePower(compute=9.0), sensor="RAPL", samples=12, residual=0.01)
    path = store_power(bundle, DEVICE, fit)
    assert path == power_path(bundle, DEVICE)
    assert load_power(bundle, DEVICE) == fit
    assert load_power(bundle, Fingerprint("ort", {"device": "there"})) is None
    for damage in (b"", b"{}", path.read_bytes()[:-9], path.read_bytes().replace(b"9.0", b"-9")):
        path.write_bytes(damage)
        assert load_power(bundle, DEVICE) is None
        assert str(path) in caplog.text
