from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from calibration.codec_ranges import ranges_digest
from calibration.codings import CodecCost
from calibration.collect import calibrate_cuts
from calibration.latency_table import store_table
from calibration.measure import measure_latency
from calibration.measure_codecs import measure_codecs
from calibration.quality import SPEC, CodecQuality, QualityTable, quality_file, write_quality
from calibration.ranges import RANGES_FILE, stored_ranges, write_ranges
from calibration.samples import Sample, Samples
from engines.backend import BackendOptions, open_backend
from engines.bundle import Bundle
from engines.codecs import codec_ids_here
from engines.errors import CodecError
from engines.program import Program
from runtime import Robot, Server
from runtime.codec_policy import CodecPolicy, open_policy
from runtime.recording import Recorder, read_run
from runtime.tables import wire_table
from runtime.wire import Table
from tests.runtime.helpers import address, assert_right, eventually
from tests.striped_toy import striped_inputs, whole_outputs
from tests.toy import toy_outputs, write_toy_bundle

COST = CodecCost("x", "zstd", 0.5, 1e-9, 1e-9)
HERE = Table((0.1,) * 7, codec_ids=codec_ids_here(), codecs=(COST,))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_toy_bundle(tmp_path / "toy.bundle")


def _quality(bundle: Bundle, *rows: tuple[int, str, float], ranges: str = "") -> None:
    table = QualityTable(
        spec=SPEC,
        bundle=bundle.digest,
        reference=bundle.digest,
        precision="float32",
        metric="max",
        data="d" * 64,
        samples=5,
        rows=tuple(
            CodecQuality(
                cut=bundle.manifest.cuts[cut].id,
                codec=codec,
                metric="max",
                error=error,
                largest=error,
                bytes=10.0,
                lossless=False,
            )
            for cut, codec, error in rows
        ),
        ranges=ranges,
    )
    write_quality(quality_file(bundle, "max"), table)


def _calibrate(bundle: Bundle, inputs: dict[str, np.ndarray]) -> str:
    """Calibrate over an input, again and again; returns what tells the ranges from others."""
    samples = Samples("one", lambda: iter([Sample("0", inputs)] * 8), 8)
    with Program(bundle, open_backend("ort", BackendOptions(threads=1))) as program:
        ranges = calibrate_cuts(program, samples)
    write_ranges(bundle.device_folder / RANGES_FILE, ranges)
    return ranges_digest(stored_ranges(bundle))


class TestPolicy:
    def test_lossless_codecs_need_no_leave(self, bundle: Bundle) -> None:
        for name in ("auto", "none", "zstd", "identity"):
            assert open_policy(name, bundle) == CodecPolicy(name)

    @pytest.mark.parametrize("name", ["int8", "fp16", "jpeg:80", "jpeg"])
    def test_a_lossy_codec_does(self, bundle: Bundle, name: str) -> None:
        with pytest.raises(CodecError, match="--allow-lossy MAX_ERROR"):
            open_policy(name, bundle)

    def test_leave_needs_a_measurement(self, bundle: Bundle) -> None:
        with pytest.raises(CodecError, match="split-bundle verify BUNDLE --data"):
            open_policy("auto", bundle, 0.1)

    def test_what_was_measured_within_the_error_is_admitted(self, bundle: Bundle) -> None:
        _quality(bundle, (1, "int8", 0.02), (2, "int8", 0.2), (1, "fp16", 0.001))
        cuts = bundle.manifest.cuts
        policy = open_policy("auto", bundle, 0.02)
        assert set(policy.admitted) == {(cuts[1].id, "int8"), (cuts[1].id, "fp16")}
        assert open_policy("int8", bundle, 0.5).admitted != ()
        with pytest.raises(CodecError, match=r"at most 0.01 at some cut, given 0.02 \(max\)"):
            open_policy("int8", bundle, 0.01)
        with pytest.raises(CodecError, match="nothing measured"):
            open_policy("int8-zstd", bundle, 0.01)

    def test_errors_hold_for_the_ranges_that_they_were_measured_with(
        self, bundle: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        rows = ((1, "int8:mse", 0.02), (1, "int8", 0.03))
        first = bundle.manifest.cuts[1].id
        _quality(bundle, *rows, ranges=_calibrate(bundle, inputs))
        policy = open_policy("int8:mse", bundle, 0.1)
        assert (first, "int8:mse") in policy.admitted
        assert ("a", "int8:mse") in policy.ranges
        assert open_policy("auto", bundle, 0.001).ranges == {}  # nothing is written by them
        _calibrate(bundle, {name: array * 2 for name, array in inputs.items()})
        assert open_policy("auto", bundle, 0.1).admitted == ((first, "int8"),)
        with pytest.raises(CodecError, match="calibrated again since its errors were measured"):
            open_policy("int8:mse", bundle, 0.1)

    @pytest.mark.parametrize("allowed", [-1.0, float("nan")])
    def test_an_impossible_error_is_refused(self, bundle: Bundle, allowed: float) -> None:
        with pytest.raises(CodecError, match="expected 0 or more"):
            open_policy("auto", bundle, allowed)

    def test_an_unknown_codec_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(CodecError, match="expected one of identity"):
            open_policy("gzip", bundle)

    def test_a_codec_without_its_library_is_refused(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtime.codec_policy.codec_ids_here", lambda: (0, 1))
        with pytest.raises(CodecError, match="needs blosc2, which is not installed"):
            open_policy("zstd", bundle)

    def test_the_offer_is_what_both_ends_have(self) -> None:
        assert CodecPolicy("none").offer(HERE, HERE) is None
        nothing_measured = msgspec.structs.replace(HERE, codecs=())
        assert CodecPolicy().offer(nothing_measured, HERE) is None
        offer = CodecPolicy().offer(HERE, msgspec.structs.replace(HERE, codec_ids=(0, 1, 6)))
        assert offer is not None
        assert offer.usable == ("identity", "bitpack", "zstd")
        assert (offer.robot, offer.server) == ((COST,), (COST,))
        old = CodecPolicy("lz4").offer(HERE, Table((0.1,)))
        assert old is not None
        assert old.usable == ()


def _profiled(bundle: Bundle, inputs: dict[str, np.ndarray]) -> None:
    """Keep a table by which the robot is slow and codecs are free."""
    with Program(bundle, open_backend("ort", BackendOptions(threads=1))) as program:
        table = measure_latency(program, runs=3)
        costs = measure_codecs(program, [inputs], budget_s=0.0)
    free = tuple(msgspec.structs.replace(cost, encode_s=0.0, decode_s=0.0) for cost in costs)
    store_table(bundle, msgspec.structs.replace(table, codecs=free))


class TestRobot:
    def test_without_measured_codecs_all_is_as_it_was(
        self, bundle: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        with _served(bundle) as server, Robot(bundle, server=address(server), threads=1) as robot:
            result = robot.infer(inputs, cut="offload")
        assert result.codecs == {}
        assert result.answered_by == "remote"

    def test_measured_codecs_are_used_where_they_pay(
        self, bundle: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        smooth = {name: np.round(array) for name, array in inputs.items()}
        _profiled(bundle, smooth)
        with (
            _served(bundle) as server,
            Robot(bundle, server=address(server), cut="offload", threads=1) as robot,
            Robot(bundle, server=address(server), cut="offload", threads=1, codec="none") as plain,
        ):
            result, whole = robot.infer(smooth), plain.infer(smooth)
        assert_right(result, toy_outputs(smooth))
        assert "x" in result.codecs
        assert whole.codecs == {}
        assert result.bytes_up < whole.bytes_up
        assert not result.lossy
        assert result.record()["codecs"] == result.codecs

    def test_a_recorded_run_knows_the_codecs(
        self, bundle: Bundle, inputs: dict[str, np.ndarray], tmp_path: Path
    ) -> None:
        _profiled(bundle, inputs)
        path = tmp_path / "run.jsonl"
        with (
            path.open("w") as file,
            _served(bundle) as server,
            Robot(bundle, server=address(server), cut="offload", threads=1) as robot,
        ):
            recorder = Recorder(file, bundle, selector="offload", clock=time.monotonic)
            for _ in range(2):
                result = robot.infer(inputs)
                recorder.add(result)
        run = read_run(path)
        plans = run.plans(run.inferences[-1].tables)
        decision = result.decision
        assert plans is not None
        assert plans.codings is not None
        assert decision is not None
        assert decision.situation is not None
        assert decision.situation.plans is not None
        assert decision.situation.plans.codings is not None
        assert plans.codings.offer == decision.situation.plans.codings.offer
        assert [c.coding for c in plans.choices] == [
            c.coding for c in decision.situation.plans.choices
        ]

    @pytest.mark.parametrize("codec", ["zstd", "lz4"])
    def test_a_named_codec_is_used_both_ways(
        self, bundle: Bundle, inputs: dict[str, np.ndarray], codec: str
    ) -> None:
        with (
            _served(bundle) as server,
            Robot(bundle, server=address(server), threads=1, codec=codec) as robot,
        ):
            for cut in bundle.manifest.cuts[:-1]:
                result = robot.infer(inputs, cut=cut.id)
                assert_right(result, toy_outputs(inputs))
                assert result.answered_by == "remote"
                assert set(result.codecs.values()) == {codec}
                assert set(cut.results) <= set(result.codecs)

    def test_a_lossy_codec_is_used_at_the_cut_where_it_is_allowed(
        self, bundle: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        _quality(bundle, (1, "int8", 0.02))
        with (
            _served(bundle) as server,
            Robot(bundle, server=address(server), threads=1, codec="int8", allow_lossy=0.1)
            as robot,
        ):  # fmt: skip
            exact = robot.infer(inputs, cut=bundle.manifest.cuts[2].id)
            result = robot.infer(inputs, cut=bundle.manifest.cuts[1].id)
        assert not exact.lossy
        assert_right(exact, toy_outputs(inputs))
        assert result.lossy
        for name, array in toy_outputs(inputs).items():
            np.testing.assert_allclose(result.outputs[name], array, atol=0.5)

    def test_a_calibrated_range_is_used_and_needs_nothing_of_the_server(
        self, bundle: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        cut = bundle.manifest.cuts[1]
        with _served(bundle) as server:  # was there before the ranges were
            _quality(bundle, (1, "int8-channel:mse", 0.1), ranges=_calibrate(bundle, inputs))
            policy = {"codec": "int8-channel:mse", "allow_lossy": 0.2}
            with Robot(bundle, server=address(server), threads=1, **policy) as robot:
                result = robot.infer(inputs, cut=cut.id)
                # Beyond what calibration saw: clipped, so that the outputs are other ones.
                beyond = {name: array * 10 for name, array in inputs.items()}
                clipped = robot.infer(beyond, cut=cut.id)
        assert result.lossy
        assert result.codecs == {"a": "int8-channel:mse"}
        raw = sum(spec.nbytes for spec in bundle.manifest.specs(cut.tensors))
        assert result.bytes_up < raw / 2
        for name, array in toy_outputs(inputs).items():
            np.testing.assert_allclose(result.outputs[name], array, atol=0.2)
        gap = np.abs(clipped.outputs["logits"] - toy_outputs(beyond)["logits"]).max()
        assert gap > 1

    def test_a_server_of_before_gets_default_codecs(
        self, bundle: Bundle, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _served(bundle) as server:
            (served,) = server._bundles.values()
            table = msgspec.structs.replace(served.table, codec_ids=())
            monkeypatch.setattr(server, "_bundles", {bundle.digest: served._replace(table=table)})
            with Robot(bundle, server=address(server), threads=1, codec="zstd") as robot:
                result = robot.infer(inputs, cut="offload")
        assert result.answered_by == "remote"
        assert result.codecs == {}

    @pytest.mark.parametrize("codec", ["zstd", "none"])
    def test_stripes_are_coded(self, dense: Bundle, codec: str) -> None:
        inputs = striped_inputs()
        expected = whole_outputs(dense, inputs)
        striped = dense.manifest.striping
        assert striped is not None
        cut = next(c.cut for c in striped.cuts if c.cut)
        plan = f"{dense.manifest.cuts[cut].id}/2"
        with (
            _served(dense) as server,
            Robot(dense, server=address(server), threads=1, codec=codec) as robot,
        ):
            assert robot.prepare(plan)
            eventually(lambda: robot.infer(inputs, cut=plan).stripes == 2, "stripes")
            result = robot.infer(inputs, cut=plan)
        for name, array in expected.items():
            np.testing.assert_allclose(result.outputs[name], array, atol=1e-4)
        assert set(result.codecs.values()) == ({codec} if codec != "none" else set())

    def test_the_table_on_the_wire_has_what_was_measured_up_to_a_limit(
        self, bundle: Bundle, inputs: dict[str, np.ndarray]
    ) -> None:
        with Program(bundle, open_backend("ort", BackendOptions(threads=1))) as program:
            table = measure_latency(program, runs=3)
        some = msgspec.structs.replace(table, codecs=(COST,))
        assert wire_table(some).codecs == (COST,)
        assert wire_table(some).codec_ids == codec_ids_here()
        many = msgspec.structs.replace(table, codecs=(COST,) * 10_000)
        assert 1000 < len(wire_table(many).codecs) < 10_000
        assert len(msgspec.msgpack.encode(wire_table(many))) < 200 * 1024


class _served:  # noqa: N801 (it reads as a function does)
    def __init__(self, bundle: Bundle) -> None:
        self._program = Program(bundle, open_backend("ort", BackendOptions(threads=1)))
        self._server = Server([self._program])

    def __enter__(self) -> Server:
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._program.close()
