from __future__ import annotations

import re
from html import unescape

import msgspec
import pytest

from calibration.report import render_report
from engines.bundle import Bundle
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
