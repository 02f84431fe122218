"""Time under a leak: the clock of the dual variable, the time a recovery needs, and the strengths that end growth.

Where h normalises g, `[grad h, grad g_i] = sum_j Lambda_ij grad g_j`, decay acts on the dual variable too. In
`nu = e^(-a Lambda^T) mu` that action is a factor alone, `d nu/dt = -e^(-a Lambda^T) grad f(x)`: the flow of g without
decay, on a clock that decay slows (Lambda < 0) or hastens (Lambda > 0). Everything here follows from this equation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import Number, Numbers, as_count, as_float, as_scalar, nonnegative, require_nonnegative, require_positive
from ..results import RESULTS, select
from .base import AbstractLegendre, require_legendre
from .points import Point, Recovered, Strength, as_point, as_strength, at_strength

# What rounding leaves undecided in a difference of two values of mu, relative to them: each has a few operations.
_ROUNDINGS = 16


def clock(R: AbstractLegendre, a: Number) -> Float[Array, "..."]:
    """`e^(-a Lambda^T)`: the rate at which the loss moves `nu`, `d nu/dt = -e^(-a Lambda^T) grad f(x)`. Exact.

    `nu = e^(-a Lambda^T) mu` is the dual variable of the flow without decay. For g homogeneous of degree p with weight
    decay c |w|^2 the clock is `e^((p-2) s)` with s = 2ca, the same for all coordinates: it stays 1 for p = 2 and slows
    down exponentially in the regularization spent for p > 2. Where R has no leak it is 1.

    **Arguments:** `R`: the Legendre function; `a`: the accumulated regularization, a scalar <= 0.
    **Returns:** a factor of the shape of `R.leak`: a scalar, or one number a coordinate, or for a dense Lambda the
    matrix, shaped `x.shape + x.shape`, whose product with mu is nu. NaN for a traced a that is not finite and <= 0.
    **Raises:** `ValueError` for an R that is no Legendre function, or an a that is not a finite scalar <= 0.

    ```python
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(), (jnp.zeros(1), jnp.ones(1), jnp.ones(1)))
    mj.clock(R, -15.0)  # e^-30 = 9.4e-14
    ```

    Source: none published; see `AbstractLegendre.leak`.
    """
    require_legendre(R)
    leak, shape = R.leak, R.point_like().shape

    def at(a):
        # Multiplied in the default precision: a = -1e4 has few digits in float32.
        exponent = -jnp.asarray(a).astype(float) * leak.astype(float)
        if leak.ndim in (0, len(shape)):
            return jnp.exp(exponent).astype(leak.dtype)
        size = int(jnp.size(jnp.zeros(shape)))
        return jax.scipy.linalg.expm(exponent.reshape(size, size).T).reshape(leak.shape).astype(leak.dtype)

    return at_strength(at, as_strength(a))


def remaining_time(R: AbstractLegendre, x: Numbers, mu: Numbers, a: Numbers, slope: Numbers) -> Recovered:
    """`|grad R_a(x)_i - mu_i| / slope_i`: the least time in which a flow without decay takes mu_i to that of x.

    Once decay is switched off a stays, and `d mu_i/dt = -df/dx_i` whatever R_a is. So this time is a lower bound where
    `slope` bounds |df/dx_i| on the way, and exact where |df/dx_i| is equal to it. In `nu` it is
    `|nu_i(x) - nu_i| / (clock * slope_i)`: a slow clock makes a recovery late. For separable R entry i is the least
    time after which x_i can have its value in x; for others the largest entry is the least time after which the flow
    can be at x. After the switch-off the loss does not rise, so that for least squares
    `|df/dx_i| <= |Z e_i| sqrt(2 f / n)` with the loss f at the switch-off is a bound for all time.

    Where decay was strong a coordinate that is alive has a mu near the end of its interval, `e^(-a Lambda)` times as
    large as what x tells apart there. A difference of mu that rounding cannot tell from 0 counts as 0, so that the
    bound stays a bound.

    **Arguments:** `R`: the Legendre function; `x`: the point to reach, shaped like g(w); `mu`: the dual variable now,
    such as `sol.mu[i]` at the switch-off; `a`: the accumulated regularization, a scalar <= 0, or for separable R one
    number a coordinate; `slope`: >= 0, a scalar
    or shaped like x, in units of f over units of x.
    **Returns:** `Recovered`: the times, shaped like x, in units of the flow, infinite where the slope is 0 and mu has
    to move; and a status: that of `R.dual` at x, `outside_dual_interval` for a mu beyond the ends, or
    `invalid_options` for a traced slope that is NaN or negative. Times are NaN where the status is not successful.
    **Raises:** `ValueError` for an R that is no Legendre function, points of another shape, an a that is not a finite
    scalar <= 0, or a known slope that is NaN or negative.

    ```python
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(), (jnp.zeros(1), jnp.ones(1), jnp.ones(1)))
    mj.remaining_time(R, x=[1.0], mu=[0.0], a=-15.0, slope=1.0).value  # pi/2 e^30 = 1.7e13
    ```

    Source: none published; `d mu = -grad f dt` is Eq. (5) of Jacobs, Zhou, Burkholz (arXiv 2504.12883).
    """
    require_legendre(R)
    like = R.point_like()
    x, mu, slope = as_point(x, like, "x"), as_point(mu, like, "mu"), _as_slope(R, slope)

    def at(a):
        there = R.dual(x, a)
        # mu = e^(a Lambda^T) nu also has the rounding of the exponent.
        exponents = _ROUNDINGS + jnp.max(jnp.abs(a * R.leak))
        rounding = exponents * jnp.finfo(like.dtype).eps * jnp.maximum(jnp.abs(there.value), jnp.abs(mu))
        here = _inside(R, mu, a, rounding)
        ok = there.ok & here.ok
        moved = jnp.abs(there.value - mu)
        moved = jnp.where(moved > rounding, moved, 0.0)
        usable = slope > 0
        times = moved / jnp.where(usable, slope, 1.0)
        times = jnp.where(usable | (moved == 0), times, jnp.inf)
        known = nonnegative(slope, finite=False)
        result = select(there.ok, here.result, there.result)
        result = select(jnp.broadcast_to(known, ok.shape), result, RESULTS.invalid_options)
        return Recovered(jnp.where(ok & known, times, jnp.nan), result)

    return at_strength(at, as_strength(a, R))


def _inside(R: AbstractLegendre, mu: Point, a: Strength, rounding: Point) -> Recovered:
    """mu, with `outside_dual_interval` where it lies beyond an end by more than rounding: x need not be told by it."""
    if not R.separable:
        return R.primal(mu, a)
    lower, upper = R.dual_interval(a)
    exists = R.primal(jnp.zeros_like(mu), a).result
    inside = (mu > lower - rounding) & (mu < upper + rounding)
    outside = select(exists == RESULTS.successful, RESULTS.outside_dual_interval, exists)
    return Recovered(mu, select(inside, exists, outside))


def strength_bound(R: AbstractLegendre, slope: Numbers) -> Recovered:
    """`slope_i / (|lambda_i| t_i)`: under a constant decay beyond this strength coordinate i tends to 0. A bound.

    t_i is the distance from 0 to the nearer end of the dual interval of R_0. Under a constant strength alpha,
    `|nu_i| <= slope_i int e^(alpha lambda t) dt <= slope_i / (alpha |lambda_i|)` for lambda < 0. Where that is below
    t_i, nu_i never comes near the end, where alone x_i can stay of its size while decay shrinks the weights. The bound
    knows f by its slope only; `critical_strength` is the exact value for one coordinate, and smaller. The bound is
    infinite where R has no leak (depth 2), a positive one (depth 1), or an interval without ends.

    **Arguments:** `R`: that of a homogeneous g with weight decay; `slope`: >= 0, a bound on |df/dx_i| on the way, a
    scalar or shaped like x.
    **Returns:** `Recovered`: strengths, shaped like x; and a status for each point: that of R at a = 0, or
    `invalid_options` for a traced slope that is NaN or negative.
    **Raises:** `ValueError` for an R that is no Legendre function or has a dense Lambda, or a known slope that is NaN
    or negative.

    ```python
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(), (jnp.zeros(1), jnp.ones(1), jnp.ones(1)))
    mj.strength_bound(R, slope=1.0).value  # 1 / pi = 0.318, where the exact value is 0.2362
    ```

    Source: none published.
    """
    require_legendre(R)
    slope, leak, like = _as_slope(R, slope), R.leak, R.point_like()
    if leak.ndim > len(like.shape):
        raise ValueError(
            f"strength_bound needs one clock a coordinate, but the leak of R has shape {leak.shape}; its coordinates "
            "exchange what they lose"
        )
    lower, upper = R.dual_interval(0.0)
    status = R.primal(jnp.zeros(like.shape, like.dtype), 0.0)
    end = jnp.minimum(-lower, upper)
    bounded = (leak < 0) & jnp.isfinite(end)
    scale = jnp.where(bounded, -leak * jnp.where(bounded, end, 1.0), 1.0)
    known = nonnegative(slope, finite=False)
    result = select(jnp.broadcast_to(known, status.ok.shape), status.result, RESULTS.invalid_options)
    return Recovered(jnp.where(status.ok & known, jnp.where(bounded, slope / scale, jnp.inf), jnp.nan), result)


def critical_strength(
    depth: int, target: Numbers, curvature: Numbers = 1.0, scale: Number = 1.0
) -> Float[Array, "..."]:
    """`kappa |y|^(1+q) q^q / (2c (1+q)^(1+q))`, q = 1 - 2/p: the decay beyond which x = w_1 .. w_p tends to 0. Exact.

    For one coordinate with `f(x) = kappa (x - y)^2 / 2` and h = c |w|^2 every stationary point other than 0 has factors
    of one size, with `kappa (|y| - |x|) |x|^q = 2 c alpha`. The left side is largest at `|x| = |y| q / (1 + q)`, where
    a stable and an unstable point meet (a saddle-node); for larger alpha there is none, and every flow ends at 0. For
    smaller alpha the flow ends at the stable point or at 0, depending on its start. At depth 2 the formula is the
    threshold of the Lasso, `kappa |y| / (2c)`; at depth 3 with y = kappa = c = 1 it is 0.23624.

    In several dimensions each coordinate by itself, the others at 0, is such a problem with
    `kappa = d^2 f/dx_i^2` and `y = -(df/dx_i)(0) / kappa`. What the others do is then left out, so there the value is
    an estimate.

    **Arguments:** `depth`: p >= 2; `target`: y, and `curvature`: kappa > 0, of one shape, or one of them a scalar;
    `scale`: c > 0.
    **Returns:** the strengths, shaped like the target.
    **Raises:** `ValueError` for a depth below 2, or a known curvature or scale that is not positive.

    ```python
    mj.critical_strength(3, target=1.0)  # 0.23624
    ```

    Source: none published; measured in `mirrorjax reproduce deep`.
    """
    q = 1 - 2 / as_count(depth, "depth", least=2)
    target, curvature, scale = as_float(target, "target"), as_float(curvature, "curvature"), as_scalar(scale, "scale")
    require_positive(curvature, "curvature")
    require_positive(scale, "scale")
    peak = q**q / (1 + q) ** (1 + q)
    return curvature * jnp.abs(target) ** (1 + q) * peak / (2 * scale)


def _as_slope(R: AbstractLegendre, slope: Numbers) -> Point:
    """The slope, shaped like x. Raises `ValueError` where it is known to be NaN or negative."""
    like = R.point_like()
    slope = as_float(slope, "slope")
    if slope.ndim == 0:
        slope = jnp.full(like.shape, slope.astype(like.dtype))
    slope = as_point(slope, like, "slope")
    require_nonnegative(slope, "slope", finite=False)
    return slope
