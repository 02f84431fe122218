"""R_a of matrices under commuting or aligned data, and spectral functions with derivatives that survive ties.

These forms hold only where everything that moves X commutes (X = U U^T) or shares its singular vectors (X = K^T Q,
A B). Other measurements have no R_a, only the primal flow. `commutators.largest_commutator`
measures whether they commute.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...checks import Number, as_float, as_scalar, is_concrete, require_finite
from ...problem.reparam import Weights
from ...results import RESULTS, first_failure, select
from ..base import AbstractLegendre
from ..commutators import frobenius_commutator, largest_commutator
from ..points import Recovered, Strength
from .hyperbolic import HadamardLegendre
from .separable import scaled_strength

Matrix = Float[Array, "n n"]


@jax.custom_jvp
def _eigh(X: Matrix) -> tuple[Float[Array, " n"], Matrix]:
    return jnp.linalg.eigh(X)


@_eigh.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "symmetric_log and symmetric_exp are differentiable once (so R_a twice): through eigenvectors a further "
        "derivative is wrong at equal eigenvalues"
    )


@jax.custom_jvp
def symmetric_exp(X: Matrix) -> Matrix:
    """`exp(X)` of a symmetric matrix; its derivative is by divided differences (Daleckii-Krein), right at ties."""
    eigenvalues, V = _eigh(X)
    return (V * jnp.exp(eigenvalues)[None, :]) @ V.T


@symmetric_exp.defjvp
def _symmetric_exp_jvp(primals: tuple[Matrix], tangents: tuple[Matrix]) -> tuple[Matrix, Matrix]:
    eigenvalues, V = _eigh(primals[0])
    mean, half = _pairs(eigenvalues)
    # exp[a, b] = e^{(a + b)/2} sinh(d)/d with d = (a - b)/2.
    safe = jnp.where(half == 0, 1.0, half)
    far = (jnp.exp(mean + safe) - jnp.exp(mean - safe)) / (2 * safe)
    near = jnp.exp(mean) * jnp.where(half == 0, 1.0, jnp.sinh(jnp.clip(safe, -1, 1)) / jnp.clip(safe, -1, 1))
    differences = jnp.where(jnp.abs(half) < 1, near, far)
    return (V * jnp.exp(eigenvalues)[None, :]) @ V.T, _rotate(V, differences, tangents[0])


@jax.custom_jvp
def symmetric_log(X: Matrix) -> Matrix:
    """`log(X)` of a positive definite matrix; its derivative is by divided differences (Daleckii-Krein), right at ties.

    NaN where an eigenvalue is not positive.
    """
    eigenvalues, V = _eigh(X)
    return (V * _safe_log(eigenvalues)[None, :]) @ V.T


@symmetric_log.defjvp
def _symmetric_log_jvp(primals: tuple[Matrix], tangents: tuple[Matrix]) -> tuple[Matrix, Matrix]:
    eigenvalues, V = _eigh(primals[0])
    logs = _safe_log(eigenvalues)
    mean, half = _pairs(eigenvalues)
    # log[a, b] = artanh(r)/(r m) with m = (a + b)/2, r = (a - b)/(a + b); a plain difference where they are far apart.
    ratio = half / mean
    near = jnp.abs(ratio) < 0.5
    small = jnp.where(near & (ratio != 0), ratio, 0.25)
    differences = jnp.where(
        near,
        jnp.where(ratio == 0, 1.0, jnp.arctanh(small) / small) / mean,
        (logs[:, None] - logs[None, :]) / (2 * jnp.where(near, 1.0, half)),
    )
    return (V * logs[None, :]) @ V.T, _rotate(V, differences, tangents[0])


def _safe_log(eigenvalues: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.where(eigenvalues > 0, jnp.log(jnp.where(eigenvalues > 0, eigenvalues, 1.0)), jnp.nan)


def _pairs(eigenvalues: Float[Array, " n"]) -> tuple[Matrix, Matrix]:
    """Half the sum and half the difference of each pair."""
    row, column = eigenvalues[:, None], eigenvalues[None, :]
    return (row + column) / 2, (row - column) / 2


def _rotate(V: Matrix, differences: Matrix, change: Matrix) -> Matrix:
    """`V (F * (V^T sym(dX) V)) V^T`: only the symmetric part of a change acts, as in the value."""
    return V @ (differences * (V.T @ ((change + change.T) / 2) @ V)) @ V.T


def _half_the_digits(like: Array) -> float:
    """The tolerance of being commuting or aligned: points of an integrated flow carry its error."""
    return float(jnp.finfo(like.dtype).eps) ** 0.5


def _as_matrix(value: Any, name: str) -> Float[Array, "n m"]:
    """Converts to a matrix. Raises `ValueError`, with the name, for another shape or an entry that is not finite."""
    matrix = as_float(value, name)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} must be a matrix, got shape {matrix.shape}")
    require_finite(matrix, name)
    return matrix


def _as_scale(scale: Number) -> Float[Array, ""]:
    scale = as_scalar(scale, "scale")
    require_finite(scale, "scale")
    return scale


def _commutes(A: Matrix, B: Matrix) -> Bool[Array, ""]:
    return frobenius_commutator(*jax.lax.stop_gradient((A, B))) <= _half_the_digits(A)


@eqx.filter_jit
def _rows_hold(R: AbstractLegendre, rows: Float[Array, "k n m"]) -> Bool[Array, ""]:
    return jnp.all(jax.vmap(lambda row: R.primal_at(row, 0.0).ok)(rows))


def _require_rows_that_hold(R: AbstractLegendre, rows: Float[Array, "k n m"]) -> None:
    """Raises `ValueError` unless each sensing matrix commutes, or is aligned, with the initial weights."""
    if not bool(_rows_hold(R, rows)):
        raise ValueError(
            f"{type(R).__name__} does not hold for these sensing matrices: one of them does not commute, or is not "
            "aligned, with the initial weights; only the primal flow is defined"
        )


class SpectralGram(AbstractLegendre):
    """`R_a(X) = tr(X (log X - log X0) - X)/4 - c a tr X` for X = U U^T positive definite, h = c |U|_F^2.

    **Valid only where mu_t and X0 = U0 U0^T commute for all t**: measurements A_i that commute pairwise and with X0
    (`mirrorjax.predict_limit` checks this). A point that does not commute with X0 is refused with a
    status; one point cannot show that two measurements do not commute. The eigenvalues follow the Square form:
    `grad R_a(X) = (log X - log X0)/4 - c a I`, `grad Q_a(mu) = exp(4 mu + 4ca I + log X0)`, `Q_a = tr X / 4`,
    `psi = exp(2 mu + 2ca I) U0`. All matrices are symmetric, and only the symmetric part of an argument acts.

    **Arguments:** `U0` (n, r): initial weights of rank n; `scale`: c.
    **Raises:** `ValueError` where U0 U0^T is singular, or an argument is not of its kind.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (17).
    """

    U0: Float[Array, "n r"]
    scale: Float[Array, ""]

    def __init__(self, U0: Float[Array, "n r"], scale: Number):
        self.U0 = _as_matrix(U0, "U0")
        self.scale = _as_scale(scale)
        if not is_concrete(self.U0):
            return
        sizes = jnp.linalg.svd(self.U0, compute_uv=False)
        n, floor = self.U0.shape[0], float(jnp.finfo(self.U0.dtype).eps) * max(self.U0.shape)
        if len(sizes) < n or not bool(sizes[-1] > floor * sizes[0]):
            raise ValueError(
                f"SpectralGram needs U0 U0^T positive definite, but U0 {self.U0.shape} has singular values from "
                f"{float(sizes[-1]):.3g} to {float(sizes[0]):.3g}: start from U0 of rank {n}, such as a multiple of I"
            )

    def _X0(self) -> Matrix:
        return self.U0 @ self.U0.T

    def _ca(self, a: Strength) -> Matrix:
        return scaled_strength(self.scale, a, self.U0) * jnp.eye(self.U0.shape[0], dtype=self.U0.dtype)

    def _primal(self, mu: Matrix, a: Strength) -> Matrix:
        return symmetric_exp(4 * (mu + self._ca(a)) + symmetric_log(self._X0()))

    def weights_at(self, mu: Matrix, a: Strength) -> Weights:
        U = symmetric_exp(2 * (mu + self._ca(a))) @ self.U0
        return jnp.where(_commutes(mu, self._X0()), U, jnp.nan)

    def potential_at(self, mu: Matrix, a: Strength) -> Float[Array, ""]:
        return jnp.trace(self._primal(mu, a)) / 4

    def primal_at(self, mu: Matrix, a: Strength) -> Recovered:
        inside = jnp.all(jnp.isfinite(mu)) & _commutes(mu, self._X0())
        X = self._primal(jnp.where(inside, mu, 0.0), a)
        result = select(jnp.all(jnp.isfinite(X)), RESULTS.successful, RESULTS.diverged)
        return Recovered(jnp.where(inside, X, jnp.nan), select(inside, result, RESULTS.outside_dual_interval))

    def dual_at(self, x: Matrix, a: Strength) -> Recovered:
        X0 = self._X0()
        inside = jnp.all(jnp.isfinite(x)) & _commutes(x, X0)
        eigenvalues = jnp.linalg.eigvalsh(jax.lax.stop_gradient(jnp.where(inside, x, X0)))
        inside &= eigenvalues[0] > len(x) * jnp.finfo(x.dtype).eps * eigenvalues[-1]  # definite beyond rounding
        mu = (symmetric_log(jnp.where(inside, x, X0)) - symmetric_log(X0)) / 4 - self._ca(a)
        return Recovered(jnp.where(inside, mu, jnp.nan), select(inside, RESULTS.successful, RESULTS.outside_range))

    def metric_vector_at(self, mu: Matrix, v: Matrix, a: Strength) -> Matrix:
        return jax.jvp(lambda mu: self._primal(mu, a), (mu,), (v,))[1]

    def hessian_at(self, x: Matrix, mu: Matrix, a: Strength) -> Float[Array, "n n n n"]:
        """`Hess R_a(X)` as a map on symmetric matrices, of shape (n, n, n, n)."""
        return jax.jacfwd(lambda x: self.dual_at(x, a).value)(x)

    def dual_interval_at(self, a: Strength) -> tuple[Matrix, Matrix]:
        like = self._X0()
        return jnp.full_like(like, -jnp.inf), jnp.full_like(like, jnp.inf)

    def check_measurements(self, rows: Float[Array, "k n n"]) -> None:
        """Raises `ValueError` unless the sensing matrices commute with X0 and pairwise."""
        _require_rows_that_hold(self, rows)
        size, first, second = largest_commutator(rows)
        if float(size) > _half_the_digits(rows):
            raise ValueError(
                f"SpectralGram needs sensing matrices that commute pairwise, but |AB - BA| = {float(size):.3g} |A||B| "
                f"for A[{int(first)}] and A[{int(second)}]; only the primal flow is defined"
            )

    def point_like(self) -> jax.ShapeDtypeStruct:
        n = self.U0.shape[0]
        return jax.ShapeDtypeStruct((n, n), self.U0.dtype)

    def minimizer_at(self, a: Strength) -> Recovered:
        X = jnp.exp(4 * scaled_strength(self.scale, a, self.U0)) * self._X0()
        return Recovered(X, RESULTS.successful)


class SpectralProduct(AbstractLegendre):
    """R_a of Hadamard, on singular values: X = L diag(x) R^T for X = K^T Q or A B, h = c (|K|_F^2 + |Q|_F^2).

    **Valid only for aligned data**: fixed frames L (n, d) and R (m, d) with orthonormal columns such that every
    gradient of f has the form L diag(.) R^T, and initial factors `K0 = P diag(m0) L^T`, `Q0 = P diag(w0) R^T` (for A B,
    `A0 = L diag(m0) P^T`, `B0 = P diag(w0) R^T`) with orthonormal columns of P. The diagonals then follow the Hadamard
    form: Frobenius -> nuclear. An X or mu with a part off the frames is refused with a status.

    **Arguments:** `first`, `second`: K0 (r, n), Q0 (r, m), or A0 (n, r), B0 (r, m) with `transpose=False`; `left`,
    `right`: L and R; `scale`: c.
    **Raises:** `ValueError` where the initial factors are not aligned with the frames, or an argument is not of its
    kind or shape.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 5, Eq. (9).
    """

    left: Float[Array, "n d"]
    right: Float[Array, "m d"]
    middle: Float[Array, "r d"]
    diagonal: HadamardLegendre
    transpose: bool = eqx.field(static=True)  # static: it fixes the shapes of the weights

    def __init__(
        self,
        first: Float[Array, "..."],
        second: Float[Array, "..."],
        left: Float[Array, "n d"],
        right: Float[Array, "m d"],
        scale: Number,
        transpose: bool = True,
    ):
        first, second = _as_matrix(first, "first"), _as_matrix(second, "second")
        left, right = _as_matrix(left, "left"), _as_matrix(right, "right")
        K, Q = (first if transpose else first.T), second
        if len(K) != len(Q) or K.shape[1] != len(left) or Q.shape[1] != len(right) or left.shape[1] != right.shape[1]:
            raise ValueError(
                "SpectralProduct needs first (r, n), second (r, m), left (n, d) and right (m, d), or first (n, r) with "
                f"transpose=False; got first {first.shape}, second {second.shape}, left {left.shape}, right "
                f"{right.shape} with transpose={transpose}"
            )
        columns, others = K @ left, Q @ right
        larger = jnp.where((jnp.sum(columns**2, axis=0) >= jnp.sum(others**2, axis=0))[None, :], columns, others)
        self.left, self.right, self.transpose = left, right, transpose
        self.middle = larger / jnp.linalg.norm(larger, axis=0, keepdims=True)
        m0, w0 = jnp.sum(self.middle * columns, axis=0), jnp.sum(self.middle * others, axis=0)
        self.diagonal = HadamardLegendre(m0, w0, _as_scale(scale))
        if is_concrete(K, Q, left, right):
            self._refuse_unaligned(K, Q)

    def _refuse_unaligned(self, K: Float[Array, "r n"], Q: Float[Array, "r m"]) -> None:
        m0, w0 = self.diagonal.m0, self.diagonal.w0
        identity = jnp.eye(len(m0), dtype=m0.dtype)
        gaps = {
            "the frame `left` from orthonormal": self.left.T @ self.left - identity,
            "the frame `right` from orthonormal": self.right.T @ self.right - identity,
            "the common frame P from orthonormal": self.middle.T @ self.middle - identity,
            "the first factor from P diag(m0) L^T": (K - (self.middle * m0[None, :]) @ self.left.T)
            / jnp.linalg.norm(K),
            "the second factor from P diag(w0) R^T": (Q - (self.middle * w0[None, :]) @ self.right.T)
            / jnp.linalg.norm(Q),
        }
        for what, gap in gaps.items():
            distance = float(jnp.linalg.norm(jnp.nan_to_num(gap, nan=0.0)))
            if not distance <= _half_the_digits(m0):
                raise ValueError(
                    f"SpectralProduct needs factors aligned with its frames; the distance of {what} is {distance:.3g}. "
                    "Without alignment there is no R_a, only the primal flow"
                )

    def _read(self, X: Float[Array, "n m"]) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """The diagonal of X in the frames, and True if X has no other part."""
        x = jnp.sum(self.left * (X @ self.right), axis=0)
        distance = jnp.linalg.norm(jax.lax.stop_gradient(X - self._place(x)))
        return x, distance <= _half_the_digits(X) * jnp.linalg.norm(jax.lax.stop_gradient(X))

    def _place(self, x: Float[Array, " d"]) -> Float[Array, "n m"]:
        return (self.left * x[None, :]) @ self.right.T

    def weights_at(self, mu: Float[Array, "n m"], a: Strength) -> Weights:
        z, aligned = self._read(mu)
        m, w = self.diagonal.weights_at(z, a)
        K, Q = (self.middle * m[None, :]) @ self.left.T, (self.middle * w[None, :]) @ self.right.T
        K, Q = jnp.where(aligned, K, jnp.nan), jnp.where(aligned, Q, jnp.nan)
        return (K if self.transpose else K.T), Q

    def potential_at(self, mu: Float[Array, "n m"], a: Strength) -> Float[Array, ""]:
        return self.diagonal.potential_at(self._read(mu)[0], a)

    def primal_at(self, mu: Float[Array, "n m"], a: Strength) -> Recovered:
        z, aligned = self._read(mu)
        return self._placed(self.diagonal.primal_at(z, a), aligned, RESULTS.outside_dual_interval)

    def dual_at(self, x: Float[Array, "n m"], a: Strength) -> Recovered:
        z, aligned = self._read(x)
        return self._placed(self.diagonal.dual_at(z, a), aligned, RESULTS.outside_range)

    def _placed(self, recovered: Recovered, aligned: Bool[Array, ""], otherwise: RESULTS) -> Recovered:
        """The matrix of a diagonal, with one status: the first that is not success."""
        first = first_failure(recovered.result)
        value = jnp.where(aligned, self._place(recovered.value), jnp.nan)
        return Recovered(value, select(aligned, first, otherwise))

    def metric_vector_at(self, mu: Float[Array, "n m"], v: Float[Array, "n m"], a: Strength) -> Float[Array, "n m"]:
        """`Hess Q_a(mu)` on the aligned part of v; directions off the frames are not part of this geometry."""
        return self._place(self.diagonal.metric_vector_at(self._read(mu)[0], self._read(v)[0], a))

    def hessian_at(self, x: Float[Array, "n m"], mu: Float[Array, "n m"], a: Strength) -> Float[Array, "n m n m"]:
        """`Hess R_a(X)` on aligned directions, 0 on the others, of shape (n, m, n, m)."""
        return jax.jacfwd(lambda x: self.dual_at(x, a).value)(x)

    def bregman_at(
        self,
        x: Float[Array, "n m"],
        z: Float[Array, "n m"],
        mu_x: Float[Array, "n m"],
        mu_z: Float[Array, "n m"],
        a: Strength,
    ) -> Float[Array, ""]:
        """`D_a(X, Z)`, of the diagonals."""
        x, z, mu_x, mu_z = (self._read(point)[0] for point in (x, z, mu_x, mu_z))
        return self.diagonal.bregman_at(x, z, mu_x, mu_z, a)

    def dual_interval_at(self, a: Strength) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
        like = self._place(self.diagonal.m0)
        return jnp.full_like(like, -jnp.inf), jnp.full_like(like, jnp.inf)

    def check_measurements(self, rows: Float[Array, "k n m"]) -> None:
        """Raises `ValueError` unless the sensing matrices are diagonal in the frames."""
        _require_rows_that_hold(self, rows)

    def point_like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(self.left), len(self.right)), self.left.dtype)

    def minimizer_at(self, a: Strength) -> Recovered:
        found = self.diagonal.minimizer_at(a)
        return Recovered(self._place(found.value), first_failure(found.result))
