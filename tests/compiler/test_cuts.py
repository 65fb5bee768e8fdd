"""Frontiers against brute force, on random graphs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx import helper as h

from compiler import cuts as cuts_module
from compiler.cuts import Boundaries, Candidate, cut_id, find_cuts, frontier_of, frontiers
from compiler.graph import ValueGraph, build_graph, infer_values
from compiler.segments import Extractor
from engines.errors import CutError

SHAPE = (2,)


def value(name: str) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """A random graph of sums: some inputs unused, some nodes without an input of the model."""
    inputs = [f"in{n}" for n in range(draw(st.integers(1, 3)))]
    names = [*inputs, "constant"]
    nodes = []
    for place in range(draw(st.integers(1, 8))):
        taken = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        nodes.append(h.make_node("Sum", taken, [f"v{place}"], name=f"n{place}"))
        names.append(f"v{place}")
    used = {name for node in nodes for name in node.input}
    outputs = [f"v{place}" for place in range(len(nodes)) if f"v{place}" not in used]
    extra = draw(st.sets(st.sampled_from([f"v{place}" for place in range(len(nodes))])))
    outputs += sorted(extra - set(outputs))
    tensor = h.make_tensor("constant", TensorProto.FLOAT, SHAPE, [1.0, 2.0])
    graph = h.make_graph(
        nodes, "random", [value(n) for n in inputs], [value(n) for n in outputs], [tensor]
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)


def graph_of(model: onnx.ModelProto) -> ValueGraph:
    return build_graph(model, {}, infer_values(model))


def brute_force(graph: ValueGraph, robots: Iterable[int]) -> set[str]:
    """What must cross: taken by a node of the server, and not made by one."""
    order = [node for node in graph.nodes if not node.free]
    robots = set(robots)
    before = [node for place, node in enumerate(order) if place in robots]
    after = [node for place, node in enumerate(order) if place not in robots]
    exists = set(graph.inputs) | {name for node in before for name in node.outputs}
    return {name for node in after for name in node.inputs if name in exists}


def boundaries(graph: ValueGraph) -> list[Candidate]:
    count = sum(not node.free for node in graph.nodes)
    return [Candidate(frozenset(range(place)), ("boundary",)) for place in range(1, count)]


@st.composite
def graphs_with_sets(draw: st.DrawFn) -> tuple[onnx.ModelProto, ValueGraph, list[Candidate]]:
    """A random graph, and some sets of its nodes that are closed under dependence."""
    model = draw(models())
    graph = graph_of(model)
    order = [node for node in graph.nodes if not node.free]
    where = {name: place for place, node in enumerate(order) for name in node.outputs}
    found = []
    for wanted in draw(st.lists(st.sets(st.integers(0, len(order) - 1)), max_size=6)):
        closed = set(wanted)
        for place in range(len(order) - 1, -1, -1):
            if place in closed:
                closed.update(where[n] for n in order[place].inputs if n in where)
        found.append(Candidate(frozenset(closed), ("serial",)))
    return model, graph, found


@given(models())
@settings(max_examples=300, deadline=None)
def test_frontiers_are_what_later_nodes_take(model):
    graph = graph_of(model)
    found = frontiers(graph)
    assert found[0] == set(graph.inputs)
    assert found[-1] == set(graph.outputs)
    for place in range(1, len(found) - 1):
        assert found[place] == brute_force(graph, range(place))
        order = [node for node in graph.nodes if not node.free]
        assert frontier_of(graph, order, frozenset(range(place))) == found[place]


@given(models())
@settings(max_examples=200, deadline=None)
def test_free_nodes_are_those_without_an_input_of_the_model(model):
    graph = graph_of(model)
    depends = set(graph.inputs)
    for node in graph.nodes:
        if depends.intersection(node.inputs) or set(node.outputs).intersection(graph.outputs):
            depends.update(node.outputs)
            assert not node.free
        else:
            assert node.free


@given(models(), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_cuts_and_refusals_cover_every_boundary(model, most):
    graph = graph_of(model)
    found = find_cuts(graph, boundaries(graph), max_frontier=most)
    sets = frontiers(graph)
    assert found.cuts[0].frontier == tuple(sorted(graph.inputs))
    assert found.cuts[-1].frontier == tuple(sorted(graph.outputs))
    sizes = [len(c.nodes) for c in found.cuts]
    assert sizes == sorted(set(sizes))
    assert all(c.nodes == set(range(len(c.nodes))) for c in found.cuts)
    assert [len(s) for s in found.segments] == list(np.diff(sizes))
    assert len({c.id for c in found.cuts}) == len(found.cuts)
    kept = {frozenset(c.frontier) for c in found.cuts}
    small = {s for s in sets if 0 < len(s) <= most}
    assert kept == small | {sets[0], sets[-1]}
    blamed = {frozenset(r.nodes) for r in found.refused}
    assert all(s in kept or frozenset(s) in blamed for s in sets)


@given(graphs_with_sets())
@settings(max_examples=200, deadline=None)
def test_segments_are_the_atoms_of_all_cuts_in_an_order_that_works(drawn):
    _, graph, candidates = drawn
    found = find_cuts(graph, candidates, max_frontier=9)
    placed = [place for segment in found.segments for place in segment]
    assert sorted(placed) == list(range(len(found.order)))
    of = {place: index for index, segment in enumerate(found.segments) for place in segment}
    where = {name: place for place, node in enumerate(found.order) for name in node.outputs}
    for place, node in enumerate(found.order):
        assert all(of[where[n]] <= of[place] for n in node.inputs if n in where)
        for other in range(place):
            together = all((place in c.nodes) == (other in c.nodes) for c in found.cuts)
            assert together == (of[place] == of[other])


@given(graphs_with_sets())
@settings(max_examples=200, deadline=None)
def test_sets_become_cuts_with_what_must_cross_and_come_back(drawn):
    _, graph, candidates = drawn
    found = find_cuts(graph, candidates, max_frontier=1)  # the limit is for boundaries only
    ids = [cut.id for cut in found.cuts]
    assert len(ids) == len(set(ids))
    for cut in found.cuts[1:-1]:
        assert set(cut.frontier) == brute_force(graph, cut.nodes)
    for cut in found.cuts:
        made = {name for place in cut.nodes for name in found.order[place].outputs}
        assert cut.results == tuple(n for n in graph.outputs if n not in made)
    kept = {cut.nodes for cut in found.cuts}
    for candidate in candidates:
        assert candidate.nodes in kept or not brute_force(graph, candidate.nodes)


@given(graphs_with_sets())
@settings(max_examples=100, deadline=None)
def test_every_piece_has_all_it_takes(drawn):
    model, graph, candidates = drawn
    found = find_cuts(graph, candidates + boundaries(graph), max_frontier=9)
    extractor = Extractor(model, graph, found.order)
    given_by_now = set(graph.inputs)
    for places in found.segments:
        outputs = [name for place in places for name in found.order[place].outputs]
        piece = extractor.extract(places, outputs)
        onnx.checker.check_model(piece, full_check=True)
        assert {v.name for v in piece.graph.input} <= given_by_now
        given_by_now.update(outputs)


def chain_model(length: int) -> onnx.ModelProto:
    names = ["x", *(f"v{n}" for n in range(length))]
    nodes = [h.make_node("Relu", [a], [b], name=f"n_{b}") for a, b in itertools.pairwise(names)]
    graph = h.make_graph(nodes, "chain", [value("x")], [value(names[-1])])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)])


def test_cut_id_is_what_the_manifest_documents():
    expected = hashlib.sha256(b"a\nb").hexdigest()[:8]
    assert cut_id(["b", "a"]) == expected


def test_a_colliding_id_is_refused(monkeypatch):
    graph = graph_of(chain_model(4))
    monkeypatch.setattr(
        cuts_module, "cut_id", lambda names, *_: "0" * 7 + str(len("".join(names)))
    )
    found = find_cuts(graph, boundaries(graph), max_frontier=4)
    ids = [cut.id for cut in found.cuts]
    assert len(set(ids)) == len(ids) == 2
    assert [r.reason for r in found.refused] == ["its id 00000002 is another cut's"] * 3


def test_the_order_of_a_long_chain_is_found_at_once():
    graph = graph_of(chain_model(3000))
    found = find_cuts(graph, boundaries(graph), max_frontier=1)
    assert len(found.cuts) == 3001
    assert not found.refused


def early_outputs() -> ValueGraph:
    """``first`` and ``second`` are outputs that nothing takes, of the input and of ``mid``."""
    nodes = [h.make_node("Neg", ["x"], ["first"]), h.make_node("Abs", ["x"], ["mid"])]
    nodes += [h.make_node("Neg", ["mid"], ["second"]), h.make_node("Relu", ["mid"], ["late"])]
    outputs = [value(name) for name in ("first", "second", "late")]
    graph = h.make_graph(nodes, "early", [value("x")], outputs)
    return graph_of(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)]))


def test_a_best_set_with_the_frontier_of_an_end_is_kept_under_an_id_of_its_own():
    found = find_cuts(early_outputs(), [Candidate(frozenset([0]), ("serial",))], max_frontier=4)
    offload, early, _ = found.cuts
    assert offload.frontier == early.frontier == ("x",)
    assert (offload.results, early.results) == (("first", "second", "late"), ("second", "late"))
    assert (offload.id, early.id) == (cut_id(["x"]), cut_id(["x"], ["second", "late"]))
    assert early.id == hashlib.sha256(b"x\n\nlate\nsecond").hexdigest()[:8]


def test_of_equal_frontiers_the_most_useful_is_kept_and_boundaries_give_way():
    one, other = frozenset([0, 1]), frozenset([0, 1, 2])
    candidates = [Candidate(one, ("serial",)), Candidate(other, ("spread", "boundary"))]
    found = find_cuts(early_outputs(), candidates, max_frontier=4)
    assert [cut.nodes for cut in found.cuts[1:-1]] == [one]
    assert found.refused == ()
    found = find_cuts(early_outputs(), candidates[::-1], max_frontier=4)
    assert [cut.nodes for cut in found.cuts[1:-1]] == [one, other]
    assert [cut.id for cut in found.cuts[1:-1]] == [
        cut_id(["mid"], ["second", "late"]),
        cut_id(["mid"]),
    ]


def ends(count: int, offload: str, local: str) -> list[Candidate]:
    whole = frozenset(range(count))
    return [Candidate(frozenset(), ("offload",), offload), Candidate(whole, ("local",), local)]


def test_a_refused_end_stays_and_another_set_is_refused_with_whom_to_blame():
    graph = graph_of(chain_model(3))
    wanted = [*ends(3, "not allowed", ""), Candidate(frozenset([0]), ("serial",), "no", ("v0",))]
    found = find_cuts(graph, wanted, max_frontier=4)
    assert [cut.refused for cut in found.cuts] == ["not allowed", ""]
    assert [(r.after, r.reason, r.nodes) for r in found.refused] == [("n_v0", "no", ("v0",))]
    assert found.segments == ((0, 1, 2),)


def test_where_no_cut_is_allowed_the_reasons_are_told():
    graph = graph_of(chain_model(3))
    with pytest.raises(CutError, match=r"offload: it is pinned; local: it is large.*loosen"):
        find_cuts(graph, ends(3, "it is pinned", "it is large"), max_frontier=4)


def usable(found: Boundaries) -> int:
    return sum(not cut.refused for cut in found.cuts)


def test_most_counts_what_may_be_used_and_not_what_fell_away():
    graph = early_outputs()
    sets = [Candidate(frozenset(s), ("spread",)) for s in ([0], [0, 1], [0, 1, 2], [1])]
    # The first has the frontier of an end, and the third that of the second.
    found = find_cuts(graph, sets, max_frontier=4, most=4)
    assert [len(cut.nodes) for cut in found.cuts] == [0, 1, 2, 4]
    assert usable(find_cuts(graph, sets, max_frontier=4, most=1)) == 2
    refused = [*ends(4, "no", ""), *sets]
    found = find_cuts(graph, refused, max_frontier=4, most=2)
    assert (usable(found), len(found.cuts)) == (2, 3)
