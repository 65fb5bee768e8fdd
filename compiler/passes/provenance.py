"""Provenance: which line of the model a node came from; taken out, then stripped.

The exporter writes stack traces with local paths into the graph. None of it may be shipped: it
doubles the file and says where things lie on the build machine.
"""

from __future__ import annotations

import ast

import onnx_ir as ir
from onnx import GraphProto, ModelProto

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


def strip_provenance(model: ModelProto) -> None:
    """Remove every metadata property and doc string, inside of If and Loop as well.

    It works on the saved graph, whose tensors no longer belong to an exporter.
    """
    model.ClearField("metadata_props")
    for name in ("doc_string", "producer_version", "domain", "model_version"):
        model.ClearField(name)
    model.producer_name = "splitrt"
    model.graph.name = "main"
    _strip_graph(model.graph)


def _strip_graph(graph: GraphProto) -> None:
    for part in (
        *(graph, *graph.node, *graph.input, *graph.output, *graph.value_info),
        *graph.initializer,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("t"):
                attribute.t.ClearField("doc_string")
            bodies = [attribute.g] if attribute.HasField("g") else []
            for body in (*bodies, *attribute.graphs):
                _strip_graph(body)


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
