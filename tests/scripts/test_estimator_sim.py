"""The link on paper, and the estimator on it: no clock, so the numbers are the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from estimator_sim import TRAFFIC, Checked, Trace, read_trace, score, simulate, step_lags_s

from runtime.estimator import LinkEstimate
from runtime.probing import LARGEST_BYTES

STEPS = Trace(0.1, tuple(level for _ in range(3) for level in [80.0] * 20 + [16.0] * 20))
STEADY = Trace(0.1, (80.0,) * 60)


@pytest.mark.parametrize("name", TRAFFIC)
@pytest.mark.parametrize("mbps", [4.0, 16.0, 40.0, 80.0])
def test_a_steady_link_is_found(name: str, mbps: float) -> None:
    trace = Trace(0.1, (mbps,) * 80)
    found, _ = simulate(trace, TRAFFIC[name])
    result = score(trace, found, warm_s=4.0)
    assert result.off_p50 < 0.1
    assert result.band > 0.9


def test_a_step_down_is_followed_within_150_ms_and_up_more_slowly() -> None:
    found, _ = simulate(STEPS, TRAFFIC["frames"])
    result = score(STEPS, found)
    assert result.down_s is not None
    assert result.up_s is not None
    assert result.down_s <= 0.15
    assert result.down_s < result.up_s <= 0.5


def test_pauses_between_stripes_do_not_count() -> None:
    """150 kB in 64 ms are 19 Mbps; the link gives 77."""
    found, _ = simulate(STEADY, TRAFFIC["striped"])
    known = found[-1].estimate.goodput_bps
    assert known == pytest.approx(STEADY.goodput_bps(0), rel=0.1)


def test_the_band_holds_most_of_the_truth() -> None:
    levels = (80, 80, 56, 64, 8, 8, 8, 120, 96, 96, 24, 80, 72, 72, 72, 40, 40, 16, 88, 104)
    trace = Trace(0.1, tuple(float(level) for level in levels * 15))
    found, _ = simulate(trace, TRAFFIC["frames"])
    result = score(trace, found)
    assert result.band > 0.85
    assert result.half > 0.35


@pytest.mark.parametrize("mbps", [1.0, 8.0, 80.0])
def test_probes_take_at_most_a_hundredth_and_64_kb_a_second(mbps: float) -> None:
    trace = Trace(0.1, (mbps,) * 600)
    _, probes = simulate(trace, TRAFFIC["idle"])
    assert 0 < probes <= 32_768 + 60 * min(mbps * 1e6 / 8 / 100, 64_000)


def test_no_probes_while_frames_tell_enough() -> None:
    _, probes = simulate(STEADY, TRAFFIC["frames"])
    assert probes <= LARGEST_BYTES, "the first one, before any frame"


def estimate(bps: float) -> LinkEstimate:
    return LinkEstimate(bps, 0.0, 1, tuple(bps * ratio for ratio in (0.2, 0.5, 0.9, 1, 1.1, 2, 3)))


def test_lags_of_estimates_made_by_hand() -> None:
    trace = Trace(0.1, (80.0,) * 10 + (16.0,) * 10)
    late = [Checked(i * 0.02, estimate(trace.goodput_bps(i * 0.02 - 0.2))) for i in range(100)]
    downs, ups = step_lags_s(trace, late)
    assert downs == [pytest.approx(0.2, abs=0.03)]
    assert ups == []
    never = [Checked(i * 0.02, estimate(1e6)) for i in range(100)]
    assert step_lags_s(trace, never)[0] == [pytest.approx(1.0)]


def test_a_score_of_estimates_made_by_hand() -> None:
    trace = Trace(0.1, (80.0,) * 50)
    truth = trace.goodput_bps(0)
    result = score(trace, [Checked(i * 0.02, estimate(truth * 1.2)) for i in range(250)])
    assert result.p50 == pytest.approx(0.2)
    assert (result.band, result.half) == (1.0, 0.0)
    assert result.width == pytest.approx(4.0)
    assert "20%" in str(result)
    assert '"band": 1.0' in result.as_json()
    with pytest.raises(ValueError, match="no estimate"):
        score(trace, [])


def test_reading_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "some_10hz.csv"
    path.write_text("t_s,mbps\n" + "".join(f"{i / 10:.1f},{i}\n" for i in range(30)))
    assert read_trace(path).mbps == tuple(float(i) for i in range(30))
    assert read_trace(path, begin_s=1.0, seconds=0.5).mbps == (10.0, 11.0, 12.0, 13.0, 14.0)
    with pytest.raises(ValueError, match="nothing between"):
        read_trace(path, begin_s=9.0, seconds=1.0)
