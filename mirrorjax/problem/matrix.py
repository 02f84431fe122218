"""x = g(w) whose coordinates share weights: U U^T, K^T Q, A B and quadratic forms."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks import as_float, is_concrete, require_finite
from .reparam import AbstractReparameterization, Admission, Weights, check_factors


def as_symmetric(value: ArrayLike, name: str) -> Float[Array, "... n n"]:
    """Converts `value` to a floating-point array of symmetric matrices.

    **Raises:** `ValueError` when it is not one, or not finite.
    """
    array = as_float(value, name)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2]:
        raise ValueError(f"{name} must be square in its last two axes, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one matrix entry, got shape {array.shape}")
    require_finite(array, name)
    if is_concrete(array):
        known = np.asarray(array)
        asymmetry = np.max(np.abs(known - np.swapaxes(known, -1, -2)), initial=0.0)
        # Symmetrised inputs differ from their transposes by rounding at most.
        if not asymmetry <= 8 * np.finfo(known.dtype).eps * np.max(np.abs(known), initial=0.0):
            raise ValueError(
                f"{name} must be symmetric, entries differ from their transposes by up to {asymmetry:.3g}; "
                f"only the symmetric part acts, pass ({name} + {name}^T) / 2"
            )
    return array


_MEASURED = (
    "the entries of X do not commute, and J is deficient where X is symmetric or of low rank; measurements <A_i, X> "
    "may: check Custom(lambda w: einsum('mij,ij->m', A, g(w)))"
)


@jax.custom_jvp
def _gram(U: Float[Array, "n r"]) -> Float[Array, "n n"]:
    """`U U^T`, whose derivative `D + D^T`, `D = dU U^T`, takes one product in either mode; JAX's own takes two."""
    return U @ U.T


@_gram.defjvp
def _gram_jvp(primals: tuple, tangents: tuple) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    half = tangents[0] @ primals[0].T
    return _gram(primals[0]), half + half.T


class Gram(AbstractReparameterization):
    """`X = U U^T`, positive semidefinite n x n.

    Weights: a lone array U (n, r). With h = c |U|_F^2 decay adds the nuclear norm; R_a exists where the sensing
    matrices commute, on the eigenvalues.

    Source: the paper's Eq. (17), section 5.
    """

    degree = property(lambda self: 2)
    elementwise = property(lambda self: False)
    compatible_is_squares = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "n n"]:
        return _gram(w)

    def check(self, w: PyTree) -> None:
        (factor,) = check_factors(w, 1, "Gram", "U (n, r)")
        if factor.ndim != 2:
            raise ValueError(f"Gram takes a matrix U (n, r), got shape {factor.shape}")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(w**2)

    def admission(self) -> Admission:
        return Admission(
            "X measured by symmetric A_i that commute pairwise; the entries of X alone do not", "Theorem 3.15, Eq. (17)"
        )

    def notes(self) -> tuple[str, ...]:
        return (_MEASURED,)

    def advice(self) -> str:
        return "for measurements that commute or are aligned with the weights, build SpectralGram(U0, scale) yourself"


def _transpose(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"transpose of MatrixProduct must be True or False, got {value!r}")
    return bool(value)


class MatrixProduct(AbstractReparameterization):
    """`X = K^T Q` (attention; K (r, n), Q (r, m)), or `X = A B` (LoRA; A (n, r), B (r, m)) with `transpose=False`.

    Weights: the tuple of both factors. With h = c (|K|^2 + |Q|^2) and aligned factors the singular values follow the
    Hadamard form: Frobenius -> nuclear.

    **Arguments:** `transpose`: True if the first factor enters transposed.
    **Raises:** `ValueError` for anything but True or False.

    Source: the paper's section 5, Theorem 3.15.
    """

    # static: it fixes the shapes of w
    transpose: bool = eqx.field(static=True, default=True, converter=_transpose)

    degree = property(lambda self: 2)
    elementwise = property(lambda self: False)
    compatible_is_squares = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "n m"]:
        first, second = w
        return first.T @ second if self.transpose else first @ second

    def check(self, w: PyTree) -> None:
        names = "(K, Q) of shapes (r, n), (r, m)" if self.transpose else "(A, B) of shapes (n, r), (r, m)"
        first, second = check_factors(w, 2, "MatrixProduct", names)
        inner = 0 if self.transpose else 1
        if first.ndim != 2 or second.ndim != 2 or first.shape[inner] != second.shape[0]:
            raise ValueError(f"MatrixProduct takes {names}, got {first.shape} and {second.shape}")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(w[0] ** 2) + jnp.sum(w[1] ** 2)

    def admission(self) -> Admission:
        return Admission(
            "factors aligned with the singular vectors of the gradient of f, along the whole flow", "Theorem 3.15"
        )

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        if x.ndim < 2:
            raise ValueError(f"MatrixProduct gives matrices, the tensor has shape {x.shape}")
        left, values, right = jnp.linalg.svd(x, full_matrices=False)
        roots = jnp.sqrt(values)
        first, second = left * roots[..., None, :], roots[..., :, None] * right
        return (jnp.swapaxes(first, -1, -2) if self.transpose else first), second

    def notes(self) -> tuple[str, ...]:
        return (_MEASURED,)

    def advice(self) -> str:
        return (
            "for measurements that commute or are aligned with the weights, build "
            "SpectralProduct(K0, Q0, left, right, scale) yourself"
        )


class Quadratic(AbstractReparameterization):
    """`x_i = w^T G_i w / 2` for i from 1 to d, with symmetric G_i.

    Weights: a lone array w (D,). R_a exists when the G_i commute pairwise, and with `QuadraticForm(G_0)` when G_0
    commutes with each of them too.

    **Arguments:** `G` (d, D, D): the symmetric matrices.
    **Raises:** `ValueError` when G is not an array of symmetric matrices.

    Source: the paper's Theorem 3.15.
    """

    G: Float[Array, "d D D"]

    def __init__(self, G: ArrayLike):
        self.G = as_symmetric(G, "G")
        if self.G.ndim != 3:
            raise ValueError(f"Quadratic takes G of shape (d, D, D), got {self.G.shape}")

    degree = property(lambda self: 2)
    elementwise = property(lambda self: False)
    quadratic_forms = property(lambda self: self.G)
    bounded_sublevels = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, " d"]:
        return jnp.einsum("i,dij,j->d", w, self.G, w) / 2

    def check(self, w: PyTree) -> None:
        (point,) = check_factors(w, 1, "Quadratic", "w (D,)")
        if point.shape != self.G.shape[-1:]:
            raise ValueError(f"Quadratic with G {self.G.shape} takes w of shape {self.G.shape[-1:]}, got {point.shape}")
        if point.dtype != self.G.dtype:
            raise ValueError(f"Quadratic holds G in {self.G.dtype}, got w in {point.dtype}: cast one of them")
