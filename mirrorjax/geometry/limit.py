"""predict_limit(): the end point of a flow without integrating it, and kkt_residual(), its optimality condition.

After switch-off, a flow whose objective sees x only through Z x and fits y exactly moves its dual variable in
range(Z^T) alone. So from the point at switch-off it ends at the Bregman projection of that point on the solutions of
`Z x = y`, and if the dual variable was in range(Z^T) already, at `argmin R_a(x)` s.t. `Z x = y`.

Both are found by damped Newton on the dual (`limit_search.py`). Plain Newton fails on it: for strong decay Q_a is flat
(e^{4ca}) around nu = 0 and exponential beyond. So steps are halved as often as it takes, and where R does not leak the
minimum of R_a is found along the path in a from 0, where w0 lives.

Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks import (
    Number,
    Numbers,
    as_count,
    as_scalar,
    freeze,
    is_concrete,
    refuted,
    require_finite,
    require_kind,
    require_nonnegative,
)
from ..problem.objective import AbstractMeasured, AbstractObjective, Logistic
from ..results import RESULTS, first_failure
from .base import AbstractLegendre, require_legendre
from .limit_search import Dual, Measurements, Parameters, Whitened, follow, implicit_multipliers, rows_of, whiten
from .points import as_point, as_strength, require_ok


class Limit(eqx.Module):
    """The predicted end point of a flow, and how well it satisfies the two conditions that define it.

    - `x`: `argmin R_a(x)` s.t. `Z x = y`, or the Bregman projection of `start`, shaped like g(w).
    - `mu`: `grad R_a(x) = grad R_a(start) + Z^T nu`, without the first term where there is no start, shaped like x.
      `nu` (n,): the multipliers, those of least norm.
    - `kkt_residual`: distance of `grad R_a(x) - grad R_a(start)`, evaluated at x, from range(Z^T), relative to its
      length.
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
    a: Numbers,
    *,
    start: Numbers | None = None,
    rtol: Number | None = None,
    atol: Number = 0.0,
    max_steps: int = 200,
) -> Limit:
    """The point a flow tends to once the decay is switched off at this a, without an integration.

    Without `start` it is `x = argmin R_a(x)` s.t. `Z x = y`: the limit where the leak of R is a scalar, 0 in the
    paper's theory. With `start`, the point x_off at switch-off, it is the Bregman projection `x = argmin D_a(x, x_off)`
    s.t. `Z x = y`, `grad R_a(x) - grad R_a(x_off)` in range(Z^T): the limit for every R, since after the switch-off
    the dual variable moves in range(Z^T) whatever it did before. Where both hold they are one point.

    It is `grad Q_a(mu_off + Z^T nu)` at the minimum of the convex dual `nu -> Q_a(mu_off + Z^T nu) - <nu, y>`, by
    damped Newton with the Hessian `Z J J^T Z^T`; without `start` mu_off = 0, and for an R that does not leak the search
    is warm-started along a from 0.
    Vmappable, and differentiable (implicitly, forward and reverse) in a, in start, in the weights that R is made of,
    and in Z and y. Linearly dependent rows of Z are allowed: Newton then moves in their span alone, and derivatives in
    Z and y are those of the projection of y on range(Z).

    After strong decay of a product of depth p mu is as large as `e^(-(p-2)s)`, s = 2ca. Then Z x = y still holds to
    rtol, but that mu lies in range(Z^T) holds to the rounding of mu alone, which moves x by up to eps e^(-(p-2)s).

    Derivatives are NaN where `Z J J^T Z^T` is singular to rounding: when strong decay leaves x with fewer than
    rank(Z) entries above rounding, how x answers a change of y is decided by entries below it. An entry of start that
    has underflowed to 0 does not tell its dual variable, and is taken to be at 0 exactly.

    An array a, one number a coordinate, such as `read_bias` reads off the weights of a training run, asks for the
    minimum of `sum_i R_{a_i}(x_i)`. That a run ends there is a hypothesis and no theorem: finite steps and noise move
    mu out of range(Z^T) while a_i changes. `kkt_residual` at the run's own end says how far it is from true.

    **Arguments:**

    - `R`: the Legendre function of (g, h, w0).
    - `objective`: one that depends on x through `Z x` only and can be fitted exactly: `LeastSquares`, `MatrixSensing`.
    - `a`: the accumulated regularization at switch-off, a scalar <= 0, or for a separable R an array shaped like x.
    - `start`: x_off, shaped like x, in the range of g; `None` for the minimum of R_a.
    - `rtol`, `atol`: the distance of x from the solutions of `Z x = y` to reach, relative to |x| and absolute; `rtol`
      is eps^(3/4) unless told otherwise. Where rounding of mu and a hides that, the search ends where a step is no
      longer worth it, at a distance of up to sqrt(eps).
    - `max_steps`: give up after so many Newton steps.

    **Returns:** a `Limit`. Its status is `outside_range` where `Z x = y` has no solution at all or start is out of
    range, `not_converged` where it has none that the parameterization can reach (or steps ran out), `invalid_weights`,
    `range_exhausted` where R_a does not exist, `invalid_strength` for a traced a that is positive or not finite.

    **Raises:** `ValueError` for an objective without interpolation (`Logistic`, or not a function of `Z x`), for one
    that does not fit the shape of x, for sensing matrices a spectral R does not hold for, for an a that is neither a
    finite scalar <= 0 nor an array that R takes, for a start of another shape or with entries that are not finite, for
    no start where the leak of R is not a scalar, and for tolerances or steps that are not numbers of their kind.

    Example::

        g, h, Z = mj.Hadamard(), mj.WeightDecay(), jnp.array([[1.0, 2.0, 0.5]])
        R = mj.legendre(g, h, (jnp.ones(3), jnp.zeros(3)))
        limit = mj.predict_limit(R, mj.LeastSquares(Z, jnp.array([1.0])), a=-2.0)
        limit.x                      # close to (0, 0.5, 0), the solution of least L1 norm

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11, without start; the projection follows from
    `d mu = -grad f dt`, and is tested against integrations.
    """
    require_legendre(R)
    objective = _require_interpolation(objective)
    _check_pair(R, objective)
    a = jnp.asarray(as_strength(a, R)).astype(float)
    start = _as_start(R, start)
    if start is None and R.leak.ndim:
        raise ValueError(
            f"the dual variable of {type(R).__name__} leaks at several rates (R.leak has shape {R.leak.shape}), so the "
            "limit is not argmin R_a: pass start=, the point x at which the decay is switched off, for its Bregman "
            "projection"
        )
    dtype = objective.y.dtype
    default = float(jnp.finfo(dtype).eps) ** 0.75
    given = as_scalar(default if rtol is None else rtol, "rtol"), as_scalar(atol, "atol")
    for tolerance, name in zip(given, ("rtol", "atol"), strict=True):
        require_nonnegative(tolerance, name, finite=True)
    tolerances = jnp.stack([tolerance.astype(dtype) for tolerance in given])
    return eqx.filter_jit(_predict)(R, objective, a, start, tolerances, jnp.asarray(as_count(max_steps, "max_steps")))


def kkt_residual(
    R: AbstractLegendre, objective: AbstractObjective, x: Numbers, a: Numbers, *, start: Numbers | None = None
) -> Float[Array, ""]:
    """`|mu - P mu| / |mu|`, P the projection on range(Z^T): 0 at the limit of a flow, else up to 1.

    `mu = grad R_a(x)`, or `grad R_a(x) - grad R_a(start)` with start, the point at switch-off: then it is 0 at the
    Bregman projection of start. Norms are Euclidean (Frobenius for matrices); where mu = 0 the residual is 0. The
    residual ignores y. Where decay was so strong that entries of x underflow to 0, x no longer tells their mu: use
    `Limit.kkt_residual` there.

    Without start the residual is small at the end of a flow only where the leak of R is a scalar and a is one number.
    Elsewhere it measures how far x is from the minimum of R_a on the solutions of `Z x = y`.

    **Arguments:** `R`; `objective`: any that depends on x through `Z x` only, `Logistic` included; `x`: any point, such
    as `sol.x[-1]`; `a`: the accumulated regularization there, such as `sol.a[-1]`, or for a separable R an array shaped
    like x; `start`: the point at switch-off.
    **Returns:** a scalar.
    **Raises:** `ValueError` for an objective that is not a function of `Z x`; like `R.mirror_map` where x or start is
    outside the range.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.11.
    """
    require_legendre(R)
    objective = _require_measured(objective)
    _check_pair(R, objective)
    mu, start = R.mirror_map(x, a), _as_start(R, start)
    if start is not None:
        origin = R.dual(start, a)
        mu = mu - require_ok(origin.value, origin.result, start, "start")
    return whiten(objective).distance_from_rows(mu)


def _as_start(R: AbstractLegendre, start: Numbers | None) -> Parameters | None:
    """The point at switch-off, converted and checked."""
    if start is None:
        return None
    point = as_point(start, R.point_like(), "start")
    require_finite(point, "start")
    return point


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
        R.check_measurements(rows_of(objective))


def _predict(
    R: AbstractLegendre,
    objective: AbstractMeasured,
    a: Float[Array, "..."],
    start: Parameters | None,
    tolerances: Array,
    max_steps: Int[Array, ""],
) -> Limit:
    with jax.default_matmul_precision("highest"):
        system = whiten(objective)
        offset, possible = _offset(R, system, a, start)
        dual = Dual(freeze(R), system, jax.lax.stop_gradient(a), jax.lax.stop_gradient(offset))
        path = follow(dual, tolerances, max_steps, possible == RESULTS.successful, warm=start is None)
        result = RESULTS.where((possible != RESULTS.successful) | path.converged, possible, RESULTS.not_converged)
        ok = result == RESULTS.successful
        # Where there is no limit, what follows is evaluated at w0, so that its NaN reaches no derivative beside it.
        a, coarse, fine, offset = (jnp.where(ok, value, 0.0) for value in (a, path.coarse, path.fine, offset))

        def place(nu: Measurements) -> tuple[Parameters, Parameters]:
            # The values of W^T theta, which has lost nothing where Z is ill-conditioned; the derivative of Z^T nu.
            image = objective.adjoint(nu)
            fixed = jax.lax.stop_gradient(image)
            return offset + system.adjoint(coarse), system.adjoint(fine) + (image - fixed)

        nu = implicit_multipliers(R, objective, system, a, place, (coarse + fine) @ system.B, ok)
        mu, step = place(nu)
        x, mu = R.primal_from_at(mu, step, a).value, mu + step
        kkt, fit = _residuals(*freeze((R, system, a, offset, mu, x)))
    x, mu, nu, kkt, fit = (jnp.where(ok, value, jnp.nan) for value in (x, mu, nu, kkt, fit))
    return Limit(x, mu, nu, kkt, fit, path.steps, result)


def _offset(
    R: AbstractLegendre, system: Whitened, a: Float[Array, "..."], start: Parameters | None
) -> tuple[Parameters, RESULTS]:
    """grad R_a(start), 0 without start; and the reason why there can be no limit, known before any search."""
    origin = jnp.zeros_like(system.W[0])
    result = first_failure(R.primal(origin, a).result)
    if start is not None:
        found = R.dual(start, a)
        result = RESULTS.where(result == RESULTS.successful, first_failure(found.result), result)
        origin = jnp.where(result == RESULTS.successful, found.value, 0.0)
    return origin, RESULTS.where((result != RESULTS.successful) | system.consistent, result, RESULTS.outside_range)


def _residuals(
    R: AbstractLegendre, system: Whitened, a: Float[Array, "..."], offset: Parameters, mu: Parameters, x: Parameters
) -> tuple[Array, Array]:
    # grad R_a at x itself, but for entries that underflow to 0: those say nothing, and their mu is kept.
    silent = (x == 0) & R.separable
    slope = jnp.where(silent, mu, R.dual_at(jnp.where(silent, 1.0, x), a).value)
    size = jnp.linalg.norm(x.reshape(-1))
    miss = jnp.linalg.norm(system.measure(x) - system.z)
    return system.distance_from_rows(slope - offset), miss / jnp.where(size > 0, size, 1.0)
