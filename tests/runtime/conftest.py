from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.program import Program
from runtime import Server
from tests.runtime.helpers import eventually, ours, sockets


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test after which a thread or a socket of its own lives on."""
    before = sockets()
    yield
    eventually(lambda: not ours(), f"the end of {ours()}", within_s=10)
    eventually(lambda: sockets() <= before, "closed sockets", within_s=10)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a robot wait where no fault is injected: a busy machine is not one."""
    monkeypatch.setattr("runtime.robot._SHORTEST_PATIENCE_S", 20.0)
    monkeypatch.setattr("runtime.robot.PATIENCE_S", 20.0)


@pytest.fixture(autouse=True)
def no_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let energy be modelled, whatever the machine that runs the tests can measure."""
    monkeypatch.setattr("runtime.robot.sensor_for", lambda backend: None)
    monkeypatch.setattr("runtime.power.cli.sensor_for", lambda backend: None)


@pytest.fixture
def server(toy: Bundle) -> Iterator[Server]:
    """Give a server of the toy bundle on a free port."""
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(toy, backend) as program, Server([program]) as running:
        yield running
