"""compatible_regularizers(): the regularizers that the theory admits for a reparameterization."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import as_float, is_concrete, require_kind
from ..problem import AbstractRegularizer, AbstractReparameterization, Compatible, QuadraticForm
from .commutators import largest_known_commutator

_LARGEST = 64  # the commutant of D x D matrices is the null space of a matrix with D(D+1)/2 = 2080 columns


class Admissible(eqx.Module):
    """A regularizer that commutes with g, the condition under which R_a then exists, and where that is proved."""

    regularizer: AbstractRegularizer
    condition: str = eqx.field(static=True)  # static: text
    source: str = eqx.field(static=True)  # static: text


def compatible_regularizers(g: AbstractReparameterization) -> list[Admissible]:
    """The regularizers h, at scale 1, with `[grad g_i, grad h] = 0`: those that keep R_a when switched on.

    Differences get `g_u(u) + g_v(v)`; Hadamard of depth 2, Square, Gram and MatrixProduct their weight decay; Quadratic
    a basis of all symmetric G_0 that commute with every G_i, the identity first and the others of trace 0 (decay along
    a combination is contracting where the combination is positive semidefinite: add enough of the identity).
    Multiples, and sums with linear functions of x, are admissible too and not listed.

    **Arguments:** `g`: a reparameterization with concrete numbers.
    **Returns:** a list of `Admissible`, never empty.
    **Raises:** `ValueError` for a g that is no reparameterization, and, saying why, for one for which the theory names
    none: Linear, Custom, Hadamard of another depth than 2, a Quadratic whose matrices do not commute, or one too large
    for its null space.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12, Theorem 3.15, Corollary D.1, Theorem D.2.
    """
    require_kind(g, AbstractReparameterization, "g", "a reparameterization such as Hadamard(), or Custom(fn)")
    forms = g.quadratic_forms
    if forms is not None:
        return _commutant(forms)
    condition, source = g.admission()
    return [Admissible(regularizer=Compatible(g=g), condition=condition, source=source)]


def _commutant(G: Float[Array, "d D D"]) -> list[Admissible]:
    """A basis of the symmetric G_0 with `G_0 G_i = G_i G_0` for every i, by the null space of that linear map."""
    side = G.shape[-1]
    if not G.size:
        raise ValueError(f"g needs at least one matrix with entries, got G of shape {G.shape}")
    if not is_concrete(G):
        raise ValueError("the commutant's dimension depends on the numbers in G: call this outside jit, vmap and grad")
    if side > _LARGEST:
        raise ValueError(f"the commutant is computed for matrices of up to {_LARGEST} rows, got {side}")
    tolerance = 100 * float(jnp.finfo(G.dtype).eps) * side
    known = np.asarray(G)
    worst = largest_known_commutator(known, 2)[0] / 2
    if worst > tolerance:
        raise ValueError(
            f"the matrices of this Quadratic do not commute (largest normalised commutator {worst:.3g}): "
            "no regularizer gives it an R_a (Theorem 3.15)"
        )
    matrices = [np.eye(side, dtype=known.dtype), *_traceless_commutant(known, tolerance)]
    condition = "contracting where G_0 is positive semidefinite, on its own or in a combination"
    return [Admissible(QuadraticForm(as_float(G0, "G0")), condition, "Theorem 3.15") for G0 in matrices]


def _traceless_commutant(G: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """An orthonormal basis of the symmetric matrices of trace 0 that commute with every G_i.

    It computes with NumPy, since JAX would compile each operation for every shape of G.
    """
    side = G.shape[-1]
    basis = _symmetric_basis(side, G.dtype)
    # One matrix at a time, keeping a triangular factor of all so far: the null space is the same.
    stacked = np.einsum("kij,ij->k", basis, np.eye(side, dtype=G.dtype))[None]
    for matrix in G:
        size = np.linalg.norm(matrix, ord=2)
        product = basis @ (matrix / (size or 1.0))
        brackets = (product - np.swapaxes(product, 1, 2)).reshape(len(basis), -1)
        stacked = np.linalg.qr(np.concatenate([stacked, brackets.T]), mode="r")
    _, values, vectors = np.linalg.svd(stacked, full_matrices=True)
    values = np.pad(values, (0, len(basis) - values.size))
    matrices = np.einsum("nk,kij->nij", vectors[values <= tolerance * values[0]], basis)
    return [(matrix + matrix.T) / 2 for matrix in matrices]


def _symmetric_basis(side: int, dtype: np.dtype) -> np.ndarray:
    """Orthonormal symmetric matrices: `(E_ij + E_ji)/sqrt2` and `E_ii`."""
    rows, columns = np.triu_indices(side)
    basis = np.zeros((rows.size, side, side))
    size = np.where(rows == columns, 1.0, 1 / np.sqrt(2))
    basis[np.arange(rows.size), rows, columns] = size
    basis[np.arange(rows.size), columns, rows] = size
    return basis.astype(dtype)
