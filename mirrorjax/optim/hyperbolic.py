"""HAM, the hyperbolic step: mirror descent in a fixed hyperbolic geometry, without a second set of weights.

Both forms below are first-order discretizations of

    d theta/dt = -(1 + alpha |theta|) grad f(theta) - beta(t) theta.

With s = 1 + alpha |w| / 2 that is the primal flow of the one-factor family `theta = w + alpha w |w| / 4`, whose squared
slope is s^2 = 1 + alpha |theta|, under `h(w) = (s^2 - 1 - 2 log s) / alpha^2` at strength beta. Its mirror map at
beta = 0 is `sign(theta) log(1 + alpha |theta|) / alpha`: its R is quadratic near 0 and |theta| log |theta| far out.
For x = m w under weight decay, the metric `2 sqrt(x^2 + A_a^2)` changes, because decay shrinks A_a. The geometry of HAM
does not change as regularization is spent. Since `g'' h' - g' h'' = -1 / s` does not vanish, h does not commute with g,
and no R_a exists while beta > 0: decay moves the weights and leaves no trace in the geometry.
"""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks import as_time_scalar, require_nonnegative
from .clock import (
    ClockState,
    StepSize,
    Strength,
    advance,
    as_step_size,
    as_strength,
    or_nan,
    pending_in_time,
    start_clock,
    warn_of_late_end,
)
from .masks import Mask, as_mask, masked, matrices, spread
from .tensors import over_tensors, require_optimizer, require_params


def _curvature(alpha: ArrayLike) -> Float[Array, ""]:
    value = as_time_scalar(alpha, "alpha")
    require_nonnegative(value, "alpha", finite=True)
    return or_nan(value)


def hyperbolic_gradient(
    alpha: ArrayLike, beta: Strength = 0.0, *, step_size: StepSize = 1.0, mask: Mask = None
) -> optax.GradientTransformation:
    """`u <- (1 + alpha |theta|) u + beta theta`: the right-hand side of HAM's flow, for a plain gradient step after it.

    `optax.chain(hyperbolic_gradient(alpha, beta), optax.sgd(eta))` is the explicit Euler step of the flow above.

    **Arguments:** `alpha`: >= 0, how fast the metric grows away from 0, a number; `beta`: the decay's strength (it
    multiplies theta: no 2), a number, an optax schedule, or a schedule of the flow's time; `step_size`:
    the learning rate or its schedule, whose sum is that time; `mask`: which tensors, as in `scheduled_weight_decay`.
    **Returns:** an optax transformation; its state is a `ClockState`.
    **Raises:** `ValueError` for a negative or non-finite number, a step size that is not positive, `update` without
    parameters, a pattern that names nothing.

    Source: Jacobs, Gadhikar, Rubio-Madrigal, Burkholz, HAM (arXiv 2506.02630), its Riemannian gradient flow.
    """
    growth, strength, clock = _curvature(alpha), as_strength(beta, "beta"), as_step_size(step_size)
    pending = pending_in_time(beta)
    warn_of_late_end(beta, step_size)

    def init(params: PyTree) -> ClockState:
        return start_clock(pending, strength)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        require_params(params, "hyperbolic_gradient")
        decay = strength(state)

        def precondition(u: Array, p: Array) -> Array:
            return (1 + growth.astype(p.dtype) * jnp.abs(p)) * u + decay.astype(p.dtype) * p

        moved = over_tensors(precondition, "hyperbolic_gradient", updates, params)
        return moved, advance(state, clock(state.count), pending, decay)

    return masked(optax.GradientTransformation(init, update), mask)


def hyperbolic_step(
    optimizer: optax.GradientTransformation,
    alpha: ArrayLike = 200.0,
    beta: Strength = 1e-3,
    *,
    step_size: StepSize,
    limit: ArrayLike = 5.0,
    mask: Mask = matrices,
) -> optax.GradientTransformationExtraArgs:
    """`theta' = theta + optimizer(grad f)`, then `theta <- theta' exp(-eta (alpha sign(theta') grad f + beta))`.

    The two-step form: the step of the optimizer, which may cross 0, is followed by an exponentiated step that scales;
    grad f is the gradient at theta that `update` gets. With `optax.sgd(eta)` its limit is the flow above; another
    optimizer replaces the first term of that flow. The defaults are the authors': alpha = 200, beta = 1e-3, an exponent
    clamped to -5 .. 5, and only tensors of rank 2 or more. (Their code also scales tensors down to a norm of 1000,
    which no network in reach has.)

    **Arguments:**

    - `optimizer`: any complete optax optimizer, its learning rate included.
    - `alpha`, `beta`: as in `hyperbolic_gradient`.
    - `step_size`: eta, the optimizer's learning rate or its schedule.
    - `limit`: >= 0, the largest size of the exponent; `inf` for none. One step scales a number by at most e^limit.
    - `mask`: the tensors of the second step, as in `scheduled_weight_decay`; `None` for all (the optimizer always acts
      on all).

    **Returns:** an optax transformation; its state is the optimizer's and a `ClockState`.

    **Raises:** as `hyperbolic_gradient`, and `ValueError` for a limit that is negative or NaN.

    Example:

        optimizer = optim.hyperbolic_step(optax.adam(1e-3), step_size=1e-3)

    Source: Jacobs, Gadhikar, Rubio-Madrigal, Burkholz, HAM (arXiv 2506.02630), Algorithm 1, and their published code.
    """
    require_optimizer(optimizer, "hyperbolic_step")
    chosen_of = as_mask(mask)
    optimizer = optax.with_extra_args_support(optimizer)
    growth, strength, clock = _curvature(alpha), as_strength(beta, "beta"), as_step_size(step_size)
    pending, bound = pending_in_time(beta), as_time_scalar(limit, "limit")
    require_nonnegative(bound, "limit", finite=False)
    warn_of_late_end(beta, step_size)

    def init(params: PyTree) -> tuple[Any, ClockState]:
        return optimizer.init(params), start_clock(pending, strength)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        require_params(params, "hyperbolic_step")
        gradients, (memory, time) = updates, state
        updates, memory = optimizer.update(gradients, memory, params, **extra)
        eta, decay = clock(time.count), strength(time)

        def scale(u: Array, p: Array, grad: Array | None) -> Array:
            if grad is None:
                return u
            half = p + u
            rate = growth.astype(p.dtype) * jnp.sign(half) * grad + decay.astype(p.dtype)
            most = jnp.where(bound >= 0, bound, jnp.nan).astype(p.dtype)
            return u + half * jnp.expm1(jnp.clip(-eta.astype(p.dtype) * rate, -most, most))

        chosen = spread(chosen_of, params)
        moved = over_tensors(scale, "hyperbolic_step", updates, params, gradients, chosen=chosen)
        return moved, (memory, advance(time, eta, pending, decay))

    return optax.GradientTransformationExtraArgs(init, update)
