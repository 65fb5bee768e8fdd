"""Raw pixels: the folded graph against the same arithmetic by other means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.parity import verify_cuts
from compiler import CompileOptions, ImageSpec, compile_model, parse_image
from engines.backend import open_backend
from engines.errors import TraceError
from engines.manifest import ImageLayout
from engines.program import Program
from tests.models import onnx_models, torch_models

IMAGENET = "input=imagenet"


def compile_images(tmp_path: Path, model: object, *specs: str):
    options = CompileOptions(images=tuple(map(parse_image, specs)), name="m")
    return compile_model(model, tmp_path / "m.bundle", options=options)[0]


@pytest.mark.parametrize(
    ("spec", "shape", "layout"),
    [
        (IMAGENET, (1, 16, 16, 3), ImageLayout(layout="NHWC")),
        ("input=uint8[chw],color=bgr", (1, 3, 16, 16), ImageLayout(layout="NCHW", color="bgr")),
        ("input=uint8[hwc],mean=1:2:3,std=4", (1, 16, 16, 3), ImageLayout(layout="NHWC")),
    ],
)
def test_pixels_become_what_the_model_takes(tmp_path, spec, shape, layout):
    module, examples = torch_models.chain()
    bundle = compile_images(tmp_path, (module, examples), spec)
    manifest = bundle.manifest
    assert [(s.name, s.dtype, s.shape) for s in manifest.inputs] == [("input", "uint8", shape)]
    assert manifest.images == {"input": layout}
    assert manifest.cuts[0].bytes == 768
    image = parse_image(spec)
    inputs, outputs = bundle.parity_vectors()
    pixels = torch.from_numpy(inputs["input"]).float()
    planes = pixels.permute(0, 3, 1, 2) if image.layout == "hwc" else pixels
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (image.mean, image.std))
    with torch.no_grad():
        expected = module((planes - mean) / std).numpy()
    np.testing.assert_allclose(outputs["output"], expected, rtol=1e-4, atol=1e-5)
    with Program(bundle, open_backend("ort"), fuse=False) as program:
        assert all(r.ok for r in verify_cuts(program))


def test_pixels_for_one_input_of_two(tmp_path):
    bundle = compile_images(tmp_path, torch_models.two_ends(), "image=imagenet")
    assert [s.dtype for s in bundle.manifest.inputs] == ["uint8", "float32"]


def test_pixels_for_an_onnx_file(tmp_path):
    weights = np.ones((2, 3, 1, 1), np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["input", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("input", 1, ("n", 3, 4, 4))],
        [onnx.helper.make_tensor_value_info("y", 1, ("n", 2, 4, 4))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx"
    )
    bundle = compile_images(tmp_path, str(tmp_path / "m.onnx"), IMAGENET)
    assert bundle.manifest.inputs[0].shape == (1, 4, 4, 3)
    assert bundle.manifest.opset == 17


@pytest.mark.parametrize("raw", [True, False])
def test_an_example_of_pixels_becomes_the_parity_input(tmp_path, raw):
    pixels = np.arange(768, dtype=np.uint8).reshape(1, 16, 16, 3)
    np.savez(tmp_path / "e.npz", input=pixels if raw else np.zeros((1, 3, 16, 16), np.float32))
    options = CompileOptions(images=(parse_image(IMAGENET),), example=tmp_path / "e.npz")
    module, _ = torch_models.chain()
    bundle, _ = compile_model(module, tmp_path / "m.bundle", options=options)
    assert np.array_equal(bundle.parity_vectors()[0]["input"], pixels) == raw


def test_an_example_that_is_no_picture(tmp_path):
    np.savez(tmp_path / "e.npz", input=np.zeros((16, 16, 3), np.uint8))
    options = CompileOptions(images=(parse_image(IMAGENET),), example=tmp_path / "e.npz")
    with pytest.raises(TraceError, match=r"\[1, H, W, 3\], given uint8 \[16, 16, 3\]"):
        compile_model(torch_models.chain()[0], tmp_path / "m.bundle", options=options)


@pytest.mark.parametrize("spec", ["state=imagenet", "nothing=imagenet"])
def test_only_images_take_pixels(tmp_path, spec):
    with pytest.raises(TraceError, match="--preprocess"):
        compile_images(tmp_path, torch_models.two_ends(), spec)


def test_an_input_takes_pixels_once(tmp_path):
    with pytest.raises(TraceError, match="at most once"):
        compile_images(tmp_path, torch_models.chain(), IMAGENET, IMAGENET)


def test_integers_take_no_pixels(tmp_path):
    model = onnx_models.constants()
    model.graph.input[0].name = "x"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(TraceError, match=r"float32 \[1, 16\]"):
        compile_images(tmp_path, str(tmp_path / "m.onnx"), "x=imagenet")


def test_parse_image():
    spec = parse_image("x=uint8[chw],color=bgr,mean=1:2:3,std=4:5:6")
    assert spec == ImageSpec("x", "chw", "bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert parse_image("x=imagenet").mean == (123.675, 116.28, 103.53)
    assert parse_image("x=uint8[hwc]") == ImageSpec("x")


@pytest.mark.parametrize(
    "text",
    [
        *("x", "=imagenet", "x=", "x=float32[hwc]", "x=uint8[hcw]", "x=uint8[hwc],color=grey"),
        *("x=uint8[hwc],mean=1:2", "x=uint8[hwc],std=0", "x=uint8[hwc],mean=a", "x=imagenet,q=1"),
    ],
)
def test_parse_image_refuses(text):
    with pytest.raises(TraceError, match="--preprocess"):
        parse_image(text)
