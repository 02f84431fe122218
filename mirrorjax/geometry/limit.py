"""predict_limit(): the end point of a flow without integrating it, and kkt_residual(), its optimality condition.

After switch-off, a flow whose objective sees x only through Z x and fits y exactly ends at `argmin R_a(x)` s.t.
`Z x = y`. The dual of that problem, `min_nu Q_a(Z^T nu) - <nu, y>`, is smooth and has no constraint, and its gradient
is the residual `Z x - y` of `x = grad Q_a(Z^T nu)`. Plain Newton fails on it: for strong decay Q_a is flat (e^{4ca})
around nu = 0 and exponential beyond. So it is solved along the path in a, from a = 0, where w0 lives.

Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..checks import (
    Number,
    Numbers,
    as_count,
    as_scalar,
    as_time_scalar,
    freeze,
    is_concrete,
    refuted,
    require_kind,
    require_nonnegative,
)
from ..problem.objective import AbstractMeasured, AbstractObjective, Logistic
from ..results import RESULTS, first_failure
from .base import AbstractLegendre, require_legendre, scalar_leak
from .newton import first_good
from .points import as_strength

Parameters = Float[Array, "..."]
Measurements = Float[Array, " n"]

_HALVINGS = 60  # of one step: from 1 to rounding
_NEAR = 0.1  # a residual below this fraction of |x| is near enough to the path to go on in a
_FAR = 0.25  # how far from the path a step in a may land


class Limit(eqx.Module):
    """The predicted end point of a flow, and how well it satisfies the two conditions that define it.

    - `x`: `argmin R_a(x)` s.t. `Z x = y`, shaped like g(w).
    - `mu`: `grad R_a(x) = Z^T nu`, shaped like x. `nu` (n,): the multipliers, those of least norm.
    - `kkt_residual`: distance of `grad R_a(x)`, evaluated at x, from range(Z^T), relative to its length.
    - `fit_residual`: distance of x from the solutions of `Z x = y`, relative to |x|.
    - `steps`: Newton steps, those along the path included.
    - `result`: a `RESULTS`; every float above is NaN unless it is successful.
    """

    x: Parameters
    mu: Parameters
    nu: Measurements
    kkt_residual: Float[Array, ""]
    fit_residual: Float[Array, ""]
    steps: Int[Array, ""]
    result: RESULTS


def predict_limit(
    R: AbstractLegendre,
    objective: AbstractObjective,
    a: Number,
    *,
    rtol: Number | None = None,
    atol: Number = 0.0,
    max_steps: int = 200,
) -> Limit:
    """`x = argmin R_a(x)` s.t. `Z x = y`: the point the flow tends to once the decay is switched off at this a.

    It is `grad Q_a(Z^T nu)` at the minimum of the convex dual `nu -> Q_a(Z^T nu) - <nu, y>`, by damped Newton with the
    Hessian `Z J J^T Z^T`, warm-started along a from 0. Vmappable, and differentiable (implicitly, forward and reverse)
    in a, in the weights that R is made of, and in Z and y. Linearly dependent rows of Z are allowed: Newton then moves
    in their span alone, and derivatives in Z and y are those of the projection of y on range(Z).

    Derivatives are NaN where `Z J J^T Z^T` is singular to rounding: when strong decay leaves x with fewer than
    rank(Z) entries above rounding, how x answers a change of y is decided by entries below it.

    **Arguments:**

    - `R`: the Legendre function of (g, h, w0).
    - `objective`: one that depends on x through `Z x` only and can be fitted exactly: `LeastSquares`, `MatrixSensing`.
    - `a`: the accumulated regularization at switch-off, a scalar <= 0.
    - `rtol`, `atol`: the distance of x from the solutions of `Z x = y` to reach, relative to |x| and absolute; `rtol`
      is eps^(3/4) unless told otherwise. What rounding of mu and a puts into x is allowed in addition, up to sqrt(eps).
    - `max_steps`: give up after so many Newton steps.

    **Returns:** a `Limit`. Its status is `outside_range` where `Z x = y` has no solution at all, `not_converged` where
    it has none that the parameterization can reach (or steps ran out), `invalid_weights`, `range_exhausted` where R_a
    does not exist, `invalid_strength` for a traced a that is positive or not finite.

    **Raises:** `ValueError` for an objective without interpolation (`Logistic`, or not a function of `Z x`), for one
    that does not fit the shape of x, for sensing matrices a spectral R does not hold for, for an R whose leak is no
    scalar, for an a that is not a finite scalar <= 0, and for tolerances or steps that are not numbers of their kind.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11.
    """
    require_legendre(R)
    scalar_leak(R, "predict_limit")
    objective = _require_interpolation(objective)
    _check_pair(R, objective)
    a = as_time_scalar(as_strength(a), "a")
    dtype = objective.y.dtype
    default = float(jnp.finfo(dtype).eps) ** 0.75
    given = as_scalar(default if rtol is None else rtol, "rtol"), as_scalar(atol, "atol")
    for tolerance, name in zip(given, ("rtol", "atol"), strict=True):
        require_nonnegative(tolerance, name, finite=True)
    tolerances = jnp.stack([tolerance.astype(dtype) for tolerance in given])
    return eqx.filter_jit(_predict)(R, objective, a, tolerances, jnp.asarray(as_count(max_steps, "max_steps")))


def kkt_residual(R: AbstractLegendre, objective: AbstractObjective, x: Numbers, a: Number) -> Array:
    """`|mu - P mu| / |mu|`, `mu = grad R_a(x)`, P the projection on range(Z^T): 0 at the limit of a flow, else up to 1.

    Norms are Euclidean (Frobenius for matrices); where mu = 0 the residual is 0. The residual ignores y. Where
    decay was so strong that entries of x underflow to 0, x no longer tells their mu: use `Limit.kkt_residual` there.

    **Arguments:** `R`; `objective`: any that depends on x through `Z x` only, `Logistic` included; `x`: any point, such
    as `sol.x[-1]`; `a`: the accumulated regularization there, such as `sol.a[-1]`.
    **Returns:** a scalar.
    **Raises:** `ValueError` for an objective that is not a function of `Z x`; like `R.mirror_map` where x is outside
    the range.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11.
    """
    require_legendre(R)
    objective = _require_measured(objective)
    _check_pair(R, objective)
    return _distance_from_rows(_whiten(objective), R.mirror_map(x, a))


def _require_measured(objective: AbstractObjective) -> AbstractMeasured:
    require_kind(objective, AbstractObjective, "objective", "an objective such as LeastSquares(Z, y)")
    if not isinstance(objective, AbstractMeasured):
        raise ValueError(
            f"{type(objective).__name__} is not known to depend on x through linear measurements Z x alone, which the "
            "limit needs: use LeastSquares or MatrixSensing, or make it an AbstractMeasured"
        )
    return objective


def _require_interpolation(objective: AbstractObjective) -> AbstractMeasured:
    objective = _require_measured(objective)
    y = objective.y
    if isinstance(objective, Logistic) or refuted(lambda: jnp.all(objective.slope(y) == 0), objective):
        raise ValueError(
            f"{type(objective).__name__} has no interpolation point: its loss is not least at Z x = y, so the flow "
            "does not end there; use LeastSquares or MatrixSensing, or kkt_residual at the end of a solved flow"
        )
    return objective


def _check_pair(R: AbstractLegendre, objective: AbstractMeasured) -> None:
    objective.check(R.point_like())
    if is_concrete(R, objective):
        R.check_measurements(_rows(objective))


def _rows(objective: AbstractMeasured) -> Float[Array, "n ..."]:
    """The rows of Z, each shaped like x."""
    n = objective.y.size
    return jax.vmap(objective.adjoint)(jnp.eye(n, dtype=objective.y.dtype))


class _Whitened(eqx.Module):
    """`Z x = y` in the form `W x = z` with orthonormal rows: `W = B Z`, `z = B y`, and zero rows beyond the rank.

    Its residual `|W x - z|` is the distance of x from the solutions, and the Hessian W M W^T as good as M allows.
    """

    W: Float[Array, "r ..."]
    z: Float[Array, " r"]
    B: Float[Array, "r n"]
    kept: Bool[Array, " r"]
    consistent: Bool[Array, ""]

    def measure(self, x: Parameters) -> Float[Array, " r"]:
        return self.W.reshape(len(self.W), -1) @ x.reshape(-1)

    def adjoint(self, r: Float[Array, " r"]) -> Parameters:
        return (r @ self.W.reshape(len(self.W), -1)).reshape(self.W.shape[1:])


def _whiten(objective: AbstractMeasured) -> _Whitened:
    rows = _rows(jax.lax.stop_gradient(objective))
    y = jax.lax.stop_gradient(objective.y)
    flat = rows.reshape(len(rows), -1)
    V, sizes, W = jnp.linalg.svd(flat, full_matrices=False)
    rounding = jnp.finfo(y.dtype).eps * max(flat.shape)
    kept = sizes > rounding * sizes[0]
    V = jnp.where(kept, V, 0.0)
    B = V.T / jnp.where(kept, sizes, 1.0)[:, None]
    missed = jnp.linalg.norm(y - V @ (V.T @ y))
    W = jnp.where(kept[:, None], W, 0.0).reshape(-1, *rows.shape[1:])
    return _Whitened(W, B @ y, B, kept, missed <= 10 * rounding * jnp.linalg.norm(y))


def _distance_from_rows(system: _Whitened, mu: Parameters) -> Float[Array, ""]:
    """`|mu - W^T W mu| / |mu|`, and 0 where mu = 0."""
    size = jnp.max(jnp.abs(mu))
    unit = mu / jnp.where(size > 0, size, 1.0)  # its squares neither overflow nor vanish
    length = jnp.linalg.norm(unit.reshape(-1))
    distance = jnp.linalg.norm((unit - system.adjoint(system.measure(unit))).reshape(-1))
    return distance / jnp.where(length > 0, length, 1.0)


def _predict(
    R: AbstractLegendre, objective: AbstractMeasured, a: Array, tolerances: Array, max_steps: Int[Array, ""]
) -> Limit:
    with jax.default_matmul_precision("highest"):
        system = _whiten(objective)
        frozen_R, frozen_a = freeze(R), jax.lax.stop_gradient(a)
        start = _initial_status(frozen_R, system, frozen_a)
        path = _follow(frozen_R, system, frozen_a, tolerances, max_steps, start == RESULTS.successful)
        result = RESULTS.where((start != RESULTS.successful) | path.converged, start, RESULTS.not_converged)
        ok = result == RESULTS.successful
        # Where there is no limit, what follows is evaluated at w0, so that its NaN reaches no derivative beside it.
        a, frozen_a = jnp.where(ok, a, 0.0), jnp.where(ok, frozen_a, 0.0)
        theta = jnp.where(ok, path.theta, 0.0)
        nu = _implicit(R, objective, system, a, theta @ system.B, ok)
        # The value of W^T theta, which has lost nothing where Z is ill-conditioned, with the derivative of Z^T nu.
        image = objective.adjoint(nu)
        mu = system.adjoint(theta) + (image - jax.lax.stop_gradient(image))
        x = R.primal_at(mu, a).value
        kkt, fit = _residuals(frozen_R, system, frozen_a, jax.lax.stop_gradient(mu), jax.lax.stop_gradient(x))
    x, mu, nu, kkt, fit = (jnp.where(ok, value, jnp.nan) for value in (x, mu, nu, kkt, fit))
    return Limit(x, mu, nu, kkt, fit, path.steps, result)


def _residuals(R: AbstractLegendre, system: _Whitened, a: Array, mu: Parameters, x: Parameters) -> tuple[Array, Array]:
    # grad R_a at x itself, but for entries that underflow to 0: those say nothing, and their mu is kept.
    silent = (x == 0) & R.separable
    slope = jnp.where(silent, mu, R.dual_at(jnp.where(silent, 1.0, x), a).value)
    size = jnp.linalg.norm(x.reshape(-1))
    miss = jnp.linalg.norm(system.measure(x) - system.z)
    return _distance_from_rows(system, slope), miss / jnp.where(size > 0, size, 1.0)


def _initial_status(R: AbstractLegendre, system: _Whitened, a: Array) -> RESULTS:
    """The reason why there can be no limit at this a, known before any search; else `successful`."""
    result = first_failure(R.primal(jnp.zeros_like(system.W[0]), a).result)
    return RESULTS.where((result != RESULTS.successful) | system.consistent, result, RESULTS.outside_range)


class _Path(eqx.Module):
    """A point near the path: multipliers theta of the whitened rows at the strength s, between 0 and a."""

    theta: Float[Array, " r"]
    s: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    stuck: Bool[Array, ""]


def _follow(
    R: AbstractLegendre,
    system: _Whitened,
    a: Array,
    tolerances: Array,
    max_steps: Int[Array, ""],
    possible: Bool[Array, ""],
) -> _Path:
    """Damped Newton at strengths s that lead from 0, where mu = 0 is w0 itself, to a.

    The step search is shared with `newton.py`; the loop is not. A step here also moves the strength s, so no one merit
    falls along the path: it counts as good where the residual is small against x, and the solve keeps going where the
    Hessian is singular to rounding, on which `newton.py` gives up.
    """
    path = _Path(jnp.zeros_like(system.z), jnp.zeros_like(a), jnp.zeros((), int), jnp.zeros((), bool), ~possible)

    def unfinished(path: _Path) -> Bool[Array, ""]:
        return (path.steps < max_steps) & ~path.converged & ~path.stuck

    return jax.lax.while_loop(unfinished, lambda path: _advance(R, system, a, tolerances, path), path)


def _advance(R: AbstractLegendre, system: _Whitened, a: Array, tolerances: Array, path: _Path) -> _Path:
    """One linear solve: a Newton step at s, and where that is near the path a step of s as well."""
    mu = system.adjoint(path.theta)
    x, drift = jax.jvp(lambda s: R.primal_at(mu, s).value, (path.s,), (jnp.ones_like(path.s),))
    pull = R.metric_vector_at(mu, mu, path.s)
    residual, size = system.measure(x) - system.z, jnp.linalg.norm(x.reshape(-1))
    distance = jnp.linalg.norm(residual)
    eps = jnp.finfo(x.dtype).eps
    noise = 4 * eps * (jnp.linalg.norm(pull.reshape(-1)) + jnp.linalg.norm(path.s.astype(x.dtype) * drift.reshape(-1)))
    noise = jnp.minimum(noise, jnp.sqrt(eps) * size)
    arrived = path.s == a
    within = distance <= tolerances[0] * size + tolerances[1] + noise
    converged = arrived & within & jnp.isfinite(distance)
    outward = ~arrived & (distance <= _NEAR * size + noise)

    solve, _ = _factor(_hessian(R, system, mu, path.s))
    newton = -solve(residual)
    # To first order theta scales with s, as all that decay leaves flat does, and `bend` corrects where it is not flat.
    scaled = path.s < 0
    rate = jnp.where(scaled, 1 / jnp.where(scaled, path.s, 1.0), 0.0).astype(x.dtype)
    bend = -solve(system.measure(drift + rate * pull))

    def trial(t: Array) -> tuple[tuple[Array, Array], Bool[Array, ""]]:
        change = jnp.where(outward, t.astype(a.dtype) * (a - path.s), 0.0)
        s = jnp.where(outward & (t == 1), a, path.s + change)
        move = change.astype(x.dtype)
        theta = path.theta * (1 + rate * move) + bend * move + t * newton
        there = R.primal_at(system.adjoint(theta), s)
        miss = system.measure(there.value) - system.z
        distance = jnp.linalg.norm(miss)
        # The dual is convex: its slope along the step rises, and has passed its minimum not far where it is below half.
        descends = newton @ miss <= -0.5 * (newton @ residual)
        # Against both sizes of x: a step into the flat region, where x vanishes, is not near.
        near = distance <= _FAR * jnp.minimum(size, jnp.linalg.norm(there.value.reshape(-1)))
        return (theta, s), jnp.where(outward, near, descends) & jnp.isfinite(distance) & jnp.all(there.ok)

    (theta, s), moved = first_good(trial, (path.theta, path.s), 2.0**-_HALVINGS, path.theta.dtype)
    move = moved & ~converged
    return _Path(
        jnp.where(move, theta, path.theta),
        jnp.where(move, s, path.s),
        path.steps + jnp.where(converged, 0, 1),
        converged,
        ~moved & ~converged,
    )


def _hessian(R: AbstractLegendre, system: _Whitened, mu: Parameters, a: Array) -> Float[Array, "r r"]:
    """`W J J^T W^T`."""
    images = jax.vmap(lambda row: R.metric_vector_at(mu, row, a))(system.W)
    return images.reshape(len(images), -1) @ system.W.reshape(len(images), -1).T


def _factor(H: Float[Array, "r r"]) -> tuple[Callable[[Array], Array], Bool[Array, ""]]:
    """`r -> (H + lambda I)^{-1} r` with lambda at the rounding of H, and True if H is regular beyond that.

    Directions in which H is below its rounding, entries of x that decay has made negligible, are left where they are.
    """
    scale = jnp.max(jnp.diag(H))
    scale = jnp.where(scale > 0, scale, 1.0)
    shift = len(H) * jnp.finfo(H.dtype).eps
    factor = jnp.linalg.cholesky(H / scale + shift * jnp.eye(len(H), dtype=H.dtype), symmetrize_input=False)
    regular = jnp.min(jnp.diag(factor)) ** 2 > 100 * shift
    return lambda r: jax.scipy.linalg.cho_solve((factor, True), r / scale), regular


def _implicit(
    R: AbstractLegendre, objective: AbstractMeasured, system: _Whitened, a: Array, nu: Measurements, ok: Bool[Array, ""]
) -> Measurements:
    """nu again, as a function of R, Z, y and a, by the derivative of `0 = Z grad Q_a(Z^T nu) - y`."""

    def residual(nu: Measurements) -> Measurements:
        return objective.measure(R.primal_at(objective.adjoint(nu), a).value) - objective.y

    def tangent(linear: Callable, rhs: Measurements) -> Measurements:
        # nu = B^T theta keeps to the span of the rows, and B times the derivative in theta is W M W^T.
        H = jax.vmap(lambda row: system.B @ linear(row), out_axes=1)(system.B)
        unused = jnp.where(system.kept, 0.0, jnp.max(jnp.diag(H)))
        H = jnp.where(ok, H + jnp.diag(unused), jnp.eye(len(H), dtype=H.dtype))
        solve, regular = _factor(H)
        return solve(system.B @ rhs * jnp.where(regular, 1.0, jnp.nan)) @ system.B

    return jax.lax.custom_root(residual, nu, lambda _, start: start, tangent)
