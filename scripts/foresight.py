"""What it is worth to know the link's future: the oracle against perfect knowledge of the present.

    python scripts/foresight.py agrnav --trace outdoors

Nothing is run: the predictor says what each choice takes at the trace's mean over as long as it
takes. No selector that sees only the past can be expected to do better than *present*, which knows
the true goodput of the moment at which it decides.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

import click
from benches.plan_rows import prepared
from estimator_sim import Trace
from rich.console import Console
from rich.table import Table
from robot_end import trace_of
from trace_options import BUILD, NAMES, trace_options, traces_of
from trace_runs import DEADLINE_BY_LOCAL, local_s, stations
from workloads.bundles import replayed

from calibration.objectives import LATENCY
from calibration.prepared import PreparedPlans
from calibration.ranking import rank

__all__ = ["foresight"]

RTT_S = 0.002
PAST_S = 0.3
_LOOKS = 4
"""Times that a latency is found again, from the goodput over the one found before."""


def foresight(
    plans: PreparedPlans, trace: Trace, starts_s: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """Return the latencies of inferences that begin at some moments, in seconds.

    Args:
        plans: What may be done.
        trace: The link.
        starts_s: When inferences begin, from the trace's beginning.

    Returns:
        By what was known: ``oracle`` the mean over the inference, ``present`` the goodput at its
        beginning, ``past`` the mean over the last 0.3 s.
    """

    def choice(goodput_bps: float) -> int:
        best = rank(plans, LATENCY, lambda _: goodput_bps, rtt_s=RTT_S).best
        assert best is not None, "nothing may be used"
        return best

    def took_s(place: int, at_s: float) -> float:
        length_s = trace.step_s
        for _ in range(_LOOKS):
            goodput_bps = trace.mean_bps(at_s, at_s + length_s)
            length_s = float(plans.latencies_s(goodput_bps, RTT_S)[place])
        return length_s

    found: dict[str, list[float]] = {"oracle": [], "present": [], "past": []}
    for at_s in starts_s:
        length_s = trace.step_s
        for _ in range(_LOOKS):
            place = choice(trace.mean_bps(at_s, at_s + length_s))
            length_s = took_s(place, at_s)
        found["oracle"].append(length_s)
        found["present"].append(took_s(choice(trace.goodput_bps(at_s)), at_s))
        past_bps = trace.mean_bps(max(at_s - PAST_S, 0.0), max(at_s, trace.step_s))
        found["past"].append(took_s(choice(past_bps), at_s))
    return {name: tuple(values) for name, values in found.items()}


@click.command()
@trace_options
def main(
    names: Sequence[str], testbed: str | None, traces: Sequence[str], begin_s: float, count: int
) -> None:
    """Compare what a selector can know with what the oracle knows."""
    logging.basicConfig(level=logging.ERROR)
    titles = ("workload", "trace", "oracle ms", "present ms", "ratio", "past 0.3 s ms", "ratio")
    table = Table(*titles)
    for name in names or NAMES:
        made = replayed(name, BUILD, testbed)
        robot, server = stations(made)
        plans = prepared((made.bundle, robot.backend), (made.bundle, server.backend))
        every_s = DEADLINE_BY_LOCAL * local_s(made)
        for path in traces_of(testbed, traces):
            starts_s = [PAST_S + every_s * number for number in range(count)]
            found = foresight(plans, trace_of(path, begin_s), starts_s)
            oracle, present, past = (statistics.fmean(found[k]) for k in found)
            table.add_row(
                name,
                path.name.split("_")[0],
                f"{oracle * 1e3:.1f}",
                f"{present * 1e3:.1f}",
                f"{present / oracle:.3f}",
                f"{past * 1e3:.1f}",
                f"{past / oracle:.3f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
