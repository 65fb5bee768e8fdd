"""The proxy that does what networks do wrong, and a robot that runs through it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fault_proxy
import numpy as np
import pytest
from benches.stations import Station
from fault_proxy import Proxy
from robot_end import Drive, RobotEnd

from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.program import Program
from runtime.server import Server

LONG_S = 30.0
TOLERANCE = 1e-5


class Echo:
    """A server that gives back what it gets."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._socket.accept()
            except OSError:
                return
            self._ends.append(end)
            self._threads.append(threading.Thread(target=self._echo, args=(end,)))
            self._threads[-1].start()

    def _echo(self, end: socket.socket) -> None:
        try:
            while data := end.recv(1 << 16):
                end.sendall(data)
        except OSError:
            pass
        finally:
            end.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    echo = Echo()
    with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy
    echo.close()


def connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=LONG_S)


def exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := sock.recv(size - len(found))):
        found += data
    return found


def read_all(sock: socket.socket) -> bytes:
    found = b""
    try:
        while data := sock.recv(1 << 16):
            found += data
    except ConnectionError:
        pass
    return found


def test_it_passes_on_both_ways_and_ends_with_either_end(proxy: Proxy) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    with connect(proxy) as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        assert exactly(sock, len(data)) == data
        sender.join()
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


def test_what_is_held_goes_on_its_way_later(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        proxy.hold()
        sock.sendall(b"one")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(3)
        proxy.pass_on()
        sock.settimeout(LONG_S)
        assert exactly(sock, 3) == b"one"


def test_a_mute_proxy_takes_all_and_stays_mute_to_those(proxy: Proxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"ab")
        assert exactly(old, 2) == b"ab"
        proxy.mute()
        with connect(proxy) as late:
            for sock in (old, late):
                sock.sendall(b"one")
                sock.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    sock.recv(1)
            proxy.pass_on()
            with connect(proxy) as new:
                new.sendall(b"two")
                assert exactly(new, 3) == b"two"
            for sock in (old, late):
                with pytest.raises(TimeoutError):
                    sock.recv(1)


def test_a_delay_keeps_the_order(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        proxy.delay(0.05)
        begin_s = time.monotonic()
        sock.sendall(b"one")
        assert exactly(sock, 3) == b"one"
        assert time.monotonic() - begin_s >= 0.1, "there and back"
        sock.sendall(b"two")
        proxy.pass_on()
        sock.sendall(b"six")
        assert exactly(sock, 6) == b"twosix"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_it_cuts_after_so_many_bytes(proxy: Proxy, direction: str) -> None:
    with connect(proxy) as sock:
        sock.sendall(b"first")
        assert exactly(sock, 5) == b"first"
        sent = threading.Timer(0.05, lambda: sock.sendall(bytes(range(100))))
        sent.start()
        assert proxy.sever(direction, 30)
        got = read_all(sock)
        sent.join()
        assert got == bytes(range(30)) if direction == "down" else len(got) <= 30
        with connect(proxy) as new:
            new.sendall(b"again")
            assert exactly(new, 5) == b"again"


def test_where_nothing_is_sent_nothing_is_cut(proxy: Proxy) -> None:
    with connect(proxy) as sock:
        assert not proxy.sever("up", 3, within_s=0.05)
        sock.sendall(b"more than three")
        assert exactly(sock, 15) == b"more than three"


def test_commands_by_lines() -> None:
    echo = Echo()
    command = [sys.executable, fault_proxy.__file__, f"127.0.0.1:{echo.port}"]
    words = "delay 0.01\nhold\npass\nmute\n"
    done = subprocess.run(command, input=words, capture_output=True, text=True, check=True)
    echo.close()
    address, *times = done.stdout.split()
    assert address.startswith("127.0.0.1:")
    assert len(times) == 4
    assert sorted(map(float, times)) == [float(at) for at in times]


@pytest.fixture
def values(inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], tmp_path: Path) -> Path:
    path = tmp_path / "values.npz"
    np.savez(path, **inputs, **expected)
    return path


@pytest.mark.parametrize("fault", ["frozen", "delayed", "severed-up", "severed-down"])
def test_every_inference_is_answered_and_right(
    fault: str, toy: Bundle, values: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A robot that always offloads, with a proxy between that misbehaves and recovers."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    program = Program(toy, open_backend("ort", BackendOptions(threads=1)))
    with program, Server([program]) as server, Proxy(*server.address) as proxy:
        job = Drive(
            station=Station(bundle=str(toy.folder)),
            address=proxy.address,
            values=str(values),
            selector="offload",
        )
        with RobotEnd([], job) as robot:
            assert robot.wait_ready()
            robot.start(time.monotonic())
            assert _remote(robot, since=0), "well before the fault"
            if fault == "frozen":
                proxy.hold()
                assert _answered(robot, "fallback"), "a robot that did without the server"
                proxy.pass_on()
            elif fault == "delayed":
                proxy.delay(0.05)
                assert _remote(robot, since=len(robot.records) + 1)
                proxy.pass_on()
            else:
                assert proxy.sever(fault.partition("-")[2], 1_000 if fault == "severed-up" else 60)
                assert _answered(robot, "fallback")
            assert _remote(robot, since=len(robot.records)), "well after it"
            records = robot.finish()
    assert [record["failed"] for record in records if "failed" in record] == []
    assert max(record["error"] for record in records) <= TOLERANCE


def _remote(robot: RobotEnd, *, since: int) -> bool:
    records = robot.records
    return robot.wait(lambda: any(r["answered_by"] == "remote" for r in records[since:]), LONG_S)


def _answered(robot: RobotEnd, by: str) -> bool:
    return robot.wait(lambda: any(r["answered_by"] == by for r in robot.records), LONG_S)


def test_a_wrong_answer_is_told(
    toy: Bundle, values: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with np.load(values) as stored:
        other = dict(stored)
    other["logits"] = other["logits"] + 1.0
    np.savez(values, **other)
    job = Drive(station=Station(bundle=str(toy.folder)), address="", values=str(values))
    with RobotEnd([], job) as robot:
        assert robot.wait_ready()
        robot.start(time.monotonic(), count=2)
        assert robot.wait(lambda: len(robot.records) == 2, LONG_S)
        records = robot.finish()
    assert min(record["error"] for record in records) > TOLERANCE
