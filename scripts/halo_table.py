"""What a bounded halo costs in error and saves in time, on photographs and published costs.

For each number of rows N: the lossy plan that is predicted to be quickest with at least N rows of
halo, against the best of everything that is lossless; and what that plan does to the scores of
photographs that scikit-image carries (each whole, and its four quarters). EfficientNet-lite0 and
MobileNetV2 have their ImageNet weights; of VGG19-BN, whose weights are random, only the time is
told, by its published operator times where a folder with them is named, else by data sheets.

    python scripts/halo_table.py [--testbed FOLDER] [--only mobilenet_v2]
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import demo_model
import mobilenet_v2
import msgspec
import numpy as np
import skimage
from fp16_agreement import PHOTOS
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from workloads.replay_tables import (
    SIDES,
    assign,
    latency_table,
    profile_of,
    replay_table,
)

from calibration.plan_text import plan_text
from calibration.plans import bounded_plans
from calibration.prepared import Choice, PreparedPlans
from calibration.report import RTT_S
from calibration.segment_times import SegmentTimes, estimated_times
from compiler import CompileOptions, compile_model, parse_image, parse_input
from engines.backend import open_backend
from engines.bounded_runs import BoundedHeadRun, BoundedTailRun
from engines.bundle import Bundle
from engines.console import command_options
from engines.errors import SplitError
from engines.program import Program
from engines.stripe_plans import BoundedPlan
from engines.striped import StripedProgram
from engines.tensors import Array
from runtime.sources import read_image

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "halo"
HALOS = (0, 8, 16, 32, 64)
ERRORS = ("max |error|", "least cosine", "mean cosine", "same label")


@dataclass(frozen=True)
class Case:
    """One model of the table.

    Attributes:
        factory: What split-compile takes.
        image: The input that takes pixels.
        input: The input as the model takes it; none where its factory says.
        weights: Whether it has weights that mean something.
        workload: Its published profile.
    """

    factory: str
    image: str
    input: str | None = None
    weights: bool = True
    workload: str | None = None


CASES = {
    "efficientnet_lite0": Case(
        f"{ROOT}/scripts/demo_model.py:efficientnet_lite0",
        demo_model.PREPROCESS,
        demo_model.INPUT,
    ),
    "mobilenet_v2": Case(
        f"{ROOT}/scripts/mobilenet_v2.py:mobilenet_v2",
        mobilenet_v2.PREPROCESS,
        mobilenet_v2.INPUT,
    ),
    "vgg19_bn": Case(
        f"{ROOT}/scripts/workloads/vgg19.py:vgg19_bn",
        "x=imagenet",
        weights=False,
        workload="vgg19_bn",
    ),
}


@click.command()
@click.option("--only", type=click.Choice(sorted(CASES)), multiple=True, help="These models.")
@click.option("--testbed", help="Folder with published profiles; default $SPLITRT_TESTBED.")
@click.option("--robot", default="xavier-nx", show_default=True, help="Device preset.")
@click.option("--server", default="rtx3080", show_default=True, help="Device preset.")
@click.option(
    "--goodput", "goodputs", multiple=True, type=float, default=(26.0, 73.0), show_default=True,
    help="Mbps. Repeatable.",
)  # fmt: skip
@command_options
def main(
    only: tuple[str, ...],
    testbed: str | None,
    robot: str,
    server: str,
    goodputs: tuple[float, ...],
) -> None:
    """Compile each model with --halo, and print its table."""
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=max(150, Console().width))
    for name in only or CASES:
        case = CASES[name]
        options = CompileOptions(
            name=name,
            inputs=() if case.input is None else (parse_input(case.input),),
            images=(parse_image(case.image),),
            halo=HALOS,
            robot=robot,
            server=server,
        )
        bundle, _ = compile_model(case.factory, BUILD / f"{name}.bundle", options=options)
        times, source = times_of(bundle, case, testbed)
        pictures = list(photographs(bundle)) if case.weights else []
        with Scores(bundle, pictures) as scores:
            if pictures:
                console.print(error_table(name, bundle, scores))
            for goodput in goodputs:
                console.print(table_of(name, bundle, times, source, goodput, scores))


def times_of(
    bundle: Bundle, case: Case, testbed: str | None
) -> tuple[tuple[SegmentTimes, SegmentTimes], str]:
    """Return the times of robot and server, and where they are from."""
    manifest = bundle.manifest
    if case.workload is not None:
        try:
            profile = profile_of(case.workload, testbed)
        except SplitError:
            pass
        else:
            assignment = assign(bundle, profile.robot_ops)
            found = []
            with tempfile.TemporaryDirectory() as folder:
                for side in SIDES:
                    path = Path(folder) / f"{side}.json"
                    table = replay_table(bundle, profile, side, assignment)
                    path.write_bytes(msgspec.json.encode(table))
                    found.append(latency_table(bundle, path).times())
            robot, server = (estimated_times(manifest, times) for times in found)
            return (robot, server), f"published times of {profile.robot} and {profile.server}"
    sides = manifest.estimates
    robot, server = (
        estimated_times(manifest, SegmentTimes(sides[side].segments_s)) for side in SIDES
    )
    return (robot, server), f"presets {sides['robot'].device} and {sides['server'].device}"


def photographs(bundle: Bundle) -> Iterator[Array]:
    """Yield every photograph as the model takes it: whole, then its quarters."""
    manifest = bundle.manifest
    [spec] = manifest.inputs
    with tempfile.TemporaryDirectory() as folder:
        for photo in PHOTOS:
            path = Path(skimage.__file__).parent / "data" / photo
            yield read_image(path, spec, manifest.images[spec.name])
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            width, height = image.width // 2, image.height // 2
            for left in (0, width):
                for top in (0, height):
                    part = Path(folder) / "part.png"
                    image.crop((left, top, left + width, top + height)).save(part)
                    yield read_image(part, spec, manifest.images[spec.name])


class Scores:
    """What lossy plans do to the scores of some pictures."""

    def __init__(self, bundle: Bundle, pictures: list[Array]) -> None:
        self._program = Program(bundle, open_backend("ort"), fuse=False)
        self._forms = StripedProgram(self._program)
        self._name = bundle.manifest.inputs[0].name
        self._output = bundle.manifest.outputs[0].name
        self._pictures = pictures
        self._exact = [self._program.run({self._name: p})[self._output] for p in pictures]
        self._known: dict[BoundedPlan, tuple[str, ...]] = {}

    def __enter__(self) -> Scores:
        return self

    def __exit__(self, *_: object) -> None:
        self._forms.close()
        self._program.close()

    def of(self, plan: BoundedPlan) -> tuple[str, ...]:
        """Return largest error, least and mean cosine, and how many labels stay the same."""
        if not self._pictures:
            return ("-",) * 4
        if plan not in self._known:
            self._known[plan] = self._measure(plan)
        return self._known[plan]

    def _measure(self, plan: BoundedPlan) -> tuple[str, ...]:
        largest, agreed = 0.0, 0
        cosines: list[float] = []
        for picture, exact in zip(self._pictures, self._exact, strict=True):
            head = BoundedHeadRun(self._forms, plan, {self._name: picture})
            tail = BoundedTailRun(self._forms, plan)
            tail.take(1, head.raw())
            outputs = tail.take(0, head.run())
            assert outputs is not None, "both messages were taken"
            a = outputs[self._output].reshape(-1).astype(np.float64)
            b = exact.reshape(-1).astype(np.float64)
            largest = max(largest, float(np.abs(a - b).max()))
            cosines.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
            agreed += int(a.argmax() == b.argmax())
        count = len(self._pictures)
        return (
            f"{largest:.3g}",
            f"{min(cosines):.4f}",
            f"{np.mean(cosines):.5f}",
            f"{agreed} of {count} ({100 * agreed / count:.0f}%)",
        )


def error_table(name: str, bundle: Bundle, scores: Scores) -> Table:
    """Return what each halo does at the deepest cut, where most is left out of account."""
    manifest, striping = bundle.manifest, bundle.manifest.striping
    assert striping is not None, f"{name} has no stripes"
    deepest = max(striping.bounded, key=lambda b: manifest.cuts[b.cut].flops_robot).cut
    table = Table(
        *("halo", "exact from", "plan", *ERRORS),
        box=SIMPLE,
        title=f"{name}: divided in the middle, at the deepest cut",
        title_justify="left",
    )
    for bounded in striping.bounded:
        if bounded.cut == deepest:
            middle = striping.rows // 2 // bounded.band * bounded.band
            bound = min(max(middle, bounded.least), bounded.most)
            plan = BoundedPlan(cut=deepest, bound=bound, halo=bounded.halo)
            row = (str(bounded.halo), str(bounded.needed), plan_text(plan, manifest))
            table.add_row(*row, *scores.of(plan))
    return table


def table_of(
    name: str,
    bundle: Bundle,
    times: tuple[SegmentTimes, SegmentTimes],
    source: str,
    goodput_mbps: float,
    scores: Scores,
) -> Table:
    """Return the table of one model at one goodput."""
    manifest, striping = bundle.manifest, bundle.manifest.striping
    assert striping is not None, f"{name} has no stripes"
    bps = goodput_mbps * 1e6
    best = PreparedPlans(manifest, *times).best(bps, RTT_S)
    lossless = best.mode
    if best.plan is not None:
        lossless += f" {plan_text(best.plan, manifest)}"
    table = Table(
        *("N", "halo", "exact from", "lossy plan", "ms", "gain"),
        *ERRORS,
        box=SIMPLE,
        title=f"{name} at {goodput_mbps:g} Mbps, {source}; lossless best {lossless}: "
        f"{best.latency_s * 1e3:.1f} ms",
        title_justify="left",
    )
    for halo in HALOS:
        plans = [plan for b in striping.bounded_from(halo) for plan in bounded_plans(b)]
        choices = PreparedPlans(manifest, *times, plans=plans).choices
        lossy = [choice for choice in choices if isinstance(choice.plan, BoundedPlan)]
        if not lossy:
            table.add_row(str(halo), "no division")
            continue
        found = min(lossy, key=lambda choice: _latency_s(choice, bps))
        assert isinstance(found.plan, BoundedPlan)
        bounded = striping.bounded_cut(found.cut, found.plan.halo)
        assert bounded is not None
        latency_s = _latency_s(found, bps)
        table.add_row(
            str(halo),
            str(bounded.halo),
            str(bounded.needed),
            plan_text(found.plan, manifest),
            f"{latency_s * 1e3:.1f}",
            f"{100 * (1 - latency_s / best.latency_s):+.1f}%",
            *scores.of(found.plan),
        )
    return table


def _latency_s(choice: Choice, bps: float) -> float:
    return choice.latency_s(bps, RTT_S, 0.0)


if __name__ == "__main__":
    main()
