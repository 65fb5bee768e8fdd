"""What a robot and the commands do with a sensor."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.energy import StatePower
from calibration.power_fit import PowerFit, load_power, power_path, store_power
from engines.bundle import Bundle
from engines.program import Program
from runtime import Robot, Server, doctor
from runtime.cli import main
from runtime.power.cli import fit_device_power, power_record
from runtime.power.find import Findings
from tests.runtime.helpers import address
from tests.runtime.power.fakes import FakePower


@pytest.fixture
def sensor(monkeypatch: pytest.MonkeyPatch) -> FakePower:
    found = FakePower(8.0)
    monkeypatch.setattr("runtime.robot.sensor_for", lambda backend: found)
    monkeypatch.setattr("runtime.power.cli.sensor_for", lambda backend: found)
    return found


def test_a_robot_with_a_sensor_measures(
    toy: Bundle, server: Server, inputs: dict[str, np.ndarray], sensor: FakePower
) -> None:
    power = StatePower(compute=1, communicate=2, idle=3)
    with Robot(toy, server=address(server), threads=1, power=power) as robot:
        for cut in toy.manifest.cuts:
            result = robot.infer(inputs, cut=cut.id)
            assert result.energy_source == "measured"
            # Measured over the same interval, so within its bounds.
            assert result.energy_j >= 8.0 * result.latency_s
            assert result.energy_modelled_j is not None
            assert 0 < result.energy_modelled_j <= 3 * result.latency_s
            assert result.energy_uncertainty_j == 0
        record = result.record()
    assert record["energy_source"] == "measured"
    assert record["energy_modelled_j"] == pytest.approx(result.energy_modelled_j, abs=1e-6)
    assert record["energy_uncertainty_j"] == 0
    assert sensor.closed == 1


def test_frames_in_flight_have_shares(
    toy: Bundle, server: Server, inputs: dict[str, np.ndarray], sensor: FakePower
) -> None:
    with Robot(toy, server=address(server), threads=1, cut="offload") as robot:
        results = list(robot.stream([inputs] * 12, in_flight=4))
    assert [result.energy_source for result in results] == ["measured"] * 12
    assert sum(r.energy_j for r in results) < 8.0 * sum(r.age_s for r in results) + 1e-6


def test_a_sensor_that_fails_ends_no_inference(
    toy: Bundle, inputs: dict[str, np.ndarray], sensor: FakePower,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING), Robot(toy, threads=1) as robot:
        sensor.trouble = "in1_input: Remote I/O error"
        while robot.meter.measures:
            robot.infer(inputs)
        result = robot.infer(inputs)
    assert result.energy_source == "modelled"
    assert result.energy_j == pytest.approx(13.35 * result.robot_s)
    assert result.record()["energy_modelled_j"] == result.record()["energy_j"]
    assert [r.getMessage() for r in caplog.records if r.name == "runtime.power.meter"] == [
        "energy is modelled from here on: in1_input: Remote I/O error"
    ]


def test_a_sensor_may_be_left_alone(
    toy: Bundle, inputs: dict[str, np.ndarray], sensor: FakePower
) -> None:
    with Robot(toy, threads=1, measure_energy=False) as robot:
        assert robot.infer(inputs).energy_source == "modelled"
    assert sensor.reads == 0


def test_the_fitted_power_is_the_robots_unless_another_is_given(
    toy_copy: Path, inputs: dict[str, np.ndarray]
) -> None:
    bundle = Bundle.open(toy_copy)
    with Robot(bundle, threads=1) as robot:
        device = robot.program.backend.fingerprint()
    fit = PowerFit(power=StatePower(compute=100.0), sensor="RAPL", samples=12, residual=0.0)
    store_power(bundle, device, fit)
    with Robot(bundle, threads=1) as robot:
        result = robot.infer(inputs)
        assert result.energy_j == pytest.approx(100 * result.robot_s)
    with Robot(bundle, threads=1, power=StatePower(compute=1.0)) as robot:
        result = robot.infer(inputs)
        assert result.energy_j == pytest.approx(result.robot_s)


def test_profile_fits_the_power_and_keeps_it(
    toy_copy: Path, sensor: FakePower, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.power import cli, stints

    monkeypatch.setattr(
        cli, "measure_stints",
        lambda meter, compute: stints.measure_stints(meter, compute, stints=3, stint_s=0.01),
    )  # fmt: skip
    args = ["profile", str(toy_copy), "--runs", "3", "--warmup", "0", "--threads", "1"]
    done = CliRunner().invoke(main, [*args, "--json"])
    assert done.exit_code == 0, done.stderr
    power = json.loads(done.stdout)["power"]
    assert power["power"]["compute"] == pytest.approx(8.0, rel=0.01)
    assert power["power"]["idle"] == pytest.approx(8.0, rel=0.01)
    assert power["assumed"] == ["communicate"]
    assert (power["samples"], power["sensor"]) == (6, "fake")
    shown = CliRunner().invoke(main, args).stdout
    assert "power as measured: compute=8.0" in shown
    with Robot(toy_copy, threads=1) as robot:
        fitted = load_power(robot.bundle, robot.program.backend.fingerprint())
        assert fitted is not None
        assert power_path(robot.bundle, robot.program.backend.fingerprint()).is_file()


def test_profile_takes_recorded_inferences_too(
    toy_copy: Path, program: Program, tmp_path: Path
) -> None:
    lines = []
    for number in range(30):
        robot_ms, link_ms, idle_ms = 10 + number % 7, 5 + number % 5, 3 + 2 * (number % 3)
        lines.append(
            json.dumps(
                {
                    "latency_ms": robot_ms + link_ms + idle_ms,
                    "robot_ms": robot_ms,
                    "link_ms": link_ms,
                    "energy_source": "measured",
                    "energy_j": (12 * robot_ms + 6 * link_ms + 4 * idle_ms) / 1e3,
                }
            )
        )
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(lines))
    done = CliRunner().invoke(
        main, ["profile", str(toy_copy), "--runs", "3", "--warmup", "0", "--threads", "1",
               "--energy-of", str(path), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    power = json.loads(done.stdout)["power"]
    watts = StatePower(compute=12, communicate=6, idle=4)
    for state in ("compute", "communicate", "idle"):
        assert power["power"][state] == pytest.approx(getattr(watts, state))
    path.write_text("text")
    done = CliRunner().invoke(
        main, ["profile", str(toy_copy), "--runs", "3", "--energy-of", str(path)]
    )
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "run.jsonl:1" in done.stderr


def test_without_a_sensor_profile_says_so(program: Program) -> None:
    assert fit_device_power(program) is None
    assert power_record(None) is None


def test_a_sensor_that_fails_leaves_no_fit(
    program: Program, sensor: FakePower, caplog: pytest.LogCaptureFixture
) -> None:
    sensor.trouble = "gone"
    assert fit_device_power(program) is None
    assert "power is not fitted" in caplog.text


def test_doctor_says_which_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> doctor.Check:
        return {check.name: check for check in doctor.examine()}["power sensor"]

    monkeypatch.setattr(doctor, "look_for_sensor", lambda: Findings(FakePower(), ()))
    assert check() == doctor.Check(
        "power sensor", True, False, "fake (board, nowhere)", check().mend
    )
    monkeypatch.setattr(doctor, "look_for_sensor", lambda: Findings(None, ("energy_uj: denied",)))
    assert (check().ok, check().mend) == (False, "energy_uj: denied")
    monkeypatch.setattr(doctor, "look_for_sensor", lambda: Findings(None, ()))
    assert "energy.md" in check().mend
