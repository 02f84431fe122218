"""Elementwise x = g_u(u) - g_v(v): powers, logarithms, exponentials, and functions of your own."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..checks import as_count, refuted
from .functions import call, capture, output_shape, require_function
from .reparam import AbstractReparameterization, Admission, Weights, check_factors, check_same_shape

_EXAMPLE = "Corollary 3.12, Example 3.14"


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
    is_difference = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return self.plus(w[0]) - self.minus(w[1])

    def check(self, w: PyTree) -> None:
        check_same_shape(check_factors(w, 2, type(self).__name__, "(u, v)"), type(self).__name__)

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(self.plus(w[0]) + self.minus(w[1]))

    def admission(self) -> Admission:
        return Admission(
            "g_u and g_v analytic and increasing where the flow runs; contracting where g_u + g_v >= 0",
            "Corollary 3.12",
        )


def _k(value: Any) -> int:
    return as_count(value, "k of PowerDifference")


class PowerDifference(AbstractDifference):
    """`x = u^{2k} - v^{2k}`, elementwise; k = 1 is the square difference u^2 - v^2.

    Weights: (u, v) of one shape; R_a needs u, v > 0.

    **Arguments:** `k`: a whole number >= 1.
    **Raises:** `ValueError` for any other k.

    Source: the paper's Eq. (11), Example 3.14.
    """

    command_line: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "square-difference": {},
        "power-difference-2": {"k": 2},
        "power-difference-3": {"k": 3},
    }

    k: int = eqx.field(static=True, default=1, converter=_k)  # static: integer powers differentiate exactly, also at 0

    degree = property(lambda self: 2 * self.k)
    bounded_sublevels = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)
    compatible_is_squares = property(lambda self: self.k == 1)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return u ** (2 * self.k)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return v ** (2 * self.k)

    def admission(self) -> Admission:
        return Admission("u0 > 0 and v0 > 0 in every coordinate", _EXAMPLE)

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        plus, minus = _parts(x, balance)
        return plus ** (0.5 / self.k), minus ** (0.5 / self.k)


class LogDifference(AbstractDifference):
    """`x = log u - log v`, elementwise.

    Weights: (u, v) of one shape, both positive. With h = c (log u + log v) decay uses up the range: R_a ends at
    `a = -min(u0, v0)^2 / (2c)`.

    Source: the paper's Example 3.14.
    """

    command_line: ClassVar[Mapping[str, Mapping[str, Any]]] = {"log-difference": {}}

    degree = property(lambda self: None)
    # Q_a = U log U, U = u^2, stays finite where u or v goes to 0: D(x, y) is bounded as y goes to infinity.
    bounded_sublevels = property(lambda self: False)
    smooth_everywhere = property(lambda self: False)  # u^2 = u0^2 + 2 mu reaches 0

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(u)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.log(v)

    def check(self, w: PyTree) -> None:
        factors = check_factors(w, 2, "LogDifference", "(u, v)")
        check_same_shape(factors, "LogDifference")
        for name, factor in zip("uv", factors, strict=True):
            if refuted(lambda factor=factor: np.all(np.asarray(factor) > 0), factor):
                raise ValueError(f"LogDifference needs {name} > 0, its smallest entry is {np.min(np.asarray(factor))}")

    def admission(self) -> Admission:
        return Admission(
            "u0, v0 > 0; contracting only while sum(log u + log v) >= 0; ends at a = -min(u0, v0)^2 / 2", _EXAMPLE
        )

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        return balance * jnp.exp(x / 2), balance * jnp.exp(-x / 2)


class ExpDifference(AbstractDifference):
    """`x = e^u - e^v`, elementwise.

    Weights: (u, v) of one shape.

    Source: the paper's Example 3.14.
    """

    command_line: ClassVar[Mapping[str, Mapping[str, Any]]] = {"exp-difference": {}}

    degree = property(lambda self: None)
    bounded_sublevels = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(u)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.exp(v)

    def admission(self) -> Admission:
        return Admission("any weights", _EXAMPLE)

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        plus, minus = _parts(x, balance)
        return jnp.log(plus), jnp.log(minus)


class Separable(AbstractDifference):
    """`x = g_u(u) - g_v(v)` with your own scalar functions, applied elementwise.

    Weights: (u, v) of one shape.

    **Arguments:** `g_u`, `g_v`: functions of one array, elementwise, analytic and increasing where the flow runs.
    **Raises:** `ValueError` when one is no function of one argument; from `check` when one does not return an array
    like its factor.

    Source: the paper's Corollary 3.12.
    """

    g_u: Callable
    g_v: Callable

    def __check_init__(self):
        require_function(self.g_u, "Separable, g_u,", "one factor")
        require_function(self.g_v, "Separable, g_v,", "one factor")

    degree = property(lambda self: None)

    def plus(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return call(self.g_u, "Separable, g_u,", u)

    def minus(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        return call(self.g_v, "Separable, g_v,", v)

    def check(self, w: PyTree) -> None:
        factors = check_factors(w, 2, "Separable", "(u, v)")
        check_same_shape(factors, "Separable")
        for name, function, factor in zip(("g_u", "g_v"), (self.g_u, self.g_v), factors, strict=True):
            value = output_shape(function, f"Separable, {name},", factor)
            if (getattr(value, "shape", None), getattr(value, "dtype", None)) != (factor.shape, factor.dtype):
                raise ValueError(
                    f"the function {name} of Separable must return an array like its factor, of shape {factor.shape} "
                    f"and dtype {factor.dtype}, got {value}"
                )

    def capture(self, w: Weights) -> "Separable":
        u, v = w
        return Separable(capture(self.g_u, "Separable, g_u,", u), capture(self.g_v, "Separable, g_v,", v))


def _parts(x: Float[Array, "..."], balance: Float[Array, ""]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`p - q = x` with `p q = (balance/2)^2`, without cancellation in the smaller of p and q."""
    larger = (jnp.abs(x) + jnp.hypot(x, balance)) / 2
    smaller = (balance / 2) * (balance / 2 / larger)
    return jnp.where(x >= 0, larger, smaller), jnp.where(x >= 0, smaller, larger)
