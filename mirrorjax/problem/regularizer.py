"""h(w): the explicit regularizers, and the facts each states about itself."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ..checks import as_scalar, is_concrete, require_finite, require_kind
from .functions import call, capture, check_scalar, require_function
from .matrix import as_symmetric
from .of_weights import AbstractOfWeights
from .reparam import AbstractReparameterization, Weights, as_homogeneity, check_degree, check_leaves


def _scale(value: ArrayLike) -> Float[Array, ""]:
    scale = as_scalar(value, "scale")
    require_finite(scale, "scale")
    return scale


def _is_zero(scale: Float[Array, ""]) -> bool:
    return is_concrete(scale) and float(scale) == 0.0


class AbstractRegularizer(AbstractOfWeights):
    """`h(w)`, a scalar function of the weights.

    A subclass gives `__call__`, `degree` and `elementwise`; one that is not differentiable everywhere sets
    `smooth = False`, and only flows that take its proximal map accept it. The other methods are facts that h may state
    about itself; their defaults say that nothing is known.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (2).
    """

    smooth: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, w: Weights) -> Float[Array, ""]:
        """`h(w)`."""

    def check(self, w: PyTree) -> None:
        """Raises `ValueError` when h does not accept these weights."""

    def capture(self, w: PyTree) -> "AbstractRegularizer":
        """This regularizer, with the traced numbers that a user's function in it closes over as leaves.

        `mirrorjax.solve` asks for it before it compiles. The weights w are an example: shapes and dtypes are kept.
        """
        return self

    def compatible_scale(self, g: AbstractReparameterization) -> Float[Array, ""] | None:
        """The scale c with `h = c g.compatible`; `None` where h is no multiple of it. A known c = 0 fits every g."""
        return None

    def quadratic_form(self, size: int, dtype: jnp.dtype) -> Float[Array, "D D"] | None:
        """The matrix G_0 of `h(w) = w^T G_0 w / 2` for one array w of that size; `None` where h has none."""
        return None

    def is_nonnegative(self) -> Bool[Array, ""] | None:
        """True if h >= 0 everywhere, as its numbers show; `None` where only values of h can tell."""
        return None

    def notes(self, g: AbstractReparameterization) -> tuple[str, ...]:
        """Sentences of the theory about h beside g that `mirrorjax.check` prints with its numbers."""
        return ()


class WeightDecay(AbstractRegularizer):
    """`h(w) = scale * sum of squares of all weights`. Its gradient is 2 scale w (not scale w: mind optax's convention).

    **Arguments:** `scale`: c, a finite scalar.
    **Raises:** `ValueError` for a non-finite scale.
    """

    scale: Float[Array, ""] = eqx.field(converter=_scale, default=1.0)

    smooth: ClassVar[bool] = True
    degree = property(lambda self: 2)
    elementwise = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, ""]:
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(w)]
        return self.scale.astype(squares[0].dtype) * sum(squares[1:], squares[0])

    def check(self, w: PyTree) -> None:
        check_leaves(w, "WeightDecay")

    def compatible_scale(self, g: AbstractReparameterization) -> Float[Array, ""] | None:
        return self.scale if g.compatible_is_squares or _is_zero(self.scale) else None

    def is_nonnegative(self) -> Bool[Array, ""]:
        return self.scale >= 0

    def quadratic_form(self, size: int, dtype: jnp.dtype) -> Float[Array, "D D"]:
        return 2 * self.scale.astype(dtype) * jnp.eye(size, dtype=dtype)

    def notes(self, g: AbstractReparameterization) -> tuple[str, ...]:
        if g.degree in (None, 2):
            return ()
        return (
            f"weight decay is a dilation and g is homogeneous of degree {g.degree}: [grad h, grad g_i] is "
            "-2 scale (degree - 2) grad g_i, so h normalises g, and commutes with it for degree 2 only",
        )


class L1(AbstractRegularizer):
    """`h(w) = scale * sum of absolute values of all weights`.

    It is not differentiable at 0: its gradient flow is a differential inclusion. `ProximalDescent` handles it, by
    `prox(w, s) = sign(w) max(|w| - s scale, 0)`; the flows refuse it rather than smooth it silently.

    **Arguments:** `scale`: c, a finite scalar.
    **Raises:** `ValueError` for a non-finite scale.
    """

    scale: Float[Array, ""] = eqx.field(converter=_scale, default=1.0)

    smooth: ClassVar[bool] = False
    degree = property(lambda self: 1)
    elementwise = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, ""]:
        sums = [jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(w)]
        return self.scale.astype(sums[0].dtype) * sum(sums[1:], sums[0])

    def check(self, w: PyTree) -> None:
        check_leaves(w, "L1")

    def prox(self, w: Weights, strength: Float[ArrayLike, ""]) -> Weights:
        """`argmin_z |z - w|^2 / 2 + strength h(z)`, soft thresholding at strength * scale."""

        def shrink(leaf: Float[Array, "..."]) -> Float[Array, "..."]:
            threshold = jnp.asarray(strength * self.scale, leaf.dtype)
            return jnp.sign(leaf) * jnp.maximum(jnp.abs(leaf) - threshold, 0)

        return jax.tree.map(shrink, w)

    def notes(self, g: AbstractReparameterization) -> tuple[str, ...]:
        return (
            "h has no gradient at 0, so it was sampled away from 0: a bracket of 0 there means commuting inside one "
            "orthant only, which ends where a weight reaches 0. Theorem 3.6 needs a smooth h",
        )


class Compatible(AbstractRegularizer):
    """`h(w) = scale * (g_u(u) + g_v(v))` for `x = g_u(u) - g_v(v)`: the regularizer that commutes with g.

    For Hadamard it is m^2 + w^2, for Square w^2, for Gram and MatrixProduct the squared Frobenius norms.

    **Arguments:** `g`: a reparameterization that has one; `scale`: c, a finite scalar.
    **Raises:** `ValueError` for a non-finite scale, something else than a reparameterization, or, when first
    evaluated, for a g that has none.

    Source: the paper's Corollary 3.12, Example 3.14.
    """

    g: AbstractReparameterization
    scale: Float[Array, ""] = eqx.field(converter=_scale, default=1.0)

    def __check_init__(self):
        require_kind(self.g, AbstractReparameterization, "g of Compatible", "a reparameterization such as Hadamard()")

    smooth: ClassVar[bool] = True
    degree = property(lambda self: self.g.degree)
    elementwise = property(lambda self: self.g.elementwise)

    def __call__(self, w: Weights) -> Float[Array, ""]:
        value = self.g.compatible(w)
        return self.scale.astype(value.dtype) * value

    def check(self, w: PyTree) -> None:
        self.g.check(w)
        jax.eval_shape(self.g.compatible, w)

    def capture(self, w: Weights) -> "Compatible":
        return Compatible(self.g.capture(w), self.scale)

    def compatible_scale(self, g: AbstractReparameterization) -> Float[Array, ""] | None:
        squares = self.g.compatible_is_squares and g.compatible_is_squares
        return self.scale if squares or _is_zero(self.scale) or self.g == g else None


class QuadraticForm(AbstractRegularizer):
    """`h(w) = w^T G_0 w / 2` for a symmetric G_0; contracting when G_0 is positive semidefinite.

    **Arguments:** `G0` (D, D): symmetric.
    **Raises:** `ValueError` when G0 is not a symmetric matrix.

    Source: the paper's Theorem 3.15.
    """

    G0: Float[Array, "D D"]

    smooth: ClassVar[bool] = True
    degree = property(lambda self: 2)
    elementwise = property(lambda self: False)

    def __init__(self, G0: ArrayLike):
        self.G0 = as_symmetric(G0, "G0")
        if self.G0.ndim != 2:
            raise ValueError(f"QuadraticForm takes one matrix G0 (D, D), got shape {self.G0.shape}")

    def __call__(self, w: Weights) -> Float[Array, ""]:
        return w @ self.G0 @ w / 2

    def quadratic_form(self, size: int, dtype: jnp.dtype) -> Float[Array, "D D"]:
        return self.G0

    def is_nonnegative(self) -> Bool[Array, ""]:
        eigenvalues = jnp.linalg.eigvalsh(self.G0)
        # Weyl: rounding moves an eigenvalue by at most about D eps |G0|.
        rounding = eigenvalues.size * jnp.finfo(eigenvalues.dtype).eps * jnp.max(jnp.abs(eigenvalues))
        return eigenvalues[0] >= -rounding

    def check(self, w: PyTree) -> None:
        if not eqx.is_array(w) or w.shape != self.G0.shape[:1]:
            got = w.shape if eqx.is_array(w) else type(w).__name__
            raise ValueError(f"QuadraticForm with G0 {self.G0.shape} takes one array w {self.G0.shape[:1]}, got {got}")
        if w.dtype != self.G0.dtype:
            raise ValueError(f"QuadraticForm holds G0 in {self.G0.dtype}, got w in {w.dtype}: cast one of them")


class CustomRegularizer(AbstractRegularizer):
    """`h(w) = fn(w)` for any differentiable scalar function of the weights.

    **Arguments:** `fn`: weights -> scalar; `homogeneity`: q if you know that `fn(r w) = r^q fn(w)` for r > 0, else
    None.
    **Raises:** `ValueError` when fn is no function of one argument, or homogeneity no whole number; from
    `check` when it does not return one scalar for the weights, or is not homogeneous of the degree given.
    """

    fn: Callable
    # static: it decides the flow's coordinates
    homogeneity: int | None = eqx.field(static=True, default=None, converter=as_homogeneity)

    smooth: ClassVar[bool] = True
    degree = property(lambda self: self.homogeneity)
    elementwise = property(lambda self: False)

    def __check_init__(self):
        require_function(self.fn, "CustomRegularizer", "the weights")

    def __call__(self, w: Weights) -> Float[Array, ""]:
        return call(self.fn, "CustomRegularizer", w)

    def check(self, w: PyTree) -> None:
        check_scalar(self.fn, w, "CustomRegularizer")
        check_degree(self.fn, w, self.homogeneity, "CustomRegularizer")

    def capture(self, w: Weights) -> "CustomRegularizer":
        return CustomRegularizer(capture(self.fn, "CustomRegularizer", w), self.homogeneity)
