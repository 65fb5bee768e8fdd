"""The compiler: a model in, a bundle out. The only package that imports torch.

``compile_model`` is the whole of it; ``split-compile`` is the same on the command line.
"""

from __future__ import annotations

from compiler.images import ImageSpec, parse_image
from compiler.inputs import InputSpec, parse_input
from compiler.pipeline import CompileOptions, compile_model
from compiler.report import Report

__all__ = [
    "CompileOptions",
    "ImageSpec",
    "InputSpec",
    "Report",
    "compile_model",
    "parse_image",
    "parse_input",
]
