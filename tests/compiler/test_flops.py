from __future__ import annotations

import pytest

from compiler.flops import flops_of

CASES = [
    # operator, inputs, outputs, attributes, expected
    ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3)], [(1, 4, 6, 6)], {}, 2 * 4 * 36 * 27),
    ("Conv", [(1, 3, 8, 8), (4, 3, 3, 3), (4,)], [(1, 4, 6, 6)], {}, 2 * 4 * 36 * 27 + 144),
    ("Conv", [(1, 4, 8, 8), (4, 1, 3, 3), None], [(1, 4, 6, 6)], {"group": 4}, 2 * 144 * 9),
    ("ConvTranspose", [(1, 4, 4, 4), (4, 2, 2, 2)], [(1, 2, 8, 8)], {}, 2 * 64 * 8),
    ("QLinearConv", [(1, 3, 8, 8), (), (), (4, 3, 3, 3)], [(1, 4, 6, 6)], {}, 2 * 144 * 27),
    ("Gemm", [(2, 5), (5, 7), (7,)], [(2, 7)], {}, 2 * 2 * 5 * 7 + 14),
    ("Gemm", [(5, 2), (5, 7)], [(2, 7)], {"transA": 1}, 2 * 2 * 5 * 7),
    ("MatMul", [(3, 2, 5), (5, 7)], [(3, 2, 7)], {}, 2 * 3 * 2 * 5 * 7),
    ("MatMul", [(5,), (5,)], [()], {}, 10),
    ("Einsum", [(2, 3), (3, 4)], [(2, 4)], {"equation": b"ij, jk -> ik"}, 2 * 24),
    ("LSTM", [(5, 1, 4), (1, 32, 4), (1, 32, 8)], [(5, 1, 1, 8)], {}, 2 * 5 * (128 + 256)),
    ("MaxPool", [(1, 2, 8, 8)], [(1, 2, 4, 4)], {"kernel_shape": [2, 2]}, 32 * 4),
    ("GlobalAveragePool", [(1, 2, 8, 8)], [(1, 2, 1, 1)], {}, 128),
    ("ReduceMean", [(1, 2, 8, 8), (2,)], [(1, 2)], {}, 128),
    ("Add", [(2, 3), (3,)], [(2, 3)], {}, 6),
    ("Add", [(), ()], [()], {}, 1),
    ("Relu", [(0, 3)], [(0, 3)], {}, 0),
    ("Softmax", [(2, 3)], [(2, 3)], {}, 30),
    ("Reshape", [(2, 3), (1,)], [(6,)], {}, 0),
    ("Relu", [None], [None], {}, 0),
    ("SomebodysOwn", [(2, 3)], [(2, 3)], {}, 6),
]


@pytest.mark.parametrize(("op", "inputs", "outputs", "attributes", "expected"), CASES)
def test_flops(op, inputs, outputs, attributes, expected):
    assert flops_of(op, inputs, outputs, attributes) == expected
