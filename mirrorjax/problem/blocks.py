"""Pairs (g_i, h_i) side by side, which share no weights; x is one vector, the blocks of it after each other."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..checks import require_kind
from .regularizer import AbstractRegularizer
from .reparam import AbstractReparameterization, Weights, check_leaves


class Blocks(AbstractReparameterization):
    """`x = (g_1(w_1), .., g_k(w_k))`, one vector: layers of different depth, or coordinates with different maps.

    Weights: the tuple (w_1, .., w_k) of the weights of the blocks, of one dtype. With `WeightDecay`, or `Blockwise` for
    strengths of their own, each homogeneous block has its own leak, `-2 c_i (p_i - 2)` for the degree p_i; the limit
    after a switch-off then minimises R_a only if these agree.

    **Arguments:** `parts`: the reparameterizations g_1, .., g_k, at least one.
    **Raises:** `ValueError` for a part that is no reparameterization, or for none.

    Source: none published; Theorem 3.6 of the paper for each block, and Lambda is diagonal for all of them.
    """

    parts: tuple[AbstractReparameterization, ...]

    def __init__(self, *parts: AbstractReparameterization):
        self.parts = _as_parts(parts, AbstractReparameterization, "Blocks", "a reparameterization such as Hadamard()")

    elementwise = property(lambda self: False)  # the factors of the blocks differ in number and shape
    compatible_is_squares = property(lambda self: all(part.compatible_is_squares for part in self.parts))

    @property
    def degree(self) -> int | None:
        degrees = {part.degree for part in self.parts}
        return degrees.pop() if len(degrees) == 1 else None

    @property
    def bounded_sublevels(self) -> bool | None:
        return _of_all([part.bounded_sublevels for part in self.parts])

    @property
    def smooth_everywhere(self) -> bool | None:
        return _of_all([part.smooth_everywhere for part in self.parts])

    def __call__(self, w: Weights) -> Float[Array, " d"]:
        return jnp.concatenate([part(own).reshape(-1) for part, own in zip(self.parts, w, strict=True)])

    def check(self, w: PyTree) -> None:
        for part, own in _blocks_of(self.parts, w, "Blocks"):
            part.check(own)
        check_leaves(w, "Blocks")
        dtypes = sorted({str(part(own).dtype) for part, own in zip(self.parts, w, strict=True)})
        if len(dtypes) > 1:
            raise ValueError(f"Blocks takes weights of one dtype, got {', '.join(dtypes)}; cast them")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([part.compatible(own) for part, own in zip(self.parts, w, strict=True)]))

    def capture(self, w: Weights) -> "Blocks":
        return Blocks(*(part.capture(own) for part, own in zip(self.parts, w, strict=True)))

    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for part in self.parts for note in part.notes()))


def _of_all(facts: list[bool | None]) -> bool | None:
    return False if False in facts else None if None in facts else True


class Blockwise(AbstractRegularizer):
    """`h(w) = sum_j h_j(w_j)`: a regularizer, and so a strength, of its own for each block of `Blocks`.

    **Arguments:** `parts`: the differentiable regularizers h_1, .., h_k, at least one.
    **Raises:** `ValueError` for a part that is no regularizer or not differentiable, or for none.
    """

    parts: tuple[AbstractRegularizer, ...]

    smooth: ClassVar[bool] = True

    def __init__(self, *parts: AbstractRegularizer):
        self.parts = _as_parts(parts, AbstractRegularizer, "Blockwise", "a regularizer such as WeightDecay()")
        for part in self.parts:
            if not part.smooth:
                raise ValueError(f"Blockwise takes differentiable regularizers, got {type(part).__name__}")

    elementwise = property(lambda self: False)

    @property
    def degree(self) -> int | None:
        degrees = {part.degree for part in self.parts}
        return degrees.pop() if len(degrees) == 1 else None

    def __call__(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([part(own) for part, own in zip(self.parts, w, strict=True)]))

    def check(self, w: PyTree) -> None:
        for part, own in _blocks_of(self.parts, w, "Blockwise"):
            part.check(own)

    def capture(self, w: Weights) -> "Blockwise":
        return Blockwise(*(part.capture(own) for part, own in zip(self.parts, w, strict=True)))

    def is_nonnegative(self) -> Bool[Array, ""] | None:
        known = [part.is_nonnegative() for part in self.parts]
        facts = [fact for fact in known if fact is not None]
        return jnp.all(jnp.stack(facts)) if len(facts) == len(known) else None


def _as_parts(parts: Sequence[Any], kind: type, owner: str, wanted: str) -> tuple:
    if not parts:
        raise ValueError(f"{owner} takes one part or more, each {wanted}, got none")
    for i, part in enumerate(parts):
        require_kind(part, kind, f"part {i} of {owner}", wanted)
    return tuple(parts)


def _blocks_of(parts: tuple, w: Any, owner: str) -> list[tuple]:
    """The parts with their weights. Raises `ValueError` unless w is a tuple with one entry a part."""
    if not isinstance(w, tuple | list) or len(w) != len(parts):
        got = f"{type(w).__name__} of length {len(w)}" if isinstance(w, tuple | list) else type(w).__name__
        raise ValueError(f"{owner} takes a tuple with the weights of its {len(parts)} parts, got {got}")
    return list(zip(parts, w, strict=True))
