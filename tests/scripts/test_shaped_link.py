"""The shaped link: what it is made of, and that nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import link_check
import pytest
import shaped_link as module
from link_check import LinkCheck, check_link, trouble
from shaped_link import ShapedLink, changing_rate, shaped_link, steps_of

GOODPUT = 93 * 1448 / 1514


def text(*, half_duplex: bool, robots: int = 1) -> list[str]:
    steps = steps_of("splitrt-7", 93.0, half_duplex=half_duplex, robots=robots)
    return [" ".join(step) for step in steps]


def test_half_duplex_is_one_bucket_that_every_station_is_led_through() -> None:
    steps = text(half_duplex=True, robots=2)
    buckets = [step for step in steps if " tbf " in step]
    assert len(buckets) == 1
    assert "dev shaper root" in buckets[0]
    assert "rate 93.0mbit burst 10000b" in buckets[0]
    led = [step.split()[6] for step in steps if step.endswith("mirred egress redirect dev shaper")]
    assert led == ["server", "robot0", "robot1"]
    queues = [step for step in steps if " bfifo " in step]
    assert len(queues) == 3, "a queue for each station"


def test_full_duplex_is_a_bucket_for_each_direction_of_each_robot() -> None:
    steps = text(half_duplex=False, robots=2)
    buckets = [step.split() for step in steps if " tbf " in step]
    assert [(b[2], b[6]) for b in buckets] == [
        ("splitrt-7-robot0", "net"),
        ("splitrt-7-air", "robot0"),
        ("splitrt-7-robot1", "net"),
        ("splitrt-7-air", "robot1"),
    ]
    assert not any("mirred" in step for step in steps)


def test_all_of_it_lies_in_namespaces_of_its_own() -> None:
    for half_duplex in (False, True):
        for step in text(half_duplex=half_duplex):
            inside = ("ip -n splitrt-7-", "tc -n splitrt-7-", "ip netns exec splitrt-7-")
            assert step.startswith((*inside, "ip netns add splitrt-7-")), step


class Machine:
    """Answers commands instead of the machine."""

    def __init__(self, refuse: str = "") -> None:
        self.refuse = refuse
        self.namespaces = ["other", "splitrt-1-air"]
        self.ran: list[str] = []

    def run(self, step: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        command = " ".join(step)
        self.ran.append(command)
        if command == "ip netns list":
            listed = "".join(f"{name} (id: 3)\n" for name in self.namespaces)
            return subprocess.CompletedProcess(step, 0, listed, "")
        if command.startswith("ip netns add "):
            self.namespaces.append(step[-1])
        if command.startswith("ip netns del "):
            self.namespaces.remove(step[-1])
        refused = bool(self.refuse) and self.refuse in command
        return subprocess.CompletedProcess(step, int(refused), "", "no such thing" * refused)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(module.subprocess, "run", machine.run)
    monkeypatch.setattr(module.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)
    return machine


def test_it_says_where_to_run_what(machine: Machine) -> None:
    with shaped_link(93, half_duplex=True, robots=2) as link:
        assert link.server_host == "198.18.0.1"
        assert link.server_prefix[:3] == ["ip", "netns", "exec"]
        assert [prefix[3].rpartition("-")[2] for prefix in link.robot_prefixes] == [
            "robot0",
            "robot1",
        ]
        assert link.robot_prefix == link.robot_prefixes[0]
        assert "half duplex" in link.description
        assert len(machine.namespaces) == 6
    assert machine.namespaces == ["other", "splitrt-1-air"], "process 1 lives, and so may its link"


def test_nothing_is_left_after_an_error(machine: Machine) -> None:
    with pytest.raises(KeyError), shaped_link(93, half_duplex=True):
        raise KeyError
    assert machine.namespaces == ["other", "splitrt-1-air"]


def test_what_a_killed_program_left_is_deleted(machine: Machine) -> None:
    machine.namespaces.append("splitrt-999999999-robot0")
    with shaped_link(93):
        assert "splitrt-999999999-robot0" not in machine.namespaces


def test_where_a_step_is_refused_it_is_the_loopback_with_the_reason(machine: Machine) -> None:
    machine.refuse = "type ifb"
    with shaped_link(93, half_duplex=True, robots=2) as link:
        assert link.server_host == "127.0.0.1"
        assert link.server_prefix == link.robot_prefix == []
        assert link.robot_prefixes == [[], []]
        assert link.rate_mbps is None
        assert "not shaped" in link.description
        assert "type ifb` said 'no such thing'" in link.description
    assert machine.namespaces == ["other", "splitrt-1-air"]


def test_without_root_it_is_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    with shaped_link(93) as link:
        assert link.description == "loopback, not shaped: needs root"


@pytest.mark.parametrize("half_duplex", [False, True])
def test_robots_reach_the_server(half_duplex: bool) -> None:
    with shaped_link(93, half_duplex=half_duplex, robots=2) as link:
        if link.rate_mbps is None:
            pytest.skip(link.description)
        here = [sys.executable, link_check.__file__, "--serve", link.server_host]
        server = subprocess.Popen([*link.server_prefix, *here], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            host, port = server.stdout.readline().split(":")
            reach = (
                f"import socket; s = socket.create_connection(({host!r}, {int(port)}), 10); "
                "s.sendall(b'down 3'.ljust(24)); print(len(s.recv(3, socket.MSG_WAITALL)))"
            )
            for prefix in link.robot_prefixes:
                done = subprocess.run(
                    [*prefix, sys.executable, "-c", reach],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.stdout.strip() == "3", done.stderr
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()
        mine = link.server_prefix[3].rpartition("-")[0]
        assert mine in _namespaces()
    assert mine not in _namespaces()


def _namespaces() -> str:
    command = ["ip", "netns", "list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def measured(**changes: float) -> LinkCheck:
    fields = {
        "up_mbps": GOODPUT,
        "down_mbps": GOODPUT,
        "both_up_mbps": GOODPUT / 2,
        "both_down_mbps": GOODPUT / 2,
        "both_mbps": GOODPUT,
        "frame_ms": 13.5,
        "rtt_ms": 0.1,
    }
    return LinkCheck(**{**fields, **changes})


HALF = ShapedLink("", [], "", rate_mbps=93, half_duplex=True)
FULL = ShapedLink("", [], "", rate_mbps=93)


def test_a_link_that_is_what_it_should_be() -> None:
    assert trouble(measured(), HALF) == ""
    assert trouble(measured(both_mbps=2 * GOODPUT), FULL) == ""


@pytest.mark.parametrize(
    ("link", "changes", "message"),
    [
        (HALF, {"up_mbps": 200.0}, "up: expected 88.9 Mbps, given 200.0"),
        (HALF, {"both_mbps": 2 * GOODPUT}, "both: expected 88.9 Mbps, given 177.9"),
        (FULL, {}, "both: expected 177.9 Mbps, given 88.9"),
        (HALF, {"frame_ms": 2.0}, "a frame: expected 13.5 ms, given 2.0"),
        (ShapedLink("", [], ""), {}, "not shaped"),
    ],
)
def test_a_link_that_is_not(link: ShapedLink, changes: dict[str, float], message: str) -> None:
    assert message in trouble(measured(**changes), link)


@pytest.mark.slow
def test_it_measures_any_link() -> None:
    check = check_link(ShapedLink("127.0.0.1", [], ""))
    assert min(asdict(check).values()) > 0
    assert "both at once" in str(check)


def test_the_rate_of_every_bucket_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    told: dict[str, list[str]] = {}

    class Tool:
        def __init__(self, command: list[str], **_: object) -> None:
            ran.append(command)
            self.stdin = self
            self._lines = told.setdefault(command[2], [])

        def write(self, line: str) -> None:
            self._lines.append(line)

        def close(self) -> None:
            self._lines.append("end")

        def wait(self) -> None:
            pass

    monkeypatch.setattr(module.subprocess, "Popen", Tool)
    link = ShapedLink("", [], "", shapers=[("a", "net"), ("b", "robot0"), ("b", "robot1")])
    with changing_rate(link) as change:
        change(16.0)
    bucket = "root handle 1: tbf rate 16.0mbit burst 3100b limit 4000000\n"
    assert ran == [["tc", "-n", "a", "-batch", "-"], ["tc", "-n", "b", "-batch", "-"]]
    assert told == {
        "a": [f"qdisc change dev net {bucket}", "end"],
        "b": [f"qdisc change dev robot0 {bucket}", f"qdisc change dev robot1 {bucket}", "end"],
    }
    with changing_rate(ShapedLink("", [], "")) as change:
        change(16.0)


@pytest.mark.parametrize(("half_duplex", "count"), [(True, 1), (False, 4)])
def test_it_says_where_its_buckets_are(machine: Machine, half_duplex: bool, count: int) -> None:
    with shaped_link(93, half_duplex=half_duplex, robots=2, burst=3100) as link:
        buckets = [step.split() for step in machine.ran if " tbf " in step]
        assert sorted((step[2], step[6]) for step in buckets) == sorted(link.shapers)
        assert len(link.shapers) == count
        assert all("burst 3100b" in " ".join(step) for step in buckets)


def test_a_changed_rate_is_what_the_kernel_has() -> None:
    with shaped_link(93, half_duplex=True) as link:
        if link.rate_mbps is None:
            pytest.skip(link.description)
        with changing_rate(link) as change:
            change(16.0)
            change(24.0)
        namespace, device = link.shapers[0]
        command = ["tc", "-n", namespace, "qdisc", "show", "dev", device, "root"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "rate 24Mbit" in shown
