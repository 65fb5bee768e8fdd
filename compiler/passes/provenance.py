"""Provenance: which line of the model a node came from; taken out, then stripped.

The exporter writes stack traces with local paths into the graph. None of it may be shipped: it
doubles the file and says where things lie on the build machine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["strip_provenance", "take_provenance"]

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of torch's exporter: a list of module paths, outermost first, then the fx node."""


def take_provenance(model: ir.Model) -> dict[str, str]:
    """Return the module path of every node, by the names of the values it produces.

    A node of the outermost module has the name of its fx node, one of unknown origin its own.
    """
    paths: dict[str, str] = {}
    for node in model.graph:
        path = _module_path(node)
        paths.update({output.name: path for output in node.outputs if output.name})
    return paths


def strip_provenance(model: ir.Model) -> None:
    """Remove every metadata property and doc string, inside of If and Loop as well."""
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name = "splitrt"
    model.producer_version = None
    model.domain = None
    model.model_version = None
    model.graph.name = "main"
    for graph in _graphs(model.graph):
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                _strip_value(value)
            for attribute in node.attributes.values():
                attribute.doc_string = None


def _strip_value(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
    if value.const_value is not None:
        value.const_value.metadata_props.clear()
        value.const_value.doc_string = None


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _graphs(inner)


def _module_path(node: ir.Node) -> str:
    own = node.name or node.op_type
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return own
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        return own
    modules = [scope for scope in scopes[:-1] if scope]
    return modules[-1] if modules else (scopes or [own])[-1] or own
