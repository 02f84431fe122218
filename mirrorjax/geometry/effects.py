"""effects() and explain(): type of bias, positional bias and range of any R_a, at any strength a."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..calls import calling
from ..checks import (
    Number,
    Numbers,
    as_scalar,
    as_time,
    is_concrete,
    refuted,
    require_finite,
    require_kind,
    require_nonnegative,
    require_positive,
)
from ..problem.schedule import AbstractSchedule
from ..reprs import readable
from ..results import RESULTS, first_failure, select, status_name
from .base import AbstractLegendre, require_legendre
from .points import Recovered, as_point, as_strength, require_strengths

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 6  # strengths at each end of a list that are shown in words


class Effects(eqx.Module):
    """The three effects of accumulated regularization at several a, which are the leading axis of every array.

    `a` holds the strengths, each a scalar or an array of one number a coordinate.

    `minimizer` is `argmin R_a`, the positional bias; `local_exponent` the type of bias, 2 like L2 and 1 like L1;
    `dual_lower`, `dual_upper` the open interval of mu; `metric` is `J J^T v` at the minimizer along the direction v the
    exponent is taken in, which for v = 1 and an elementwise family is the diagonal of J J^T: the freedom that each
    coordinate still has. Entries are NaN exactly where `result` is not successful.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 3.
    """

    a: Float[Array, "n ..."]
    minimizer: Float[Array, "n ..."]
    local_exponent: Float[Array, " n"]
    dual_lower: Float[Array, "n ..."]
    dual_upper: Float[Array, "n ..."]
    metric: Float[Array, "n ..."]
    result: RESULTS

    @property
    def ok(self) -> Bool[Array, " n"]:
        return self.result == RESULTS.successful

    def __repr__(self) -> str:
        """The effects in words, a line a strength; of many strengths the first and the last."""
        if not is_concrete(self) or self.local_exponent.ndim != 1:
            return readable(self)
        lines = [self._line(i) for i in range(len(self.local_exponent))]
        left_out = len(lines) - 2 * _SHOWN
        if left_out > 0:
            lines[_SHOWN : _SHOWN + left_out] = [f"({left_out} more)"]
        return "\n".join(["Effects (type of bias: 2 is like L2, 1 like L1)", *lines])

    def _line(self, i: int) -> str:
        a = f"a = {_range_text(np.asarray(self.a[i]))}"
        if not bool(self.ok[i]):
            return f"{a}: {np.atleast_1d(status_name(self.result))[i]}"
        lower, upper = np.asarray(self.dual_lower[i]), np.asarray(self.dual_upper[i])
        bounded = np.any(np.isfinite([lower, upper]))
        ends = f"mu from {_range_text(lower)} to {_range_text(upper)}" if bounded else "any mu"
        return (
            f"{a}: type of bias {float(self.local_exponent[i]):.4f}; argmin R_a = "
            f"{_range_text(np.asarray(self.minimizer[i]))}; range: {ends}, J J^T = "
            f"{_range_text(np.asarray(self.metric[i]))} at argmin R_a"
        )


class Explanation(eqx.Module):
    """The effects along a schedule: at each time t the strength alpha(t), and `effects` at a_t."""

    t: Float[Array, " n"]
    alpha: Float[Array, " n"]
    effects: Effects

    def rows(self) -> list[dict[str, Any]]:
        """One row a time: `t`, `alpha`, `a`, `minimizer` (an array), `local_exponent`, `status` (a name)."""
        names = status_name(self.effects.result)
        columns = self.t, self.alpha, self.effects.a, self.effects.local_exponent
        return [
            {
                "t": float(t),
                "alpha": float(alpha),
                "a": float(a),
                "minimizer": np.asarray(self.effects.minimizer[i]),
                "local_exponent": float(exponent),
                "status": str(names[i]),
            }
            for i, (t, alpha, a, exponent) in enumerate(zip(*columns, strict=True))
        ]

    def table(self) -> "Table":
        """The rows as a `rich.table.Table`; a minimizer of several coordinates is shown by its smallest and largest."""
        from rich.table import Table  # here, so that importing mirrorjax does not load rich

        table = Table("t", "alpha", "a", "argmin R_a", "local exponent", "status")
        for row in self.rows():
            table.add_row(
                *(f"{row[name]:.6g}" for name in ("t", "alpha", "a")),
                _range_text(row["minimizer"]),
                f"{row['local_exponent']:.4f}",
                row["status"],
            )
        return table


def local_exponent(R: AbstractLegendre, a: Numbers, scale: Number, direction: Numbers | None = None) -> Recovered:
    """`d log(R_a(x) - min R_a) / d log s` at `x = argmin R_a + s v`: 2 is L2-like, 1 is L1-like, at the scale s.

    It is `<mu, x - x*> / (R_a(x) - R_a(x*))`, mu = grad R_a(x). The difference of values is never taken: close to the
    minimum nothing would be left of it. With M(mu) = J J^T at psi(mu, a), both parts are integrals of one positive
    function along the straight line to mu,

        <mu, x - x*> = int_0^1 <mu, M(tau mu) mu> dtau,    R_a(x) - R_a(x*) = int_0^1 tau <mu, M(tau mu) mu> dtau,

    so digits lost in mu cost nothing near the minimum, where M is constant and the exponent 2. Only where mu is so near
    a finite end of its interval that it cannot tell the weights any more (a relative sqrt(eps)) the second part is
    `int_0^1 <mu(x* + r s v), s v> dr` instead; mu has all its digits there. Both are right to about 1e-9 in float64.

    **Arguments:** `R`; `a`: the accumulated regularization, a scalar <= 0, or for a separable R an array shaped like x;
    `scale`: s > 0, in units of x; `direction`: v, shaped like x, by default all ones: each coordinate at distance s
    from its own minimum.
    **Returns:** the exponent, a scalar >= 1, and a status: past exhaustion, or where x is outside the range, NaN.
    **Raises:** `ValueError` for an a that is neither finite and <= 0 nor an array that R takes, a scale that is not
    finite and positive, or a direction of another shape.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 3.
    """
    require_legendre(R)
    a = jnp.asarray(as_strength(a, R), float)
    return _local_exponent(R, a, *_distance(R, scale, direction))


def effects(
    R: AbstractLegendre,
    a_values: Numbers,
    scale: Number,
    direction: Numbers | None = None,
) -> Effects:
    """Minimizer, local exponent, dual interval and metric of R_a at each of several strengths a.

    **Arguments:** as for `local_exponent`, with `a_values` (n,), or for a separable R (n, ..) with the axes of x, one
    number a coordinate.
    **Returns:** `Effects`; a strength past exhaustion has a status and NaN entries, and disturbs no other.
    **Raises:** `ValueError` as `local_exponent` does, and for a_values that are not one axis of strengths.
    """
    require_legendre(R)
    a_values = as_time(a_values, "a_values")
    shape = R.point_like().shape
    if a_values.ndim == 0 or a_values.shape[1:] not in ((), shape if R.separable else ()):
        arrays = f", or one axis of arrays of the shape {shape} of x" if R.separable else ""
        raise ValueError(f"a_values must be one axis of strengths a <= 0{arrays}, got shape {a_values.shape}")
    require_strengths(a_values, axes=1)
    scale, direction = _distance(R, scale, direction)
    minimizer, exponent, lower, upper, metric = _effects(R, a_values, scale, direction)
    return Effects(a_values, minimizer, exponent.value, lower, upper, metric, exponent.result)


def explain(
    R: AbstractLegendre,
    schedule: AbstractSchedule,
    ts: Numbers,
    scale: Number,
    direction: Numbers | None = None,
) -> Explanation:
    """The effects over time along a schedule, at `a_t = -int_0^t alpha(s) ds`: what `mirrorjax explain` prints.

    **Arguments:** `schedule`: alpha; `ts` (n,): times >= 0 in units of the flow; the rest as for `effects`.
    **Raises:** `ValueError` as `effects` does, for a schedule that is none, and for times that are negative, not finite
    or not one axis.
    """
    require_legendre(R)
    require_kind(schedule, AbstractSchedule, "schedule", "a schedule such as SwitchOff(0.1, 2.0) or Constant(0.1)")
    ts = as_time(ts, "ts")
    if ts.ndim != 1:
        raise ValueError(f"ts must be one axis of times, got shape {ts.shape}; for one time pass [t]")
    require_nonnegative(ts, "ts", finite=True)
    with calling("the schedule"):
        alpha, total = jax.vmap(schedule)(ts), jax.vmap(schedule.integral)(ts)
    return Explanation(ts, alpha, effects(R, 0.0 - total, scale, direction))


def _distance(R: AbstractLegendre, scale: Number, direction: Numbers | None) -> tuple[Array, Array | None]:
    """The scale and the direction as arrays, so that a new value never recompiles; known bad ones are refused."""
    scale = as_scalar(scale, "scale").astype(float)
    require_positive(scale, "scale", "; it is a distance from the minimum")
    if direction is None:
        return scale, None
    direction = as_point(direction, R.point_like(), "direction")
    require_finite(direction, "direction")
    if refuted(lambda: np.any(np.asarray(direction) != 0), direction):
        raise ValueError("direction must not be 0")
    return scale, direction


@eqx.filter_jit
def _effects(
    R: AbstractLegendre, a_values: Float[Array, "n ..."], scale: Float[Array, ""], direction: Float[Array, "..."] | None
) -> tuple[Array, Recovered, Array, Array, Array]:
    """Minimizer, exponent, both ends of the dual interval and metric, for each a."""

    def at(a: Float[Array, "..."]) -> tuple[Array, Recovered, Array, Array, Array]:
        (lower, upper), v = R.dual_interval(a), _direction(R, a, direction)
        origin = jnp.zeros_like(lower)
        exponent = _local_exponent(R, a, scale, direction)

        def shown(value: Float[Array, "..."]) -> Float[Array, "..."]:
            return jnp.where(exponent.ok, value, jnp.nan)

        metric = R.metric_vector_at(origin, v, a)
        return shown(R.primal(origin, a).value), exponent, shown(lower), shown(upper), shown(metric)

    return jax.vmap(at)(a_values)


@eqx.filter_jit
def _local_exponent(
    R: AbstractLegendre, a: Float[Array, "..."], scale: Float[Array, ""], direction: Float[Array, "..."] | None
) -> Recovered:
    (lower, upper), v = R.dual_interval(a), _direction(R, a, direction)
    minimizer = R.primal(jnp.zeros_like(lower), a)
    # A traced scale that is not positive gives no point, and with it the status of one.
    step = jnp.where(scale > 0, scale, jnp.nan).astype(lower.dtype) * v
    end = R.dual(minimizer.value + step, a)
    mu = jnp.where(jnp.isfinite(end.value), end.value, 0.0)

    margin = float(jnp.finfo(lower.dtype).eps) ** 0.5
    inner = jnp.all(_clear(mu - lower, lower, margin) & _clear(upper - mu, upper, margin))
    along_mu = _exponent_along_mu(R, jnp.where(inner, mu, 0.0), v, a)
    along_x = _exponent_along_x(R, minimizer.value, step, end.value, a)

    exponent = jnp.where(inner, along_mu, along_x.value)
    result = select(jnp.isfinite(exponent), RESULTS.successful, RESULTS.not_converged)
    result = select(inner, result, _prefer_failure(along_x.result, result))
    for earlier in (end.result, minimizer.result):
        result = _prefer_failure(earlier, result)
    return Recovered(jnp.where(result == RESULTS.successful, exponent, jnp.nan), result)


def _direction(
    R: AbstractLegendre, a: Float[Array, "..."], direction: Float[Array, "..."] | None
) -> Float[Array, "..."]:
    lower, _ = R.dual_interval(a)
    return jnp.ones_like(lower) if direction is None else direction


def _exponent_along_mu(
    R: AbstractLegendre, mu: Float[Array, "..."], v: Float[Array, "..."], a: Float[Array, "..."]
) -> Float[Array, ""]:
    largest = jnp.max(jnp.abs(mu))
    # The quotient does not depend on the length of mu; where nothing is left of mu, M is constant and v serves.
    unit = jnp.where(largest > 0, mu / jnp.where(largest > 0, largest, 1.0), v)
    distances, weights = _graded_rule(mu.dtype)
    squares = jax.vmap(lambda tau: jnp.sum(unit * R.metric_vector_at(tau * mu, unit, a)))(1 - distances)
    return jnp.sum(weights * squares) / jnp.sum(weights * (1 - distances) * squares)


def _exponent_along_x(
    R: AbstractLegendre,
    minimizer: Float[Array, "..."],
    step: Float[Array, "..."],
    mu: Float[Array, "..."],
    a: Float[Array, "..."],
) -> Recovered:
    fractions, weights = _graded_rule(step.dtype)
    slopes = jax.vmap(lambda r: R.dual_at(minimizer + r * step, a))(fractions)
    value = jnp.sum(mu * step) / jnp.sum(weights * jax.vmap(lambda slope: jnp.sum(slope * step))(slopes.value))
    return Recovered(value, first_failure(slopes.result))


def _graded_rule(dtype: jnp.dtype) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    """Nodes and weights on [0, 1] by Gauss-Legendre of 10 nodes on panels shrinking fourfold towards 0.

    A function analytic but at 0 is integrated to 3^-20 = 3e-10 (the Bernstein ellipse of such a panel), down to 1e-8.
    """
    nodes, weights = np.polynomial.legendre.leggauss(10)
    edges = np.concatenate([[0.0], 4.0 ** np.arange(-13, 1)])
    starts, lengths = edges[:-1, None], np.diff(edges)[:, None]
    points, masses = starts + lengths * (nodes + 1) / 2, lengths * weights / 2
    return jnp.asarray(points.ravel(), dtype), jnp.asarray(masses.ravel(), dtype)


def _clear(distance: Float[Array, "..."], end: Float[Array, "..."], margin: float) -> Bool[Array, "..."]:
    """True where mu keeps a relative margin from an end of its interval; an infinite end is always far."""
    return jnp.isinf(end) | (distance > margin * jnp.abs(end))


def _prefer_failure(earlier: RESULTS, later: RESULTS) -> RESULTS:
    first = first_failure(earlier)
    return select(first == RESULTS.successful, later, first)


def _range_text(numbers: np.ndarray) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low:.4g}" if low == high or np.isnan(low) else f"{low:.4g} .. {high:.4g}"
