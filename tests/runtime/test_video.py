"""Codec ``video`` over loopback: frames arrive right, and a missing one costs one fallback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from calibration.bundle_cli import main
from calibration.codings import CodecOffer, Codings
from calibration.measure_codecs import measure_codecs
from calibration.quality import SPEC, CodecQuality, QualityTable, quality_file, write_quality
from compiler import CompileOptions, compile_model
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.codecs import CODECS
from engines.program import Program
from engines.stripe_plans import StripePlan
from runtime import Robot, Server
from runtime.result import Result
from tests.runtime.helpers import address, eventually

pytest.importorskip("av")

CODEC = "video:85"
SHAPE = (1, 64, 96, 3)
BLOCK = 8


class Blocks(nn.Module):
    """Means of blocks of a picture: says which picture it was."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [1, 3, H / 8, W / 8], float32."""
        picture = torch.relu(x.permute(0, 3, 1, 2).float())
        return nn.functional.avg_pool2d(picture, BLOCK)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = CompileOptions(name="blocks", cuts="all", stripes="none")
    example = (torch.zeros(SHAPE, dtype=torch.uint8),)
    out = tmp_path_factory.mktemp("video") / "blocks.bundle"
    made = compile_model((Blocks().eval(), example), out, options=options)[0]
    row = CodecQuality(
        cut=made.manifest.cuts[0].id,
        codec=CODEC,
        metric="max",
        error=0.01,
        largest=0.01,
        bytes=1.0,
        lossless=False,
    )
    table = QualityTable(
        spec=SPEC,
        bundle=made.digest,
        reference=made.digest,
        precision="float32",
        metric="max",
        data="d" * 64,
        samples=5,
        rows=(row,),
    )
    write_quality(quality_file(made, "max"), table)
    return made


@pytest.fixture
def server(bundle: Bundle) -> Iterator[Server]:
    backend = open_backend("ort", BackendOptions(threads=1))
    with Program(bundle, backend) as program, Server([program]) as running:
        yield running


@pytest.fixture
def robot(bundle: Bundle, server: Server) -> Iterator[Robot]:
    with Robot(
        bundle, server=address(server), cut="offload", threads=1, codec=CODEC, allow_lossy=0.1
    ) as made:
        yield made


def _frames(count: int, start: int = 0) -> list[np.ndarray]:
    """Return a picture that moves, each 12 levels bluer than the one before."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    found = []
    for n in range(start, start + count):
        planes = [
            127 + 100 * np.sin((columns + 2 * n) / 9),
            127 + 100 * np.cos((rows + n) / 7),
            np.clip(12 * n + columns / 3, 0, 255),
        ]
        found.append(np.stack(planes, axis=-1).astype(np.uint8)[None])
    return found


def _gap(result: Result, frame: np.ndarray) -> float:
    (given,) = result.outputs.values()
    picture = frame[0].astype(np.float64).transpose(2, 0, 1)
    height, width = SHAPE[1] // BLOCK, SHAPE[2] // BLOCK
    wanted = picture.reshape(3, height, BLOCK, width, BLOCK).mean(axis=(2, 4))
    return float(np.abs(given[0] - wanted).mean())


def _sent(result: Result, frame: np.ndarray) -> None:
    """Check that a frame was sent by the codec and is what the server saw."""
    assert result.answered_by == "remote", result.reason
    assert result.codecs == {"x": CODEC}
    assert result.lossy
    assert 0 < _gap(result, frame) < 3


def _lose(robot: Robot, frame: np.ndarray) -> None:
    """Code a frame as if it were sent."""
    assert robot.link is not None
    encoders = robot.link._encoders
    with encoders.message({"x": CODEC}):
        stream = encoders.open(CODEC, "x")
        assert stream is not None
        stream.encode(frame, memoryview(bytearray(100_000)))


def test_frames_arrive_right_and_refer_to_those_before(robot: Robot) -> None:
    sizes = []
    for frame in _frames(6):
        result = robot.infer({"x": frame})
        _sent(result, frame)
        sizes.append(result.bytes_up)
    assert max(sizes[1:]) < sizes[0] < frame.nbytes / 5


def test_a_missing_frame_is_an_error_then_a_fallback_then_a_key_frame(robot: Robot) -> None:
    frames = _frames(6)
    first = robot.infer({"x": frames[0]})
    _sent(first, frames[0])
    _sent(robot.infer({"x": frames[1]}), frames[1])
    assert robot.link is not None
    _lose(robot, frames[2])
    missed = robot.infer({"x": frames[3]})
    assert missed.answered_by == "fallback"
    assert "expected frame 2 of stream" in missed.reason
    assert _gap(missed, frames[3]) < 1e-3
    assert not missed.lossy
    again = robot.infer({"x": frames[4]})
    _sent(again, frames[4])
    assert again.bytes_up > 0.7 * first.bytes_up  # a key frame
    after = robot.infer({"x": frames[5]})
    _sent(after, frames[5])
    assert after.bytes_up < again.bytes_up
    assert robot.link.up  # all on one connection


def test_a_new_connection_begins_with_a_key_frame(robot: Robot) -> None:
    frames = _frames(4)
    for frame in frames[:2]:
        _sent(robot.infer({"x": frame}), frame)
    link = robot.link
    assert link is not None
    before = link._encoders
    assert link._channel is not None
    link._channel.stream.abort()
    eventually(lambda: link.up and link._encoders is not before, "another connection")
    for frame in frames[2:]:
        _sent(robot.infer({"x": frame}), frame)


def test_another_cut_in_between_begins_anew(robot: Robot, bundle: Bundle) -> None:
    frames = _frames(4)
    sizes = []
    for frame in frames[:2]:
        sizes.append(robot.infer({"x": frame}).bytes_up)
    assert sizes[1] < sizes[0]
    other = next(cut for cut in bundle.manifest.cuts[1:-1] if not cut.refused)
    exact = robot.infer({"x": frames[2]}, cut=other.id)
    assert exact.answered_by == "remote"
    assert not exact.lossy
    last = robot.infer({"x": frames[3]})
    _sent(last, frames[3])
    assert last.bytes_up > 0.7 * sizes[0]


def test_frames_in_flight_go_out_in_the_order_of_their_coding(robot: Robot) -> None:
    frames = _frames(18)
    with robot.stream(({"x": frame} for frame in frames), in_flight=4) as results:
        for frame, result in zip(frames, results):
            _sent(result, frame)


def test_a_missing_frame_among_several_in_flight_is_no_wrong_picture(robot: Robot) -> None:
    frames = _frames(18)

    def taken() -> Iterator[dict[str, np.ndarray]]:
        for number, frame in enumerate(frames):
            if number == 6:
                _lose(robot, frames[0])
            yield {"x": frame}

    with robot.stream(taken(), in_flight=3) as results:
        found = list(zip(frames, results))
    for frame, result in found:
        assert _gap(result, frame) < 3
    by = [result.answered_by for _, result in found]
    assert by[:3] == ["remote"] * 3
    assert by[-3:] == ["remote"] * 3
    assert "fallback" in by


def test_two_robots_have_streams_of_their_own(
    robot: Robot, bundle: Bundle, server: Server
) -> None:
    with Robot(
        bundle, server=address(server), cut="offload", threads=1, codec=CODEC, allow_lossy=0.1
    ) as other:
        for one, two in zip(_frames(4), reversed(_frames(4, 8))):
            _sent(robot.infer({"x": one}), one)
            _sent(other.infer({"x": two}), two)


def test_its_error_is_that_of_a_sequence(bundle: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.stack(_frames(8)))
    arguments = ["verify", str(bundle.folder), "--data", str(tmp_path / "data.npz"), "--json"]
    bytes_of = {}
    for name, more in (("sequence", []), ("first", ["--samples", "1"])):
        done = CliRunner().invoke(main, [*arguments, *more, "--codec", "video", "--metric", "max"])
        assert done.exit_code == 0, done.output
        rows = [row for row in json.loads(done.stdout)["rows"] if row["codec"] != "none"]
        pictures = {
            cut.id
            for cut in bundle.manifest.cuts
            if any(spec.dtype == "uint8" for spec in bundle.manifest.specs(cut.tensors))
        }
        assert {row["cut"] for row in rows} == pictures
        assert {row["codec"] for row in rows} == {"video:60", "video:75", "video:85"}
        assert all(0 < row["error"] < 0.1 for row in rows)
        bytes_of[name] = {(row["cut"], row["codec"]): row["bytes"] for row in rows}
    for way, mean in bytes_of["sequence"].items():
        assert mean < 0.8 * bytes_of["first"][way]


def test_stripes_are_never_coded_by_it(bundle: Bundle) -> None:
    frames = [{"x": frame} for frame in _frames(4)]
    with Program(bundle, open_backend("ort", BackendOptions(threads=1))) as program:
        costs = measure_codecs(program, frames, budget_s=0.0)
        alone = measure_codecs(program, frames[:1], budget_s=0.0)
    ratios = [
        {c.codec: c.ratio for c in some if c.tensor == "x"}[CODEC] for some in (costs, alone)
    ]
    assert ratios[0] < 0.8 * ratios[1]  # a sequence, not four key frames
    admitted = ((bundle.manifest.cuts[0].id, CODEC),)
    usable = tuple(name for name, _ in CODECS.values())
    for policy in ("auto", CODEC):
        offer = CodecOffer(usable=usable, robot=costs, policy=policy, admitted=admitted)
        codings = Codings(bundle.manifest, offer)
        whole = codings.proposals(0)
        assert any(dict(coding).get("x") == CODEC for coding in whole)
        plan = StripePlan(cut=0, until=1, bounds=(32, 64), robot=2)
        assert not any(CODEC in dict(c).values() for c in codings.proposals(0, plan))
