"""Normalised commutators: `|AB - BA|` relative to the sizes of A and B, in the norm that the function is named for.

Two norms are needed. The spectral norm gives numbers in [0, 1], the scale of the brackets in `mirrorjax.check`, at the
price of three singular value decompositions a pair. The Frobenius norm costs a sum; it serves for all pairs of a long
stack of sensing matrices, and for the test that each evaluation of a spectral R_a makes.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Matrix = Float[Array, "n n"]


def spectral_commutator(A: Matrix, B: Matrix) -> Float[Array, ""]:
    """`|AB - BA|_2 / (2 |A|_2 |B|_2)` in spectral norms, in [0, 1]; 0 where a matrix is 0."""
    sizes = 2 * jnp.linalg.norm(A, ord=2) * jnp.linalg.norm(B, ord=2)
    return ratio(jnp.linalg.norm(A @ B - B @ A, ord=2), sizes)


def frobenius_commutator(A: Matrix, B: Matrix) -> Float[Array, ""]:
    """`|AB - BA|_F / (|A|_F |B|_F)` in Frobenius norms, in [0, sqrt(2)]; 0 where a matrix is 0."""
    A, B = (ratio(matrix, jnp.full_like(matrix, jnp.linalg.norm(matrix))) for matrix in (A, B))
    return jnp.linalg.norm(A @ B - B @ A)  # of scaled matrices, so that no product of norms over- or underflows


def largest_commutator(
    matrices: Float[Array, "k n n"],
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """The largest `frobenius_commutator(A, B)` over the pairs of a stack, with the two indices that attain it."""

    def against_all(A: Matrix) -> Float[Array, " k"]:
        return jax.lax.map(lambda B: frobenius_commutator(A, B), matrices)

    sizes = jax.lax.map(against_all, matrices)  # one pair at a time: k^2 matrices at once would not fit
    first, second = jnp.unravel_index(jnp.argmax(sizes), sizes.shape)
    return sizes[first, second], first, second


def largest_known_commutator(matrices: np.ndarray, norm: Literal["fro", 2]) -> tuple[float, int, int]:
    """The largest `|AB - BA| / (|A| |B|)` over the pairs of a known stack, with the two indices that attain it.

    It computes with NumPy, since JAX would compile it for every shape of a stack.
    """
    sizes = np.linalg.norm(matrices, ord=norm, axis=(1, 2))
    scaled = matrices / np.where(sizes > 0, sizes, 1.0)[:, None, None]
    found = np.stack([np.linalg.norm(A @ scaled - scaled @ A, ord=norm, axis=(1, 2)) for A in scaled])
    first, second = np.unravel_index(np.argmax(found), found.shape)
    return float(found[first, second]), int(first), int(second)


def ratio(numerator: Float[Array, "..."], denominator: Float[Array, "..."]) -> Float[Array, "..."]:
    """The quotient, 0 where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))
