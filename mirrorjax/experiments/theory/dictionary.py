"""Dictionaries for sparse coding, `y = D x`, the Lasso, and matching pursuit; the door to scikit-learn.

`f(x) = |y - D x|^2 / 2` depends on the signal y (p pixels) only through `D = Q R` (Q with orthonormal columns): it is
`|Q^T y - R x|^2 / 2` plus the constant `|y - Q Q^T y|^2 / 2`. The flow therefore runs on k x k numbers for k atoms,
exactly, and never on pixels.
"""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...problem import LeastSquares

Signals = Float[np.ndarray, "n p"]
Dictionary = Float[np.ndarray, "p k"]
Codes = Float[np.ndarray, "n k"]
NONZERO = 1e-6  # a code below this counts as zero: a flow reaches zero only in the limit


class Reduced(eqx.Module):
    """Signals in the span of a dictionary: `R` (k, k), `targets` Q^T y (n, k), and what no code can reach.

    `missed` (n,) is `|y - Q Q^T y|^2`; `pixels` the length p of a signal.
    """

    R: Float[Array, "k k"]
    targets: Float[Array, "n k"]
    missed: Float[Array, " n"]
    pixels: int = eqx.field(static=True)  # static: a size

    @property
    def atoms(self) -> int:
        return self.R.shape[1]

    def objective(self, target: Float[Array, " k"]) -> LeastSquares:
        """`|y - D x|^2 / 2` up to its constant, for one signal's target: `LeastSquares` divides by 2k, undone here."""
        root = jnp.sqrt(jnp.asarray(self.atoms, self.R.dtype))
        return LeastSquares(root * self.R, root * target)

    def mean_squared_error(self, codes: Float[np.ndarray, "... n k"]) -> Float[np.ndarray, "..."]:
        """`|y - D x|^2 / p`, the mean over pixels and over the n signals of the codes."""
        residual = np.asarray(codes) @ np.asarray(self.R).T - np.asarray(self.targets)
        total = np.sum(residual**2, axis=(-2, -1)) + np.sum(np.asarray(self.missed))
        return np.asarray(total / (self.missed.size * self.pixels))


def reduce(signals: Signals, dictionary: Float[np.ndarray, "rows k"]) -> Reduced:
    """The least-squares problems of these signals on this dictionary, in the coordinates of its QR factorization.

    **Arguments:** `signals` (n, p), one a row; `dictionary` (p, k), one atom a column, k <= p.
    **Raises:** `ValueError` when their sizes disagree, or there are more atoms than pixels.
    """
    if signals.ndim != 2 or dictionary.ndim != 2 or dictionary.shape[0] != signals.shape[1]:
        raise ValueError(
            f"signals of shape {signals.shape} need a dictionary with {signals.shape[-1]} rows, one a pixel, and one "
            f"column an atom; got {dictionary.shape}"
        )
    if dictionary.shape[1] > dictionary.shape[0]:
        raise ValueError(f"the dictionary has {dictionary.shape[1]} atoms for {dictionary.shape[0]} pixels; use fewer")
    Q, R = np.linalg.qr(dictionary)
    targets = signals @ Q
    missed = np.sum((signals - targets @ Q.T) ** 2, axis=1)
    return Reduced(jnp.asarray(R), jnp.asarray(targets), jnp.asarray(missed), signals.shape[1])


def center(images: Float[np.ndarray, "n height width"]) -> tuple[Signals, Float[np.ndarray, "n 1"]]:
    """Each face minus its mean, flat, in double precision; and the means."""
    flat = images.reshape(len(images), -1).astype(float)
    means = flat.mean(axis=1, keepdims=True)
    return flat - means, means


def take(reduced: Reduced, count: int) -> Reduced:
    """The first signals alone."""
    kept = reduced.targets[:count], reduced.missed[:count]
    return eqx.tree_at(lambda r: (r.targets, r.missed), reduced, kept)


def learn_dictionary(signals: Signals, atoms: int, seed: int) -> Dictionary:
    """A dictionary of unit-norm atoms by scikit-learn's `MiniBatchDictionaryLearning`, penalty 1, twenty passes.

    **Arguments:** `signals` (n, p); `atoms`: k; `seed`: of its mini-batches.
    **Returns:** (p, k), one atom a column.
    **Raises:** `ValueError` when scikit-learn is not installed.
    """
    decomposition, _ = _scikit_learn()
    learner = decomposition.MiniBatchDictionaryLearning(
        n_components=atoms, alpha=1.0, batch_size=32, max_iter=20, random_state=seed
    )
    columns = learner.fit(signals).components_.T
    return columns / np.linalg.norm(columns, axis=0)


def update_dictionary(signals: Signals, dictionary: Dictionary, codes: Codes) -> Dictionary:
    """One pass over the atoms: `d_j <- argmin |Y - D X|^2` over |d_j| <= 1, the others fixed; never a worse fit.

    For one atom the objective is `A_jj |d_j - z|^2` and a constant, with `z = d_j + (b_j - D a_j) / A_jj`, A = X^T X
    and B = Y^T X, so its minimum over the ball is z projected on it. Atoms that no code uses stay as they are.

    Source: Mairal, Bach, Ponce, Sapiro, "Online dictionary learning for sparse coding" (2009), Algorithm 2.
    """
    dictionary = dictionary.copy()
    A, B = codes.T @ codes, signals.T @ codes
    for j in np.flatnonzero(np.diag(A)):
        z = dictionary[:, j] + (B[:, j] - dictionary @ A[:, j]) / A[j, j]
        dictionary[:, j] = z / max(float(np.linalg.norm(z)), 1.0)
    return dictionary


def lasso(reduced: Reduced, penalty: float) -> Codes:
    """`argmin |y - D x|^2 / 2 + penalty |x|_1` of every signal, by scikit-learn's coordinate descent."""
    _, linear_model = _scikit_learn()
    # scikit-learn divides the squares by the number of rows, here k.
    solver = linear_model.Lasso(alpha=penalty / reduced.atoms, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return np.atleast_2d(solver.fit(np.asarray(reduced.R), np.asarray(reduced.targets).T).coef_)


def orthogonal_matching_pursuit(reduced: Reduced, nonzeros: int) -> Codes:
    """The greedy code of every signal with so many atoms, by scikit-learn."""
    _, linear_model = _scikit_learn()
    codes = linear_model.orthogonal_mp(np.asarray(reduced.R), np.asarray(reduced.targets).T, n_nonzero_coefs=nonzeros)
    return np.atleast_2d(codes.T)


def accuracy(reduced: Reduced, codes: Codes) -> dict[str, float]:
    """Mean squared error, and codes that are not zero a face."""
    nonzeros = float(np.mean(np.sum(np.abs(codes) > NONZERO, axis=1)))
    return {"mse": float(reduced.mean_squared_error(codes)), "nonzeros": nonzeros}


def timed(compute: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Calls `compute` and returns its result and the seconds it took."""
    start = time.perf_counter()
    return compute(*arguments), time.perf_counter() - start


def _scikit_learn() -> tuple[Any, Any]:
    """`sklearn.decomposition` and `sklearn.linear_model`, imported when they are used, since that takes a second."""
    from sklearn import decomposition, linear_model

    return decomposition, linear_model
