"""Bind inputs to ``forward()``: which tensor goes to which parameter.

Inputs are given by name or in order; ``batch.mask`` and ``pair.0`` reach into a dict or a tuple.
The tensors are then flattened in the order that ``torch.export`` flattens them in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from calibration.parity import seeded_inputs
from compiler.inputs import InputSpec
from engines.errors import TraceError
from engines.tensors import Array, TensorSpec

__all__ = ["Bound", "bind", "bind_examples", "example_arrays", "signature_of"]


@dataclass(frozen=True, slots=True)
class Bound:
    """Arguments of ``forward()``, and the names that the user gave to the tensors in them.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        names: Given name of each tensor among the leaves of (args, kwargs), in their order;
            empty where the user named none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()

    @property
    def leaves(self) -> list[Any]:
        """Leaves of the arguments, in ``torch.export``'s order."""
        return pytree.tree_leaves((self.args, self.kwargs))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    def replace(self, tensors: Sequence[torch.Tensor]) -> Bound:
        """Return the same arguments with other tensors."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        rest = iter(tensors)
        filled = [next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return Bound(args, kwargs, self.names)

    def describe(self) -> str:
        """Say dtype and shape of every tensor, for messages."""
        named = self.names or [f"#{place}" for place in range(len(self.tensors))]
        return ", ".join(
            f"{name}={str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
            for name, t in zip(named, self.tensors)
        )


def signature_of(forward: Any) -> inspect.Signature:
    """Return the signature of a module's or a TorchScript module's ``forward``."""
    schema = getattr(forward, "schema", None)
    if schema is None:
        return inspect.signature(forward)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    missing = inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(
                a.name, kind, default=a.default_value if a.has_default_value() else missing
            )
            for a in schema.arguments[1:]
        ]
    )


def bind_examples(examples: Any) -> Bound:
    """Take example inputs of a factory: a tensor, a tuple of arguments, or a dict of them."""
    if isinstance(examples, dict):
        return Bound((), examples)
    if isinstance(examples, list | tuple):
        return Bound(tuple(examples), {})
    return Bound((examples,), {})


def example_arrays(
    specs: Sequence[InputSpec], example: Mapping[str, Array] | None, seed: int
) -> dict[str | int, Array]:
    """Return the given arrays, or seeded ones of the given shapes, by name or place.

    Raises:
        TraceError: ``specs`` and ``example`` contradict each other.
    """
    arrays: dict[str | int, Array] = {}
    arrays.update((example or {}).items())
    for place, spec in enumerate(specs):
        key = place if spec.name is None else spec.name
        if example is None:
            drawn = seeded_inputs([TensorSpec(str(key), spec.dtype, spec.shape)], seed)
            arrays[key] = drawn[str(key)]
            continue
        given = arrays.get(key)
        if given is None or given.dtype.name != spec.dtype or given.shape != spec.shape:
            found = "nothing" if given is None else f"{given.dtype.name}{list(given.shape)}"
            raise TraceError(
                f"--input {spec}: --example has {found} for it; leave out one of the two"
            )
    return arrays


def bind(signature: inspect.Signature, arrays: Mapping[str | int, Array], where: str) -> Bound:
    """Bind arrays to the parameters of ``forward``.

    Args:
        signature: Of ``forward``, without ``self``.
        arrays: By name (``param``, ``param.key``, ``param.0``) or by place.
        where: The model, for the message.

    Raises:
        TraceError: A parameter has no input, or an input no parameter.
    """
    parameters = list(signature.parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    rest = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    trees: dict[str, Any] = {}
    extra: list[tuple[str, torch.Tensor]] = []
    unknown: list[str] = []
    names: dict[int, str] = {}
    for key, array in arrays.items():
        tensor = torch.from_numpy(np.array(array, copy=True))
        if isinstance(key, int) and key >= len(named) and rest:
            extra.append((f"args_{key}", tensor))
            continue
        if isinstance(key, int) and key >= len(named):
            unknown.append(f"number {key + 1}")
            continue
        name = named[key].name if isinstance(key, int) else key
        root, *steps = name.split(".")
        if root not in signature.parameters:
            unknown.append(repr(name))
        else:
            names[id(tensor)] = name
            _put(trees, [root, *steps], tensor)
    missing = [p.name for p in named if p.default is p.empty and p.name not in trees]
    if missing or unknown:
        raise TraceError(_binding_error(where, signature, missing, unknown))
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in named:
        if parameter.name not in trees:
            continue
        value = _tuples(trees[parameter.name])
        in_order = len(args) == named.index(parameter) and not kwargs
        if parameter.kind != parameter.KEYWORD_ONLY and in_order:
            args.append(value)
        else:
            kwargs[parameter.name] = value
    for name, tensor in extra:
        names[id(tensor)] = name
        args.append(tensor)
    bound = Bound(tuple(args), kwargs)
    return Bound(bound.args, bound.kwargs, tuple(names[id(t)] for t in bound.tensors))


def _put(trees: dict[str, Any], steps: list[str], tensor: torch.Tensor) -> None:
    *inner, last = steps
    for step in inner:
        trees = trees.setdefault(step, {})
    trees[last] = tensor


def _tuples(tree: Any) -> Any:
    """Turn dicts with the keys 0, 1, 2... into tuples."""
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {str(place) for place in range(len(tree))}:
        return tuple(_tuples(tree[str(place)]) for place in range(len(tree)))
    return {key: _tuples(value) for key, value in tree.items()}


def _binding_error(
    where: str, signature: inspect.Signature, missing: list[str], unknown: list[str]
) -> str:
    shown = signature.replace(return_annotation=inspect.Signature.empty)
    first = missing[0] if missing else next(iter(signature.parameters), "x")
    parts: list[str] = []
    if missing:
        parts.append(f"needs an --input for {', '.join(missing)}")
    if unknown:
        parts.append(f"has no parameter for input {', '.join(unknown)}")
    wrong = " and ".join(parts)
    return (
        f"{where}: forward{shown} {wrong}; give each one as in "
        f"--input '{first}=float32[1,3,224,224]'"
    )
