from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from slow_robot import slow_robot

CPU = Path("/sys/fs/cgroup/cpu")


def _skip_unless_slowed(description: str) -> None:
    if description.startswith("not slowed"):
        pytest.skip(description)


def test_a_process_started_so_is_in_the_group() -> None:
    with slow_robot(0.5, period_us=4000) as slow:
        _skip_unless_slowed(slow.description)
        assert slow.group is not None
        assert (slow.group / "cpu.cfs_quota_us").read_text().strip() == "2000"
        assert (slow.group / "cpu.cfs_period_us").read_text().strip() == "4000"
        command = [*slow.prefix, "cat", "/proc/self/cgroup"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert slow.group.name in done.stdout
        assert slow.description == "0.50 of a core, period 4 ms"
        periods, seconds = slow.throttled()
        assert periods >= 0
        assert seconds >= 0
    assert not slow.group.exists()


def test_more_than_a_core() -> None:
    with slow_robot(30.0) as slow:  # above the default period's quota
        _skip_unless_slowed(slow.description)
        assert slow.group is not None
        assert (slow.group / "cpu.cfs_quota_us").read_text().strip() == "150000"


def test_what_still_runs_goes_back_and_the_group_is_gone() -> None:
    with slow_robot(0.5) as slow:
        _skip_unless_slowed(slow.description)
        process = subprocess.Popen(
            [*slow.prefix, "sh", "-c", "echo in; exec sleep 60"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
    try:
        assert slow.group is not None
        assert not slow.group.exists()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_after_an_error_the_group_is_gone() -> None:
    with suppress(KeyError), slow_robot(0.5) as slow:
        raise KeyError
    _skip_unless_slowed(slow.description)
    assert slow.group is not None
    assert not slow.group.exists()


def test_without_the_controller_nothing_is_slowed_and_it_says_so(tmp_path: Path) -> None:
    with slow_robot(0.5, root=tmp_path) as slow:
        assert slow.prefix == []
        assert slow.share is None
        assert slow.description == f"not slowed: no cgroup v1 CPU controller at {tmp_path}"
        assert slow.throttled() == (0, 0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("share", "period_us", "message"),
    [
        (0.1, 5000, "share: expected 0.2 or more, given 0.1"),
        (0.5, 100_000, "period_us: expected 1000 to 5000, given 100000"),
        (0.5, 500, "period_us"),
    ],
)
def test_what_is_uneven_or_too_small_is_refused(
    share: float, period_us: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message), slow_robot(share, period_us=period_us):
        pass
