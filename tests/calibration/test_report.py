from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.bundle_cli import main
from calibration.choices import mbps
from calibration.codings import CodecCost, CodecOffer, Codings
from calibration.latency_table import LatencyTable, Timing
from calibration.prepared import PreparedPlans
from calibration.quality import SPEC, CodecQuality, QualityTable, quality_file, write_quality
from calibration.records import write_record
from calibration.report import render_report
from calibration.segment_times import estimated_times
from engines.bundle import Bundle
from engines.codecs import CODECS
from engines.fingerprint import Fingerprint
from engines.manifest import Estimate, Manifest
from tests.striped import Layer, chain

LAYERS = [Layer(4000, 1, 2), Layer(2000, 2, 2), Layer(300, 4, 2)]


def _page(manifest: Manifest, robot_s: float, server_s: float) -> str:
    count = len(manifest.segments)
    estimates = {
        "robot": Estimate(device="board", source="measured", segments_s=(robot_s,) * count),
        "server": Estimate(device="desk", source="roofline", segments_s=(server_s,) * count),
    }
    manifest = msgspec.structs.replace(manifest, estimates=estimates)
    return unescape(render_report(manifest))


def _rows(page: str, heading: str) -> list[list[str]]:
    table = page[page.index(heading) :].split("</table>", maxsplit=1)[0]
    lines = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL) for line in lines]
    return [[re.sub("<[^>]*>", "", cell) for cell in row] for row in cells if row]


def test_a_bundle_without_stripes_does_not_speak_of_them(toy: Bundle) -> None:
    page = _page(toy.manifest, 0.1, 0.01)
    assert "tripe" not in page
    assert "Serial plans, a round trip of 2 ms" in page
    assert "For latency, " in page


def test_the_page_is_the_same_every_time(toy: Bundle) -> None:
    assert _page(toy.manifest, 0.1, 0.01) == _page(toy.manifest, 0.1, 0.01)


def test_stripes_are_in_the_verdict_and_the_tables() -> None:
    manifest = chain(LAYERS, whole=[1000, 10], input_row_bytes=600)
    page = _page(manifest, 0.1, 0.03)
    assert page.index("For latency, stripes pay between") < page.index("For latency, a s")
    best = _rows(page, "best for latency, stripes among all")
    assert any(row[1].startswith(("two-sided", "streamed")) for row in best)
    assert best[0][0].startswith("0.5 Mbps to ")
    lags = _rows(page, "lag, rows")
    assert [row[0] for row in lags] == [cut.id for cut in manifest.cuts[:4]]
    assert [row[2:] for row in lags] == [
        ["0 (0%)", "0 (0%)", "64", "no"],
        ["2 (3%)", "4 (6%)", "62", "from row 7 on"],
        ["4 (6%)", "4 (6%)", "30", "from row 10 on"],
        ["8 (12%)", "4 (6%)", "14", "from row 16 on"],
    ]
    assert _rows(page, "stripes end at") == [["pool", "GlobalAveragePool", "needs every row"]]


def test_row_splits_have_a_table() -> None:
    manifest = chain([Layer(60, 1, 4)], whole=[], row_split=True, input_row_bytes=60)
    page = _page(manifest, 0.1, 0.05)
    assert _rows(page, "rows divided after") == [
        [manifest.cuts[0].id, "the input", "4 (6%)", "4 (6%)", "9 to 63 by 1"]
    ]


@pytest.mark.parametrize("objective", ["latency", "energy on the robot"])
def test_where_stripes_lose_the_first_lines_say_so(objective: str) -> None:
    page = _page(chain(LAYERS), 1e-6, 1.0)
    verdicts = page.split('class="verdict">')[1].split("</div>")[0]
    assert f"For {objective}, stripes add nothing to this model" in verdicts
    assert f"For {objective}, a serial split adds nothing" in verdicts


def _table(bundle: Bundle, segment_s: float, *costs: CodecCost) -> LatencyTable:
    timing = Timing(segment_s, segment_s)
    count = len(bundle.manifest.segments)
    return LatencyTable(
        bundle=bundle.digest,
        fingerprint=Fingerprint(backend="ort", fields={"device": "board"}),
        runs=3,
        segments=(timing,) * count,
        whole=Timing(segment_s * count, segment_s * count),
        codecs=costs,
    )


def _quality(bundle: Bundle, *rows: tuple[str, float, float]) -> QualityTable:
    first = bundle.manifest.cuts[0].id
    return QualityTable(
        spec=SPEC,
        bundle=bundle.digest,
        reference=bundle.digest,
        precision="float32",
        metric="cosine",
        data="d" * 64,
        samples=5,
        rows=tuple(
            CodecQuality(
                cut=first,
                codec=codec,
                metric="cosine",
                error=error,
                largest=error,
                bytes=size,
                lossless=codec in ("identity", "zstd"),
            )
            for codec, size, error in rows
        ),
    )


class TestCodecs:
    """The report prices codecs as the runtime does."""

    ROBOT_S, SERVER_S = 0.5, 0.001
    COSTS = (CodecCost("x", "zstd", 0.5, 1e-7, 1e-7), CodecCost("x", "int8", 0.25, 1e-9, 1e-9))

    @pytest.fixture
    def files(self, toy: Bundle, tmp_path: Path) -> tuple[Path, Path]:
        robot, server = tmp_path / "robot.json", tmp_path / "server.json"
        write_record(robot, _table(toy, self.ROBOT_S, *self.COSTS), "a table")
        write_record(server, _table(toy, self.SERVER_S, *self.COSTS), "a table")
        return robot, server

    def _report(self, bundle: Bundle, out: Path, *arguments: str) -> str:
        done = CliRunner().invoke(main, ["report", str(bundle.folder), "-o", str(out), *arguments])
        assert done.exit_code == 0, done.output
        return unescape(out.read_text())

    def _tables(self, files: tuple[Path, Path]) -> list[str]:
        return ["--robot-table", str(files[0]), "--server-table", str(files[1])]

    def test_measured_codecs_are_counted(
        self, toy: Bundle, tmp_path: Path, files: tuple[Path, Path]
    ) -> None:
        page = self._report(toy, tmp_path / "a.html", *self._tables(files))
        rows = _rows(page, "best for latency")
        assert rows[0][1] == "server alone, zstd"
        assert "Tensors cross by what codecs are the best there" in page
        assert "Tensors cross as they are" not in page
        assert "bytes against error" not in page  # nobody measured that

    def test_a_lossy_codec_is_counted_only_where_its_error_is_allowed(
        self, toy: Bundle, tmp_path: Path, files: tuple[Path, Path]
    ) -> None:
        size = float(toy.manifest.cuts[0].bytes)
        quality = _quality(
            toy, ("identity", size, 0.0), ("int8", size / 4, 0.01), ("fp16", size / 2, 0.02)
        )
        path = quality_file(toy, "cosine")
        write_quality(path, quality)
        try:
            exact = self._report(toy, tmp_path / "a.html", *self._tables(files))
            lossy = self._report(
                toy, tmp_path / "b.html", *self._tables(files), "--allow-lossy", "0.01"
            )
            alone = CliRunner().invoke(
                main, ["report", str(toy.folder), "--allow-lossy", "0.01"]
            )  # fmt: skip
        finally:
            path.unlink()
        assert not any("int8" in row[1] for row in _rows(exact, "best for latency"))
        assert _rows(lossy, "best for latency")[0][1] == "server alone, int8"
        assert "lossy ones among them: int8" in lossy
        # The front of bytes and error, and what of it is used.
        first = toy.manifest.cuts[0].id
        front = [(row[0], row[2], row[-1]) for row in _rows(lossy, "<th>codec</th>")]
        assert front == [(first, "int8", "yes"), (first, "identity", "yes")]
        assert [row[-1] for row in _rows(exact, "<th>codec</th>")] == ["no", "yes"]
        assert "every codec at every cut, 3 in all" in exact
        assert lossy.count("<svg") == exact.count("<svg") == 4
        assert alone.exit_code == 1
        assert "expected costs and errors of codecs, given no costs" in alone.stderr

    def test_leave_without_errors_says_what_to_do(self, toy: Bundle) -> None:
        done = CliRunner().invoke(main, ["report", str(toy.folder), "--allow-lossy", "0.01"])
        assert done.exit_code == 1
        assert "given no errors; first `split-bundle verify BUNDLE --data DATA`" in done.stderr

    def test_its_stretches_are_what_the_prepared_plans_say(
        self, toy: Bundle, tmp_path: Path, files: tuple[Path, Path]
    ) -> None:
        robot, server = (_table(toy, s, *self.COSTS) for s in (self.ROBOT_S, self.SERVER_S))
        offer = CodecOffer(
            usable=tuple(name for name, _ in CODECS.values()),
            robot=robot.codecs,
            server=server.codecs,
        )
        plans = PreparedPlans(
            toy.manifest,
            *(estimated_times(toy.manifest, table.times()) for table in (robot, server)),
            codings=Codings(toy.manifest, offer),
        )
        page = self._report(toy, tmp_path / "a.html", *self._tables(files))
        low = _best(plans, 0.5e6)
        assert low[1] == {"zstd"}
        row = _rows(page, "best for latency")[0]
        assert row[0].startswith(mbps(0.5e6))
        assert row[1].startswith("server alone" if low[0] == 0 else "cut ")


def _best(plans: PreparedPlans, bps: float) -> tuple[int, set[str]]:
    choice = plans.choices[int(np.argmin(plans.costs(bps, 0.002)))]
    return choice.cut, {codec for _, codec in choice.coding}
