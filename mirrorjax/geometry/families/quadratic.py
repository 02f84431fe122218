"""R_a of quadratic forms x_i = w^T G_i w / 2 with commuting matrices: one common eigenbasis, then scalars."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...checks import freeze, is_concrete
from ...problem import Quadratic, QuadraticForm, WeightDecay
from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..base import AbstractLegendre
from ..commutators import largest_commutator, largest_known_commutator
from ..divergence import tie_divergence
from ..newton import Minimum, convex_minimum, solve_spd
from ..points import Recovered, Strength
from ..registry import register_legendre
from .separable import scaled_strength
from .stable import exp_excess

Vector = Float[Array, " d"]


class QuadraticLegendre(AbstractLegendre):
    """`Q_a(mu) = |psi|^2 / 4`, `psi = V exp(Lambda^T mu + a lambda_0) V^T w0`, for `x_i = w^T G_i w / 2`.

    h = w^T G_0 w / 2, and `G_i = V diag(Lambda_i) V^T`, `G_0 = V diag(lambda_0) V^T` in one orthonormal basis V. With
    `omega = V^T psi`: `grad Q_a(mu) = Lambda omega^2 / 2`, `J J^T = Lambda diag(omega^2) Lambda^T`. grad R_a has no
    formula; it is found by damped Newton on the convex function `mu -> Q_a(mu) - <mu, x>`, which has no minimum where x
    is outside the open cone spanned by the columns of Lambda (status `not_converged`). Contracting iff G_0 >= 0.

    Derivatives with respect to mu, x, a and w0 (and a scalar `G0`) are exact. Those with respect to G, or a matrix G0,
    are refused: a generic change of G breaks commutation, and R_a with it.

    **Arguments:** `G` (d, D, D): symmetric, commuting; `G0`: (D, D), commuting with them, or a scalar for that multiple
    of the identity (2c for weight decay); `w0` (D,): the initial weights.
    **Raises:** `ValueError` when two of the matrices do not commute, or the d directions G_i w0 are dependent.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.15.
    """

    basis: Float[Array, "D D"]
    rates: Float[Array, "d D"]
    decay: Float[Array, " D"]
    omega0: Float[Array, " D"]

    def __init__(self, G: Float[Array, "d D D"], G0: Float[Array, "..."], w0: Float[Array, " D"]):
        matrices = G if G0.ndim == 0 else jnp.concatenate([G, G0[None]])
        matrices = _require_commuting(matrices, len(G))
        self.basis, eigenvalues = common_eigenbasis(matrices)
        self.rates = eigenvalues[: len(G)]
        flat = jnp.broadcast_to(G0, w0.shape) if G0.ndim == 0 else eigenvalues[-1]
        self.decay = flat.astype(w0.dtype)
        self.omega0 = self.basis.T @ w0
        if is_concrete(G, w0):
            rank = int(jnp.linalg.matrix_rank(self.rates * self.omega0[None, :]))
            if rank < len(G):
                raise ValueError(
                    f"R_a needs the {len(G)} directions G_i w0 to be independent, they have rank {rank}: drop "
                    "dependent G_i, or start from weights with a part in every joint eigenspace"
                )

    def _omega(self, mu: Vector, a: Strength) -> Float[Array, " D"]:
        # In two halves: the exponential overflows later than omega where omega0 is tiny.
        half = jnp.exp((mu @ self.rates + scaled_strength(1.0, a, mu) * self.decay) / 2)
        return half * self.omega0 * half

    def weights_at(self, mu: Vector, a: Strength) -> Weights:
        return self.basis @ self._omega(mu, a)

    def potential_at(self, mu: Vector, a: Strength) -> Float[Array, ""]:
        return jnp.sum(self._omega(mu, a) ** 2) / 4

    def primal_at(self, mu: Vector, a: Strength) -> Recovered:
        x = self._primal(mu, a)
        finite = jnp.all(jnp.isfinite(mu))
        result = select(jnp.all(jnp.isfinite(x)), RESULTS.successful, RESULTS.diverged)
        return Recovered(x, select(finite, result, RESULTS.outside_dual_interval))

    def _primal(self, mu: Vector, a: Strength) -> Vector:
        return self.rates @ self._omega(mu, a) ** 2 / 2

    def metric_vector_at(self, mu: Vector, v: Vector, a: Strength) -> Vector:
        return self.rates @ (self._omega(mu, a) ** 2 * (v @ self.rates))

    def dual_interval_at(self, a: Strength) -> tuple[Vector, Vector]:
        like = self.rates[:, 0]
        return jnp.full_like(like, -jnp.inf), jnp.full_like(like, jnp.inf)

    def point_like(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.rates.shape[:1], self.rates.dtype)

    def dual_at(self, x: Vector, a: Strength) -> Recovered:
        finite = jnp.all(jnp.isfinite(x))
        safe = jnp.where(finite, x, self._primal(jnp.zeros_like(x), 0.0))
        minimum = _recover(self, safe, jnp.asarray(a))
        result = select(finite, minimum.result, RESULTS.outside_range)
        return Recovered(jnp.where(finite, minimum.value, jnp.nan), result)

    def bregman_at(self, x: Vector, z: Vector, mu_x: Vector, mu_z: Vector, a: Strength) -> Float[Array, ""]:
        """`D_a(x, z) = sum omega_x^2 (e^-d - 1 + d)/4` at `d = 2 Lambda^T (mu_x - mu_z)`: no term is negative."""
        R, x_, z_, mu_x_, mu_z_, a_ = freeze((self, x, z, mu_x, mu_z, a))
        at_x, at_z = R._omega(mu_x_, a_) ** 2, R._omega(mu_z_, a_) ** 2
        # Newton's method on `x - z = Lambda omega_z^2 (e^d - 1)/2`, where nothing cancels, from the difference.
        rise = mu_x_ - mu_z_
        for _ in range(2):
            missed = (x_ - z_) - R.rates @ (at_z * jnp.expm1(2 * rise @ R.rates)) / 2
            better = rise + solve_spd((R.rates * at_x[None, :]) @ R.rates.T, missed)
            rise = jnp.where(jnp.all(jnp.isfinite(better)), better, rise)
        gap = 2 * rise @ R.rates
        # Far apart e^-d may exceed the floats, omega_z does not.
        near = jnp.abs(gap) < 1
        close, far = at_x * exp_excess(-jnp.where(near, gap, 0.0)), at_z - at_x * (1 - gap)
        value = jnp.sum(jnp.where(near, close, far)) / 4
        return tie_divergence(value, rise, self, (x, z, mu_x, mu_z), a)

    def _metric(self, mu: Vector, a: Strength) -> Float[Array, "d d"]:
        return (self.rates * self._omega(mu, a)[None, :] ** 2) @ self.rates.T

    def _balanced(self, a: Strength) -> Vector:
        """A start at which the exponents `Lambda^T mu + a lambda_0` are as small as mu can make them."""
        target = -scaled_strength(1.0, a, self.decay) * self.decay
        return jax.lax.stop_gradient(jnp.linalg.lstsq(self.rates.T, target)[0])


@jax.custom_jvp
def common_eigenbasis(matrices: Float[Array, "k n n"]) -> tuple[Float[Array, "n n"], Float[Array, "k n"]]:
    """An orthonormal V and eigenvalues with `matrices[i] = V diag(eigenvalues[i]) V^T`, for a commuting stack.

    Eigenvectors of generic linear combinations, the best of eight seeded ones: in one of them two joint eigenspaces
    can come too close to tell apart. Differentiating it raises: a generic change of the matrices breaks commutation.
    """
    return _common_eigenbasis(matrices)


@common_eigenbasis.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "R_a is not differentiable with respect to the matrices G_i or G0: a generic change of them breaks "
        "commutation, and then there is no R_a. Differentiate with respect to mu, x, a or w0, or the flow instead."
    )


@jax.jit  # one program, where each operation would be compiled by itself
def _common_eigenbasis(matrices: Float[Array, "k n n"]) -> tuple[Float[Array, "n n"], Float[Array, "k n"]]:
    norms = jnp.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    scaled = matrices / jnp.where(norms == 0, 1.0, norms)
    coefficients = jax.random.normal(jax.random.key(0), (8, len(matrices)), matrices.dtype)
    _, bases = jnp.linalg.eigh(jnp.einsum("bk,kij->bij", coefficients, scaled))
    rotated = jnp.einsum("bji,kjl,blm->bkim", bases, scaled, bases)
    off_diagonal = rotated * (1 - jnp.eye(matrices.shape[-1], dtype=matrices.dtype))[None, None]
    best = jnp.argmin(jnp.sum(off_diagonal**2, axis=(1, 2, 3)))
    return bases[best], jnp.diagonal(rotated[best], axis1=1, axis2=2) * norms[:, :, 0]


def _require_commuting(matrices: Float[Array, "k n n"], d: int) -> Float[Array, "k n n"]:
    """The matrices; a `ValueError` when two do not commute, or an error at run time when they are traced."""
    tolerance = float(jnp.finfo(matrices.dtype).eps) ** 0.75  # far above rounding, far below any error that shows
    advice = "R_a of Quadratic needs matrices that commute pairwise; without that only the primal flow is defined"
    if not is_concrete(matrices):
        return eqx.error_if(matrices, largest_commutator(matrices)[0] > tolerance, advice)
    size, first, second = largest_known_commutator(np.asarray(matrices), "fro")
    if size > tolerance:
        names = ["G0" if i == d else f"G[{i}]" for i in (first, second)]
        raise ValueError(
            f"{advice}: |AB - BA| = {size:.3g} |A||B| for A = {names[0]}, B = {names[1]}, above {tolerance:.1g}"
        )
    return matrices


@eqx.filter_jit  # so that a call outside jit does not compile the search anew
def _recover(R: QuadraticLegendre, x: Vector, a: Float[Array, ""]) -> Minimum:
    """`argmin_mu Q_a(mu) - <mu, x>`, which is grad R_a(x)."""
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.75  # the step after is its square: rounding

    def search(R: QuadraticLegendre, x: Vector, a: Float[Array, ""], start: Vector) -> Minimum:
        return convex_minimum(
            lambda mu, args: args[0].potential_at(mu, args[2]) - mu @ args[1],
            start,
            (R, x, a),
            gradient=lambda mu, args: args[0]._primal(mu, args[2]) - args[1],
            hessian=lambda mu, args: args[0]._metric(mu, args[2]),
            rtol=tolerance,
            atol=tolerance,
            max_steps=500,
        )

    # The exponents Lambda^T mu + a lambda_0 move by 1 a Newton step at most. So a is doubled from where all of them are
    # of order 1, and mu with it: the exponents that x depends on are of order 1 in every solution and stay so, the
    # others only fall further.
    frozen, point, strength = freeze((R, x, a))
    doublings = jnp.ceil(jnp.log2(jnp.maximum(jnp.max(jnp.abs(strength * frozen.decay)), 1.0)))

    def double(stage: Float[Array, ""], mu: Vector) -> Vector:
        found = search(frozen, point, strength * 2.0 ** (stage - doublings), mu)
        return 2 * jnp.where(found.result == RESULTS.successful, found.value, mu)

    first = frozen._balanced(strength * 2.0**-doublings)
    start = jax.lax.fori_loop(0, doublings.astype(int), lambda i, mu: double(i.astype(mu.dtype), mu), first)
    return search(R, x, a, jax.lax.stop_gradient(start))


def _quadratic_form(g: Quadratic, h: QuadraticForm, w0: Weights) -> QuadraticLegendre:
    return QuadraticLegendre(g.G, h.G0, w0)


def _weight_decay(g: Quadratic, h: WeightDecay, w0: Weights) -> QuadraticLegendre:
    return QuadraticLegendre(g.G, 2 * h.scale, w0)


register_legendre(Quadratic, QuadraticForm, _quadratic_form)
register_legendre(Quadratic, WeightDecay, _weight_decay)
