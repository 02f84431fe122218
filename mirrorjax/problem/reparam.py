"""x = g(w): reparameterizations that act coordinate by coordinate, and the abstract class of all of them.

A reparameterization is a pure function of one point. What it declares beside its value is structure the engine uses:
`degree`, the degree of positive homogeneity g(r w) = r^degree g(w), lets the flow be integrated on a logarithmic scale
where tiny weights keep all their digits; `elementwise` says whether that scale is one a coordinate or one for all.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..checks import refuted

Weights = PyTree[Float[Array, "..."]]


class AbstractReparameterization(eqx.Module):
    """`x = g(w)`, a smooth map from weights (a pytree) to parameters (one array).

    A subclass gives `__call__`, `degree`, `elementwise` and `check`; `compatible` where the theory names a regularizer.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 3.
    """

    @abc.abstractmethod
    def __call__(self, w: Weights) -> Float[Array, "..."]:
        """`g(w)`."""

    @property
    @abc.abstractmethod
    def degree(self) -> int | None:
        """Degree p of positive homogeneity, `g(r w) = r^p g(w)` for r > 0; `None` where g has none."""

    @property
    @abc.abstractmethod
    def elementwise(self) -> bool:
        """Whether coordinate i of x depends on coordinate i of each factor only."""

    @abc.abstractmethod
    def check(self, w: PyTree) -> None:
        """Raise `ValueError` naming what is wrong when w is not a point that g accepts."""

    def compatible(self, w: Weights) -> Float[Array, ""]:
        """The regularizer h(w), at scale 1, that commutes with g. Raises `ValueError` where the theory names none."""
        raise ValueError(
            f"{type(self).__name__} has no regularizer of the form of Corollary 3.12; "
            "use WeightDecay, QuadraticForm or CustomRegularizer"
        )


def check_factors(w: Any, n: int, family: str, names: str) -> tuple[Array, ...]:
    """The n factors of w as arrays; a `ValueError` naming the family and what it expects otherwise."""
    expected = f"{family} takes weights {names}"
    if n == 1:
        factors = (w,)
    elif isinstance(w, tuple | list) and len(w) == n:
        factors = tuple(w)
    else:
        got = f"{type(w).__name__} of length {len(w)}" if isinstance(w, tuple | list) else _kind(w)
        raise ValueError(f"{expected}: a tuple of {n} arrays, got {got}")
    for factor in factors:
        if not eqx.is_array(factor):
            raise ValueError(f"{expected}: arrays, got {type(factor).__name__}")
        if not jnp.issubdtype(factor.dtype, jnp.floating):
            raise ValueError(f"{expected} in floating point, got dtype {factor.dtype}; cast them, e.g. to float")
    if len({factor.dtype for factor in factors}) > 1:
        raise ValueError(f"{expected} of one dtype, got {', '.join(str(factor.dtype) for factor in factors)}")
    return factors


def _kind(w: Any) -> str:
    return f"one array of shape {w.shape}" if eqx.is_array(w) else type(w).__name__


def check_same_shape(factors: tuple[Array, ...], family: str) -> None:
    """Refuse factors of an elementwise family whose shapes differ: broadcasting would change the flow."""
    if len({factor.shape for factor in factors}) > 1:
        shapes = ", ".join(str(factor.shape) for factor in factors)
        raise ValueError(f"{family} multiplies or subtracts coordinate by coordinate: shapes must agree, got {shapes}")


def check_degree(fn: Callable, w: PyTree, degree: int | None, owner: str) -> None:
    """Refuse a claimed degree p unless `fn(w) = 2^p fn(w / 2)`: the flow follows the scale of w by it."""
    if degree is None:
        return

    def holds():
        value, halved = fn(w), 2.0**degree * fn(jax.tree.map(lambda leaf: leaf / 2, w))
        # Halving is exact, so what differs is rounding inside fn; a wrong degree is off by a factor of 2.
        return jnp.max(jnp.abs(value - halved), initial=0.0) <= 0.01 * jnp.max(jnp.abs(value), initial=0.0)

    if refuted(holds, fn, w):
        raise ValueError(
            f"the function of {owner} is not homogeneous of the degree given, homogeneity={degree}, at these weights; "
            "give the right degree, or leave it out"
        )


class Linear(AbstractReparameterization):
    """`x = w`: no reparameterization, the baseline whose implicit bias no regularizer can keep.

    Weights: a lone array of any shape.

    Source: the paper's Corollary D.1.
    """

    degree = property(lambda self: 1)
    elementwise = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return w

    def check(self, w: PyTree) -> None:
        check_factors(w, 1, "Linear", "w")


class Hadamard(AbstractReparameterization):
    """`x = w_1 * w_2 * ... * w_depth`, elementwise; `x = m w` at depth 2.

    Weights: a tuple of `depth` arrays of one shape. Depth 2 with weight decay moves from L2 to L1; depth >= 3 with
    weight decay does not commute (Theorem D.2): its flow runs, but there is no R_a.

    **Arguments:** `depth`: number of factors, >= 2.
    **Raises:** `ValueError` for a depth below 2.

    Source: the paper's Eq. (9), Theorem D.2.
    """

    depth: int = eqx.field(static=True, default=2)  # static: it is the number of arrays in w

    def __check_init__(self):
        if not isinstance(self.depth, int) or self.depth < 2:
            raise ValueError(f"Hadamard needs a whole depth of at least 2, got {self.depth}; depth 1 is Linear()")

    degree = property(lambda self: self.depth)
    elementwise = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        product = w[0]
        for factor in w[1:]:
            product = product * factor
        return product

    def check(self, w: PyTree) -> None:
        names = "(m, w)" if self.depth == 2 else f"(w1, .., w{self.depth})"
        check_same_shape(check_factors(w, self.depth, f"Hadamard(depth={self.depth})", names), "Hadamard")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        if self.depth != 2:
            raise ValueError(
                f"Hadamard(depth={self.depth}) commutes with no weight decay (Theorem D.2); only depth 2 does"
            )
        return jnp.sum(w[0] ** 2 + w[1] ** 2)


class Square(AbstractReparameterization):
    """`x = w^2 >= 0`, elementwise.

    Weights: a lone array of any shape; R_a needs w > 0.

    Source: the paper's Eq. (10).
    """

    degree = property(lambda self: 2)
    elementwise = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return w**2

    def check(self, w: PyTree) -> None:
        check_factors(w, 1, "Square", "w")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(w**2)


class AbstractDifference(AbstractReparameterization):
    """`x = g_u(u) - g_v(v)`, elementwise, with increasing g_u and g_v; weights are the tuple (u, v).

    The regularizer `h = g_u(u) + g_v(v)` commutes with it.

    Source: the paper's Corollary 3.12, Example 3.14.
    """

    @abc.abstractmethod
    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`g_u(u)`."""

    @abc.abstractmethod
    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """`g_v(v)`."""

    elementwise = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return self.plus(w[0]) - self.minus(w[1])

    def check(self, w: PyTree) -> None:
        check_same_shape(check_factors(w, 2, type(self).__name__, "(u, v)"), type(self).__name__)

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(self.plus(w[0]) + self.minus(w[1]))


class PowerDifference(AbstractDifference):
    """`x = u^{2k} - v^{2k}`, elementwise; k = 1 is the square difference u^2 - v^2.

    Weights: (u, v) of one shape; R_a needs u, v > 0.

    **Arguments:** `k`: a whole number >= 1.
    **Raises:** `ValueError` for any other k.

    Source: the paper's Eq. (11), Example 3.14.
    """

    k: int = eqx.field(static=True, default=1)  # static: integer powers differentiate exactly, also at 0

    def __check_init__(self):
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"PowerDifference needs a whole k of at least 1, got {self.k}")

    degree = property(lambda self: 2 * self.k)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return u ** (2 * self.k)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return v ** (2 * self.k)


class LogDifference(AbstractDifference):
    """`x = log u - log v`, elementwise.

    Weights: (u, v) of one shape, both positive. With h = c (log u + log v) decay uses up the range: R_a ends at
    `a = -min(u0, v0)^2 / (2c)`.

    Source: the paper's Example 3.14.
    """

    degree = property(lambda self: None)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(u)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(v)

    def check(self, w: PyTree) -> None:
        factors = check_factors(w, 2, "LogDifference", "(u, v)")
        check_same_shape(factors, "LogDifference")
        for name, factor in zip("uv", factors, strict=True):
            if refuted(lambda factor=factor: jnp.all(factor > 0), factor):
                raise ValueError(f"LogDifference needs {name} > 0, its smallest entry is {np.min(np.asarray(factor))}")


class ExpDifference(AbstractDifference):
    """`x = e^u - e^v`, elementwise.

    Weights: (u, v) of one shape.

    Source: the paper's Example 3.14.
    """

    degree = property(lambda self: None)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(u)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(v)


class Separable(AbstractDifference):
    """`x = g_u(u) - g_v(v)` with your own scalar functions, applied elementwise.

    Weights: (u, v) of one shape.

    **Arguments:** `g_u`, `g_v`: functions of one array, elementwise, analytic and increasing where the flow runs.
    **Raises:** `ValueError` when one is not callable.

    Source: the paper's Corollary 3.12.
    """

    g_u: Callable
    g_v: Callable

    def __check_init__(self):
        for name, function in (("g_u", self.g_u), ("g_v", self.g_v)):
            if not callable(function):
                raise ValueError(f"Separable takes two functions, got {name} = {function!r}")

    degree = property(lambda self: None)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.g_u(u)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.g_v(v)


class Custom(AbstractReparameterization):
    """`x = fn(w)` for any differentiable function of a pytree of floating-point arrays.

    **Arguments:** `fn`: weights -> one array; `homogeneity`: p if you know that `fn(r w) = r^p fn(w)` for r > 0, which
    lets the flow follow tiny weights without losing digits, otherwise `None`.
    **Raises:** `ValueError` when fn is not callable; from `check` when fn does not return one floating-point array, or
    is not homogeneous of the degree given.
    """

    fn: Callable
    homogeneity: int | None = eqx.field(static=True, default=None)  # static: it decides the flow's coordinates

    def __check_init__(self):
        if not callable(self.fn):
            raise ValueError(f"Custom takes a function of the weights, got {self.fn!r}")

    degree = property(lambda self: self.homogeneity)
    elementwise = property(lambda self: False)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return self.fn(w)

    def check(self, w: PyTree) -> None:
        leaves = jax.tree.leaves(w)
        if not leaves:
            raise ValueError("Custom takes a pytree of arrays, got one without leaves")
        for leaf in leaves:
            check_factors(leaf, 1, "Custom", "in any pytree")
        x = jax.eval_shape(self.fn, w)
        if not isinstance(x, jax.ShapeDtypeStruct) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"the function of Custom must return one floating-point array, got {x}")
        check_degree(self.fn, w, self.homogeneity, "Custom")
