"""Selectors that others have published, as rivals to measure against. Pure.

Each follows its paper as far as that could be read, predicts with the same measured tables as
ours, and chooses among the serial cuts of the bundle that may be used: what a published method
would do on this robot. Each models less than our predictor; its docstring says what. All of them
predict with the bytes that really cross, in the usual coding of each tensor.

None of them knows of stripes, of a choice of codecs, or of how uncertain the goodput is.
Neurosurgeon and DADS take coding to be free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from calibration.prepared import PlansKey, PreparedPlans
from calibration.ranking import barred
from calibration.schedule import ROBOT, SERVER
from calibration.swarm import SwarmProblem, swarm
from engines.manifest import Manifest
from engines.tensors import Array
from runtime.decision import Decision, Situation, blind_cut, without_link

__all__ = ["Dads", "Neurosurgeon", "SpsoGa"]

SWARM_SLACK = 1.2
"""SPSO-GA needs a deadline; where the objective has none, it is so many times the least latency
that a serial cut can have."""


class Neurosurgeon:
    """Layer by layer: the best prefix of the execution order, by latency or by energy.

    The latency of a prefix is its layers on the robot, its output over the goodput, and the other
    layers on the server, slowed by the server's load; its energy is computing on the robot and
    sending. With objective ``energy`` it takes the least energy, with any other the least
    latency.

    Not modelled: what comes back and the round trip; the power that the robot draws while it
    waits; cuts that are not a prefix (branches); stripes; deadlines and budgets; the uncertainty
    of the goodput. Its regressions that predict time and power of a layer are replaced by measured
    times and one power of computing, and its factor of the server's load by the wait that the
    server reports.

    Source:
        Y. Kang, J. Hauswald, C. Gao, A. Rovinski, T. Mudge, J. Mars, L. Tang, *Neurosurgeon:
        Collaborative Intelligence Between the Cloud and Mobile Edge*, ASPLOS 2017, pp. 615-629,
        doi 10.1145/3037697.3037698. Read: the abstract and accounts of others. They state
        regressions for time and power, prefixes, the least latency or the least mobile energy,
        and the server's load; that energy is computing and sending alone is not stated in what
        we could read.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._prefix = np.asarray(
            [c.robot_segments == tuple(range(len(c.robot_segments))) for c in manifest.cuts]
        )

    def decide(self, situation: Situation) -> Decision:
        """Choose the best prefix."""
        known = without_link(situation, self._manifest)
        if known is not None:
            return known
        plans, costs, per_byte_s = _open(situation)
        if situation.objective.kind == "energy":
            power = plans.power
            judged = power.compute * costs.robot_s
            judged = judged + power.communicate * costs.bytes_up * per_byte_s
            reason = "neurosurgeon: least energy of a prefix"
        else:
            judged = costs.robot_s + costs.bytes_up * per_byte_s + costs.server_s
            judged = judged + np.where(costs.remote, situation.queue_s, 0.0)
            reason = "neurosurgeon: least latency of a prefix"
        return _least(situation, np.where(self._prefix, judged, np.inf), reason)


class Dads:
    """The minimum cut of the model's graph: the least latency of one frame, or the best pipeline.

    Under light load a frame's latency is that of the robot's part, of sending what crosses, and of
    the server's part, and the least is a minimum cut of the graph. The compiler found the minimum
    cuts of this graph for all goodputs when the bundle was made, so the best of the bundle's cuts,
    prefixes or not, is the minimum cut among all that can be run; no flow is solved here. Under
    heavy load, which objective ``rate`` stands for, the slowest of the three parts is what counts.

    Not modelled: what comes back and the round trip; the wait at the server; energy, deadlines and
    budgets; stripes; the uncertainty of the goodput. Theirs goes over to heavy load by itself,
    where a part of the minimum cut takes longer than a frame's interval, which the user gives;
    here the objective says which of the two runs. For heavy load they search two weights of the
    minimum cut, which gives a local optimum of at most 3 times the least; here it is the exact
    optimum among the bundle's cuts, which is never worse than theirs among the same.

    Source:
        C. Hu, W. Bao, D. Wang, F. Liu, *Dynamic Adaptive DNN Surgery for Inference Acceleration on
        the Edge*, IEEE INFOCOM 2019, pp. 1423-1431, doi 10.1109/INFOCOM.2019.8737614: DSL
        (algorithm 1), DSH (algorithm 2 and theorem 1), load (algorithm 3). Read in full.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def decide(self, situation: Situation) -> Decision:
        """Choose the minimum cut."""
        known = without_link(situation, self._manifest)
        if known is not None:
            return known
        _, costs, per_byte_s = _open(situation)
        stages = np.stack([costs.robot_s, costs.bytes_up * per_byte_s, costs.server_s])
        if situation.objective.kind == "rate":
            return _least(situation, stages.max(axis=0), "dads: least of the slowest stage")
        return _least(situation, stages.sum(axis=0), "dads: minimum cut")


class SpsoGa:
    """Energy under a deadline by a particle swarm: ``calibration.swarm``.

    A particle assigns every segment to the robot or the server. The deadline is that of objective
    ``deadline=D``; with any other objective, 1.2 times the least latency of a serial cut. Energy
    and latency of an assignment are those of our predictor for serial cuts, the way back, the
    round trip and the wait at the server among them. The swarm is seeded and has 984 looks a
    decision, which takes some milliseconds: it was published for planning beforehand.

    Not modelled: stripes; the uncertainty of the goodput. Theirs places layers on many servers of
    several kinds and orders them, and counts the energy of all servers and devices (running,
    switching, computing); here there is one server, one frame at a time, and the robot's energy.
    Where nothing keeps the deadline it takes the quickest that it finds. It may miss the best
    cut: it is a heuristic.

    Source:
        X. Chen, J. Zhang, B. Lin, Z. Chen, K. Wolter, G. Min, *Energy-Efficient Offloading for
        DNN-Based Smart IoT Systems in Cloud-Edge Environments*, IEEE TPDS 33(3), 2022, pp.
        683-697, doi 10.1109/TPDS.2021.3100298. ``calibration.swarm`` says what of it was read.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._problem = SwarmProblem(manifest)

    def decide(self, situation: Situation) -> Decision:
        """Choose what the swarm finds."""
        known = without_link(situation, self._manifest)
        if known is not None:
            return known
        plans, _, per_byte_s = _open(situation)
        latencies, energies = plans.expected(
            [8.0 / per_byte_s], _rtt_s(situation), situation.queue_s
        )
        count = len(self._manifest.cuts)
        latency_s = _usable(situation, latencies[:count])
        deadline_s = SWARM_SLACK * float(latency_s.min())
        if situation.objective.kind == "deadline":
            deadline_s = situation.objective.limit
        found = swarm(self._problem, energies[:count], latency_s, deadline_s)
        judged = np.where(np.arange(count) == found, 0.0, np.inf)
        return _least(situation, judged, "spso_ga: least energy found within the deadline")


@dataclass(frozen=True)
class _SerialCosts:
    """What the serial cuts take, one element a cut: seconds and bytes."""

    robot_s: Array
    server_s: Array
    bytes_up: Array
    remote: NDArray[np.bool_]


_known: "WeakKeyDictionary[PlansKey, _SerialCosts]" = WeakKeyDictionary()
"""Worked out once for each pair of tables."""


def _serial_costs(plans: PreparedPlans) -> _SerialCosts:
    costs = _known.get(plans.key)
    if costs is None:
        works = [choice.work for choice in plans.choices[: len(plans.manifest.cuts)]]
        costs = _known[plans.key] = _SerialCosts(
            robot_s=np.asarray([work.busy_s(ROBOT) for work in works]),
            server_s=np.asarray([work.busy_s(SERVER) for work in works]),
            bytes_up=np.asarray([float(work.bytes_up) for work in works]),
            remote=np.arange(len(works)) < len(works) - 1,
        )
    return costs


def _open(situation: Situation) -> Tuple[PreparedPlans, _SerialCosts, float]:
    """Return the plans, the costs of all serial cuts, and the seconds of a byte on the link."""
    plans, link = situation.plans, situation.link
    assert plans is not None, "nothing to predict with"
    assert link is not None, "no connection"
    assert link.goodput_bps, "no goodput"
    return plans, _serial_costs(plans), 8.0 / link.goodput_bps


def _usable(situation: Situation, judged: Array) -> Array:
    """Return costs of all serial cuts, infinite for those that may not be used."""
    assert situation.plans is not None
    why = barred(situation.plans, situation.constraints)[: len(judged)]
    found: Array = np.where([bool(reason) for reason in why], np.inf, judged)
    return found


def _least(situation: Situation, judged: Array, reason: str) -> Decision:
    """Take the usable cut of least cost, the first of equals."""
    plans, _, per_byte_s = _open(situation)
    judged = _usable(situation, judged)
    cut = int(np.argmin(judged))
    if not np.isfinite(judged[cut]):
        cut, reason = blind_cut(plans.manifest), "no cut may be used"
    prediction = plans.predict(
        cut,
        goodput_bps=8.0 / per_byte_s,
        rtt_s=_rtt_s(situation),
        queue_s=situation.queue_s,
        in_flight=situation.in_flight,
    )
    return Decision(cut, reason, prediction)


def _rtt_s(situation: Situation) -> float:
    return 0.0 if situation.link is None else situation.link.rtt_s
