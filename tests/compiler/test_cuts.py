"""Frontiers against brute force, on random graphs."""

from __future__ import annotations

import hashlib
import itertools

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx import helper as h

from compiler import cuts as cuts_module
from compiler.cuts import cut_id, find_cuts, frontiers
from compiler.graph import ValueGraph, build_graph, infer_values
from compiler.segments import Extractor

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


def brute_force(graph: ValueGraph, place: int) -> set[str]:
    """What must cross: taken by a later node, and not made by a later node."""
    order = [node for node in graph.nodes if not node.free]
    before, after = order[:place], order[place:]
    exists = set(graph.inputs) | {name for node in before for name in node.outputs}
    return {name for node in after for name in node.inputs if name in exists}


@given(models())
@settings(max_examples=300, deadline=None)
def test_frontiers_are_what_later_nodes_take(model):
    graph = graph_of(model)
    found = frontiers(graph)
    assert found[0] == set(graph.inputs)
    assert found[-1] == set(graph.outputs)
    for place in range(1, len(found) - 1):
        assert found[place] == brute_force(graph, place)


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
    found = find_cuts(graph, max_frontier=most)
    sets = frontiers(graph)
    assert found.cuts[0].frontier == tuple(sorted(graph.inputs))
    assert found.cuts[-1].frontier == tuple(sorted(graph.outputs))
    assert [c.position for c in found.cuts] == sorted({c.position for c in found.cuts})
    assert len({c.id for c in found.cuts}) == len(found.cuts)
    kept = {frozenset(c.frontier) for c in found.cuts}
    small = {s for s in sets if 0 < len(s) <= most}
    assert kept == small | {sets[0], sets[-1]}
    blamed = {frozenset(r.nodes) for r in found.refused}
    assert all(s in kept or frozenset(s) in blamed for s in sets)


@given(models())
@settings(max_examples=100, deadline=None)
def test_every_piece_has_all_it_takes(model):
    graph = graph_of(model)
    found = find_cuts(graph, max_frontier=9)
    extractor = Extractor(model, graph, found.order)
    for first, second in itertools.pairwise(found.cuts):
        nodes = found.order[first.position : second.position]
        outputs = [name for node in nodes for name in node.outputs]
        piece = extractor.extract(first.position, second.position, outputs)
        onnx.checker.check_model(piece, full_check=True)
        assert {v.name for v in piece.graph.input} <= set(first.frontier)


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
    monkeypatch.setattr(cuts_module, "cut_id", lambda names: "0" * 7 + str(len("".join(names))))
    found = find_cuts(graph, max_frontier=4)
    ids = [cut.id for cut in found.cuts]
    assert len(set(ids)) == len(ids) == 2
    assert [r.reason for r in found.refused] == ["its id 00000002 is another cut's"] * 3


def test_the_order_of_a_long_chain_is_found_at_once():
    graph = graph_of(chain_model(3000))
    found = find_cuts(graph, max_frontier=1)
    assert len(found.cuts) == 3001
    assert not found.refused
