"""Fits this device's power by state and prints it, for ``runtime profile``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, Optional

import click
import msgspec

from calibration.power_fit import PowerFit, fit_power, read_power_samples, store_power
from engines.errors import SensorError
from engines.program import Program
from runtime.power.find import sensor_for
from runtime.power.meter import EnergyMeter
from runtime.power.stints import measure_stints

__all__ = ["fit_device_power", "power_record", "print_power"]

logger = logging.getLogger(__name__)


def fit_device_power(program: Program, records: Optional[str] = None) -> Optional[PowerFit]:
    """Measure this device's power, fit it and keep it beside the bundle.

    Args:
        program: Computes: the whole model, again and again.
        records: JSON lines of ``runtime infer --out`` with measured energy, from which the power
            of communicating is fitted too.

    Returns:
        The fit; none without a sensor, or where it fails on the way.

    Raises:
        SplitError: The records cannot be read, or do not tell the states apart.
    """
    recorded = [] if records is None else read_power_samples(Path(records))
    with EnergyMeter(sensor_for(program.backend.name)) as meter:
        sensor = meter.sensor
        if sensor is None and not recorded:
            return None
        name = f"recorded in {records}" if sensor is None else sensor.name
        if sensor is not None:
            inputs, _ = program.bundle.parity_vectors()
            last = program.last
            try:
                recorded += measure_stints(meter, lambda: program.run(inputs, 0, last))
            except SensorError as exc:
                logger.warning("power is not fitted: %s", exc)
                return None
    fit = fit_power(recorded, sensor=name)
    store_power(program.bundle, program.backend.fingerprint(), fit)
    return fit


def power_record(fit: Optional[PowerFit]) -> Optional[Dict[str, Any]]:
    """Return a fit as JSON has it; none where there is none."""
    return None if fit is None else dict(msgspec.to_builtins(fit))


def print_power(fit: Optional[PowerFit]) -> None:
    """Print a fit in one line."""
    if fit is None:
        click.echo("power: no sensor found, so energy is modelled by the preset or --power")
    else:
        click.echo(f"power as measured: {fit}")
