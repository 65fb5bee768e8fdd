"""A bundle made by hand, without the compiler: small, with every shape of cut.

    x -> Conv -> Relu -> b -> Greater -> m (bool)
                         b, m -> Where -> GlobalAveragePool -> pooled (an output, used again)
                                                    pooled -> Flatten -> Gemm -> logits

So there are cuts of one tensor, of two, of a boolean, and one behind which an output is already
known on the robot.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
from onnx import TensorProto, helper, numpy_helper

from calibration.parity import TOLERANCE
from engines.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, file_entries, new_bundle
from engines.manifest import SPEC, Cut, Manifest, Parity, Segment
from engines.tensors import TensorSpec

SPECS = {
    spec.name: spec
    for spec in [
        TensorSpec("x", "float32", (1, 3, 16, 16)),
        TensorSpec("a", "float32", (1, 8, 16, 16)),
        TensorSpec("b", "float32", (1, 8, 16, 16)),
        TensorSpec("m", "bool", (1, 8, 16, 16)),
        TensorSpec("z", "float32", (1, 8, 16, 16)),
        TensorSpec("pooled", "float32", (1, 8, 1, 1)),
        TensorSpec("flat", "float32", (1, 8)),
        TensorSpec("logits", "float32", (1, 5)),
    ]
}
FRONTIERS = [["x"], ["a"], ["b"], ["b", "m"], ["z"], ["pooled"], ["flat"], ["logits", "pooled"]]
OPERATORS = ["Conv", "Relu", "Greater", "Where", "GlobalAveragePool", "Flatten", "Gemm"]
OUTPUTS = ["pooled", "logits"]
_TYPES = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL}


def toy_model(seed: int = 0) -> onnx.ModelProto:
    draw = np.random.default_rng(seed)
    weights = {
        "w1": draw.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "c0": np.asarray(0.5, np.float32),
        "c1": np.asarray(-1.0, np.float32),
        "w2": draw.standard_normal((8, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Greater", ["b", "c0"], ["m"]),
        helper.make_node("Where", ["m", "b", "c1"], ["z"]),
        helper.make_node("GlobalAveragePool", ["z"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2"], ["logits"]),
    ]
    infos = [
        helper.make_tensor_value_info(s.name, _TYPES[s.dtype], s.shape) for s in SPECS.values()
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [info for info in infos if info.name == "x"],
        [info for name in OUTPUTS for info in infos if info.name == name],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=infos,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def toy_outputs(inputs: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Compute the toy's outputs with NumPy alone."""
    weights = {t.name: numpy_helper.to_array(t) for t in toy_model(seed).graph.initializer}
    padded = np.pad(inputs["x"][0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    a = np.einsum("chwij,ocij->ohw", windows, weights["w1"].astype(np.float64))
    b = np.maximum(a, 0)
    z = np.where(b > weights["c0"], b, weights["c1"])
    pooled = z.mean(axis=(1, 2))
    return {
        "pooled": pooled.reshape(1, 8, 1, 1).astype(np.float32),
        "logits": (pooled @ weights["w2"]).reshape(1, 5).astype(np.float32),
    }


def write_toy_bundle(target: Path, seed: int = 0) -> Bundle:
    model = toy_model(seed)
    with new_bundle(target) as (folder, finish):
        (folder / "graph").mkdir()
        onnx.save(
            model,
            str(folder / "graph" / "model.onnx"),
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=64,
        )
        whole = onnx.load(str(folder / "graph" / "model.onnx"), load_external_data=False)
        extractor = onnx.utils.Extractor(whole)
        last = len(FRONTIERS) - 1

        def emit(name: str, inputs: list[str], outputs: list[str]) -> str:
            onnx.save(extractor.extract_model(inputs, outputs), str(folder / "graph" / name))
            return f"graph/{name}"

        segments, cuts = [], []
        for i in range(last):
            inputs = list(whole.graph.node[i].input[:1])
            if OPERATORS[i] == "Where":
                inputs = ["b", "m"]
            outputs = list(whole.graph.node[i].output)
            file = emit(f"segment_{i:04d}.onnx", inputs, outputs)
            segments.append(
                Segment(
                    index=i,
                    file=file,
                    inputs=tuple(inputs),
                    outputs=tuple(outputs),
                    operators=(OPERATORS[i],),
                    flops=100,
                )
            )
        for i, frontier in enumerate(FRONTIERS):
            cut_id = hashlib.sha256("\n".join(sorted(frontier)).encode()).hexdigest()[:8]
            results = [] if i == last else ["logits"] if i >= 5 else OUTPUTS
            head = tail = None
            if 0 < i < last:
                known = [name for name in OUTPUTS if name not in results and name not in frontier]
                head = emit(f"head_{cut_id}.onnx", ["x"], frontier + known)
                tail = emit(f"tail_{cut_id}.onnx", frontier, results)
            cuts.append(
                Cut(
                    id=cut_id,
                    index=i,
                    tensors=tuple(sorted(frontier)),
                    bytes=sum(SPECS[t].nbytes for t in frontier),
                    results=tuple(results),
                    result_bytes=sum(SPECS[t].nbytes for t in results),
                    flops_robot=100 * i,
                    flops_server=100 * (last - i),
                    after=f"layer{i}" if i else "",
                    why=("every boundary",),
                    head=head if i < last else "graph/model.onnx",
                    tail=tail if i else "graph/model.onnx",
                    robot_segments=tuple(range(i)),
                )
            )
        cuts[-1] = _replace(cuts[-1], tail=None)
        cuts[0] = _replace(cuts[0], head=None)
        draw = np.random.default_rng(7)
        inputs_ = {"x": draw.standard_normal((1, 3, 16, 16)).astype(np.float32)}
        vectors = {f"input:{k}": v for k, v in inputs_.items()}
        vectors |= {f"output:{k}": v for k, v in toy_outputs(inputs_, seed).items()}
        np.savez(str(folder / "parity.npz"), **vectors)
        manifest = Manifest(
            spec=SPEC,
            name="toy",
            model_digest="0" * 64,
            producer={"splitrt": "test"},
            opset=18,
            precision="fp32",
            graph="graph/model.onnx",
            weights="graph/weights.bin",
            inputs=(SPECS["x"],),
            outputs=tuple(SPECS[name] for name in OUTPUTS),
            images={},
            tensors=SPECS,
            cuts=tuple(cuts),
            segments=tuple(segments),
            refused=(),
            estimates={},
            targets={},
            parity=Parity(
                file="parity.npz",
                seed=7,
                tolerance=TOLERANCE,
                max_error=0.0,
                compared_with="onnx",
            ),
            files=file_entries(folder),
        )
        return finish(manifest)


def _replace(cut: Cut, **changes: object) -> Cut:
    fields = {name: getattr(cut, name) for name in cut.__struct_fields__}
    return Cut(**{**fields, **changes})


def reseal(folder: Path) -> Bundle:
    """Make the digests of a changed bundle hold again, as a compiler with a bug would."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name in (MANIFEST, MANIFEST_DIGEST):
        (folder / name).unlink()
    manifest["files"] = {
        name: {"bytes": entry.bytes, "sha256": entry.sha256}
        for name, entry in file_entries(folder).items()
    }
    text = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(text)
    line = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n"
    (folder / MANIFEST_DIGEST).write_bytes(line.encode())
    return Bundle.open(folder)
