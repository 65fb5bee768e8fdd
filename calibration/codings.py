"""What codecs cost, and which of them are worth trying for what crosses the link. Pure.

A codec of a tensor is a line: bytes over goodput, and the seconds of coding at both ends. The
faster the link, the more the seconds count. So for each message only those combinations of codecs
are tried, beside the default, that are the best at some goodput by more than a little; which of
them an inference takes is then decided like its cut, with the schedule of the whole.

Lossy codecs are among them only for the frontier of a cut at which their error was measured and
is allowed, and one at a time: no two errors add up that were measured alone. Raw rows that go
beside a frontier, and results, are never lossy. Codecs that refer to what was sent before are for
whole frontiers, not for stripes.
"""

from __future__ import annotations

import math
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

import msgspec
import numpy as np

from engines.codecs import default_codec, is_stream, open_codec
from engines.manifest import Manifest
from engines.stripe_plans import Plan, RowPlan, StripePlan
from engines.tensors import Array, TensorSpec

__all__ = ["CodecCost", "CodecOffer", "Coding", "Codings", "Message", "is_lossy_coding"]

Coding = Tuple[Tuple[str, str], ...]
"""Codecs by tensor, sorted by name; tensors that are not in it have their default codec."""

Message = Tuple[int, float, float]
"""Bytes of a message, and the seconds of coding it at the robot and at the server."""

_GOODPUTS_BPS = tuple(float(bps) for bps in np.geomspace(0.5e6, 2e9, 30))

_WORTHWHILE = 0.98
"""A combination is tried where it takes at most this part of the others' time at some goodput."""

_MOST = 4
_MOST_STRIPED = 3
"""Combinations for one message. There are many striped plans, so fewer for those."""


class CodecCost(msgspec.Struct, frozen=True, array_like=True):
    """What one codec makes of one tensor on one device, as measured. All by the tensor's bytes.

    Attributes:
        tensor: The tensor's name.
        codec: The codec's name.
        ratio: Coded bytes a byte; the mean over what was coded one after the other.
        encode_s: Seconds of coding a byte.
        decode_s: Seconds of decoding it.
    """

    tensor: str
    codec: str
    ratio: float
    encode_s: float
    decode_s: float

    def __post_init__(self) -> None:
        times = (self.encode_s, self.decode_s)
        if not (0 <= self.ratio < 1e3 and all(0 <= seconds < 1 for seconds in times)):
            raise ValueError(f"codec {self.codec!r}: expected a ratio and seconds a byte")


class _Price(msgspec.Struct, frozen=True):
    ratio: float
    robot_up_s: float
    server_up_s: float
    robot_down_s: float
    server_down_s: float


class CodecOffer(msgspec.Struct, frozen=True, kw_only=True):
    """Which codecs may be used between a robot and a server, and what they cost there.

    Attributes:
        usable: Names of the codecs that both ends have, without qualities.
        robot: What was measured on the robot.
        server: What was measured on the server; where it lacks something, it is taken to be as
            quick as the robot.
        policy: ``auto``, or the codec that every tensor has to which it applies.
        admitted: Pairs of a cut's id and a lossy codec that may be used there.
    """

    usable: Tuple[str, ...]
    robot: Tuple[CodecCost, ...] = ()
    server: Tuple[CodecCost, ...] = ()
    policy: str = "auto"
    admitted: Tuple[Tuple[str, str], ...] = ()


class Codings:
    """Prices messages and says which codings to try. Safe across threads.

    Args:
        manifest: The bundle's manifest.
        offer: Which codecs there are.
    """

    def __init__(self, manifest: Manifest, offer: CodecOffer) -> None:
        self.offer = offer
        self._manifest = manifest
        self._admitted = frozenset(offer.admitted)
        self._prices: Dict[str, Dict[str, _Price]] = {}
        there = {(cost.tensor, cost.codec): cost for cost in offer.server}
        for here in offer.robot:
            if here.codec.partition(":")[0] not in offer.usable:
                continue
            peer = there.get((here.tensor, here.codec), here)
            self._prices.setdefault(here.tensor, {})[here.codec] = _Price(
                here.ratio, here.encode_s, peer.decode_s, here.decode_s, peer.encode_s
            )
        self._found: Dict[Tuple[str, bool, bool, Tuple[str, ...]], List[Coding]] = {}

    def __repr__(self) -> str:
        return f"<Codings {self.offer.policy} {len(self._prices)} tensors>"

    def message(
        self, specs: Sequence[TensorSpec], coding: Mapping[str, str], *, up: bool
    ) -> Message:
        """Return what a message of these tensors, or rows of them, costs.

        Args:
            specs: What it carries.
            coding: Codecs by tensor.
            up: Whether the robot sends it.
        """
        size, robot_s, server_s = 0, 0.0, 0.0
        for spec in specs:
            coded, robot, server = self._one(spec, coding.get(spec.name), up=up)
            size, robot_s, server_s = size + coded, robot_s + robot, server_s + server
        return size, robot_s, server_s

    def proposals(self, cut: int, plan: Optional[Plan] = None) -> "List[Coding]":
        """Return the codings to try for a serial cut or a plan: the usual one first."""
        crossing, inputs = self._manifest.cuts[cut], self._manifest.cuts[0].tensors
        if cut == len(self._manifest.cuts) - 1:
            return [()]
        alone = plan is None or (isinstance(plan, StripePlan) and not plan.two_sided)
        names = crossing.tensors
        if isinstance(plan, RowPlan):
            names = inputs
        elif not alone:
            names = tuple(sorted({*names, *inputs}))
        key = (crossing.id, alone, plan is None, names)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._search(*key, crossing.results)
        return found[: _MOST if plan is None else _MOST_STRIPED]

    # -- helpers -----------------------------------------------------------------------------

    def _one(self, spec: TensorSpec, codec: Optional[str], *, up: bool) -> Message:
        default = default_codec(spec)
        price = self._prices.get(spec.name, {}).get(codec or default.name)
        if price is None:  # not measured: no smaller than it may be, and free
            size = default.max_encoded_bytes(spec)
            if codec is not None and open_codec(codec).applies(spec):
                size = min(size, open_codec(codec).max_encoded_bytes(spec))
            return size, 0.0, 0.0
        raw = spec.nbytes
        size = math.ceil(raw * price.ratio)
        if up:
            return size, raw * price.robot_up_s, raw * price.server_up_s
        return size, raw * price.robot_down_s, raw * price.server_down_s

    def _search(
        self, cut: str, alone: bool, whole: bool, up: Tuple[str, ...], down: Tuple[str, ...]
    ) -> List[Coding]:
        """Return codings of a message that has the frontier ``alone``, or raw rows with it.

        It is ``whole``, or comes in stripes.
        """
        specs = {True: self._manifest.specs(up), False: self._manifest.specs(down)}
        if self.offer.policy != "auto":
            return [self._forced(cut, alone, whole, specs)]
        named = {codec for name in up + down for codec in self._prices.get(name, {})}
        lossy = {codec for codec in named if not open_codec(codec).lossless}
        allowed = [""]
        if alone:
            allowed += sorted(
                codec
                for codec in lossy
                if (cut, codec) in self._admitted and (whole or not is_stream(codec))
            )
        # What every combination costs at every goodput.
        seen: Dict[Coding, Array] = {(): self._line(specs, {})}
        for extra in allowed:
            barred = {True: lossy - {extra}, False: lossy}
            for bps in _GOODPUTS_BPS:
                choice = {
                    spec.name: codec
                    for is_up, some in specs.items()
                    for spec in some
                    for codec in (self._cheapest(spec, bps, barred[is_up], up=is_up),)
                    if codec is not None
                }
                coding = tuple(sorted(choice.items()))
                if coding not in seen:
                    seen[coding] = self._line(specs, choice)
        return _worthwhile(seen)

    def _forced(
        self, cut: str, alone: bool, whole: bool, specs: Mapping[bool, Sequence[TensorSpec]]
    ) -> Coding:
        """Return the coding of a codec that was asked for by name, wherever it may be used."""
        name = self.offer.policy
        codec = open_codec(name)
        if name.partition(":")[0] not in self.offer.usable or (is_stream(name) and not whole):
            return ()
        if not codec.lossless and not (alone and (cut, name) in self._admitted):
            return ()
        some = [*specs[True], *(specs[False] if codec.lossless else ())]
        return tuple(sorted((spec.name, name) for spec in some if codec.applies(spec)))

    def _line(
        self, specs: Mapping[bool, Sequence[TensorSpec]], coding: Mapping[str, str]
    ) -> Array:
        messages = [self.message(some, coding, up=up) for up, some in specs.items()]
        size = sum(message[0] for message in messages)
        coding_s = sum(message[1] + message[2] for message in messages)
        return 8.0 * size / np.asarray(_GOODPUTS_BPS) + coding_s

    def _cheapest(
        self, spec: TensorSpec, bps: float, barred: Set[str], *, up: bool
    ) -> Optional[str]:
        """Return the codec with which a tensor is there soonest; none for its default."""
        best: Optional[str] = None
        least_s = math.inf
        for codec in (None, *self._prices.get(spec.name, {})):
            if codec is not None and (codec in barred or codec == default_codec(spec).name):
                continue
            size, robot_s, server_s = self._one(spec, codec, up=up)
            seconds = 8.0 * size / bps + robot_s + server_s
            if seconds < least_s:
                best, least_s = codec, seconds
        return best


def is_lossy_coding(coding: Coding) -> bool:
    """Whether a coding changes values."""
    return any(not open_codec(codec).lossless for _, codec in coding)


def _worthwhile(seen: Dict[Coding, Array]) -> "List[Coding]":
    """Return the default coding and those that beat what is kept before them, the best first."""
    kept: List[Coding] = [()]
    least = seen[()].copy()
    while len(kept) < _MOST:
        gains = {coding: float((line / least).min()) for coding, line in seen.items()}
        best = min(gains, key=lambda coding: gains[coding])
        if gains[best] > _WORTHWHILE:
            break
        kept.append(best)
        least = np.minimum(least, seen[best])
    return kept
