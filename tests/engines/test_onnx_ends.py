from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engines.bundle import Bundle
from engines.errors import BuildError
from engines.onnx_ends import End, read_ends

TYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}


def test_ends_are_those_that_the_onnx_package_reads(toy: Bundle, dense: Bundle) -> None:
    files = [bundle.path(name) for bundle in (toy, dense) for name in bundle.manifest.files]
    models = [path for path in files if path.suffix == ".onnx"]
    assert len(models) > 30
    for path in models:
        graph = onnx.load(str(path), load_external_data=False).graph
        initialisers = {tensor.name for tensor in graph.initializer}
        ends = read_ends(path)
        assert [e.name for e in ends.inputs] == [
            v.name for v in graph.input if v.name not in initialisers
        ]
        assert [e.name for e in ends.outputs] == [v.name for v in graph.output]
        for end, value in zip(ends.outputs, graph.output, strict=True):
            dims = value.type.tensor_type.shape.dim
            expected = [d.dim_value if d.HasField("dim_value") else None for d in dims]
            assert list(end.shape) == expected


def test_types_scalars_names_and_old_style_initialisers(tmp_path: Path) -> None:
    given = [helper.make_tensor_value_info(n, t, [1, "rows", 300]) for n, t in TYPES.items()]
    out = helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    given.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    node = helper.make_node("ReduceSum", ["float32"], ["scalar"], keepdims=0)
    model = helper.make_model(helper.make_graph([node], "ends", given, [out], [weight]))
    onnx.save(model, str(tmp_path / "ends.onnx"))
    ends = read_ends(tmp_path / "ends.onnx")
    assert ends.inputs == tuple(End(name, name, (1, None, 300)) for name in TYPES)
    assert ends.outputs == (End("scalar", "float32", ()),)


@pytest.mark.parametrize("data", [b"", b"\xff", b"not an onnx file", b"\x3a\x05ab", b"\x3a\x00"])
def test_what_is_no_onnx_file_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.onnx"
    path.write_bytes(data)
    if data == b"\x3a\x00":  # an empty graph is a graph
        assert read_ends(path).inputs == ()
        return
    with pytest.raises(BuildError, match=r"some\.onnx: not an ONNX file"):
        read_ends(path)


def test_every_truncation_is_refused_or_read(toy: Bundle, tmp_path: Path) -> None:
    data = toy.path("graph/segment_0000.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            read_ends(path)
        except BuildError:
            continue
