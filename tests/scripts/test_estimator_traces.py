"""The program that replays traces: what it takes, and both of its ends over loopback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import estimator_traces
import pytest
from click.testing import CliRunner
from estimator_sim import Trace
from shaped_link import ShapedLink

from runtime.evidence import Reading, decode_evidence


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(estimator_traces.main, list(words))
    return done.exit_code, done.output


def test_on_paper_it_needs_no_link(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    code, output = run(
        "--offline", "--steps", "80,16", "--seconds", "8", "--traffic", "frames,idle",
        "--json", str(path),
    )  # fmt: skip
    assert code == 0, output
    assert output.count(" paper ") == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["trace"], row["traffic"], row["where"]) for row in rows] == [
        ("steps 80,16", "frames", "paper"),
        ("steps 80,16", "idle", "paper"),
    ]
    assert rows[0]["off_p50"] < 0.1


def test_traces_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    lines = "".join(f"{i / 10:.1f},{40 + i % 20}\n" for i in range(100))
    (folder / "yard_10hz.csv").write_text(f"t_s,mbps\n{lines}")
    code, output = run(
        "--offline", "--begin", "1", "--seconds", "6", "--traffic", "frames", str(tmp_path)
    )
    assert code == 0, output
    assert output.startswith("yard_10hz")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITRT_TESTBED", raising=False)
    for words, message in [
        ((), "SPLITRT_TESTBED"),
        ((str(tmp_path),), "no traces/*_10hz.csv"),
        (("--traffic", "frames,noise"), "'noise'"),
    ]:
        code, output = run("--offline", *words)
        assert code == 2
        assert message in output


def test_both_ends_over_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not shaped, so the score means nothing; but frames go and evidence comes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    record = tmp_path / "evidence.jsonl"
    here = [sys.executable, estimator_traces.__file__, "--traffic", "striped"]
    trace = Trace(0.1, (80.0,) * 30)
    found, states = estimator_traces._replay_on(
        ShapedLink("127.0.0.1", [], ""), trace, here, record
    )
    assert found.estimates > 5
    assert states["up"] > 5
    assert states["refused"] == 0
    evidence = [decode_evidence(line) for line in record.read_bytes().splitlines()]
    assert sum(isinstance(one, Reading) for one in evidence) > 20
