"""Weight decay whose strength follows a schedule, as optax transformations.

The conventions of the theory and of optax differ by a factor of two. The theory's `alpha |theta|^2` has the gradient
`2 alpha theta`; in optax and PyTorch, `weight_decay` multiplies theta. So in this file `alpha` always means
`2 alpha theta` and `weight_decay` always `weight_decay theta`: `alpha = weight_decay / 2`.

Numbers may be traced: several strengths and switch-off times are lanes of `jax.vmap` when the optimizer is built inside
the mapped function, and a new value does not recompile a step that takes it as an argument.
"""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks import as_scalar, require_nonnegative
from ..problem import AbstractSchedule
from .clock import (
    ClockState,
    Pending,
    StepSize,
    Strength,
    advance,
    as_step_size,
    as_strength,
    pending_in_steps,
    pending_in_time,
    refuse_time,
    start_clock,
    switched_off,
    warn_of_late_end,
)
from .masks import Mask, masked
from .tensors import add_multiple, require_optimizer, require_params, require_share


def scheduled_weight_decay(
    alpha: Strength, *, step_size: StepSize | None = None, mask: Mask = None
) -> optax.GradientTransformation:
    """`u <- u + 2 alpha theta`, the gradient of `alpha |theta|^2`, with a strength that changes over training.

    The transformation replaces `optax.add_decayed_weights` in a chain. Before an optimizer the decay is coupled,
    between `optax.scale_by_adam` and `optax.scale_by_learning_rate` it is decoupled; `coupled_weight_decay` and
    `decoupled_weight_decay` build both. **Mind the 2:** the theory's alpha is half of optax's `weight_decay`.

    **Arguments:**

    - `alpha`: a schedule of `mirrorjax.problem` (`SwitchOff`, `CosineDecay`, ..), read at the flow's time t, the sum of
      the learning rates of all steps before this one; or an optax schedule, read at the count of steps; or a number.
    - `step_size`: the learning rate, a number > 0 or an optax schedule; its sum is t. Required with a schedule of the
      flow's time, refused otherwise. With heavy-ball momentum beta, the weights move 1 / (1 - beta) as
      far in a unit of this t.
    - `mask`: which tensors decay: patterns over paths such as `"*/kernel"`, or a mask as optax takes it.

    **Returns:** an optax transformation; its state, a `ClockState`, is five scalars, among them the current strength.

    **Raises:** `ValueError` for a strength that is negative or not finite, a step size that is not positive, a missing
    or superfluous step size, `update` without parameters, tensors of integers, a mask that is no tree of booleans
    or does not fit the parameters, and a pattern that names nothing. A bad value that is
    known only in the compiled step (a traced number, a schedule that turns negative) makes the update NaN. So does a
    learning rate that turns negative, from the next step on: the time is lost, and with it when to switch off.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3) in discrete time, Theorem 3.10 for the switch-off.
    """
    timed = isinstance(alpha, AbstractSchedule)
    if timed and step_size is None:
        raise ValueError(
            f"{type(alpha).__name__} is a function of the flow's time, the sum of the learning rates: give "
            "step_size, the learning rate or its schedule; or give an optax schedule, which counts steps"
        )
    if not timed and step_size is not None:
        raise ValueError(
            "step_size is the clock of a schedule of the flow's time; this alpha is a number or counts steps: leave "
            "step_size out, or give a schedule of mirrorjax.problem such as SwitchOff(alpha, t_off)"
        )
    clock = as_step_size(1.0 if step_size is None else step_size)
    warn_of_late_end(alpha, 1.0 if step_size is None else step_size)
    return _added(as_strength(alpha, "alpha"), pending_in_time(alpha), clock, mask)


def _added(strength: Callable, pending: Pending, clock: Callable, mask: Mask) -> optax.GradientTransformation:
    """The transformation `u <- u + 2 alpha theta`."""

    def add(u: PyTree, strength: Float[Array, ""], eta: Float[Array, ""], params: PyTree) -> PyTree:
        return add_multiple("scheduled_weight_decay", u, 2 * strength, params)

    return masked(_decay(strength, pending, clock, add, "scheduled_weight_decay"), mask)


def _decay(
    strength: Callable, pending: Pending, clock: Callable, act: Callable, name: str
) -> optax.GradientTransformation:
    """The transformation `u <- act(u, alpha, eta, theta)`, with the clock of schedules as its state."""

    def init(params: PyTree) -> ClockState:
        return start_clock(pending, strength)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        require_params(params, name)
        eta, alpha = clock(state.count), strength(state)
        return act(updates, alpha, eta, params), advance(state, eta, pending, alpha)

    return optax.GradientTransformation(init, update)


def coupled_weight_decay(
    optimizer: optax.GradientTransformation, alpha: Strength, *, step_size: StepSize | None = None, mask: Mask = None
) -> optax.GradientTransformation:
    """`optimizer(grad f + 2 alpha theta)`: the optimizer sees the gradient of `f + alpha |theta|^2`.

    This is L2 regularization. With plain gradient descent this is the primal flow's explicit Euler step.

    **Arguments:** `optimizer`: any optax optimizer; the others as in `scheduled_weight_decay`.
    **Returns, raises:** as `scheduled_weight_decay`.

    Source: the paper's Eq. (3).
    """
    require_optimizer(optimizer, "coupled_weight_decay")
    return optax.chain(scheduled_weight_decay(alpha, step_size=step_size, mask=mask), optimizer)


def decoupled_weight_decay(
    optimizer: optax.GradientTransformation, alpha: Strength, *, step_size: StepSize, mask: Mask = None
) -> optax.GradientTransformation:
    """`optimizer(grad f) - eta 2 alpha theta`: the decay, times the learning rate, bypasses the optimizer (AdamW).

    **Arguments:**

    - `optimizer`: any complete optax optimizer, its learning rate included, e.g. `optax.adam(1e-3)`.
    - `alpha`, `mask`: as in `scheduled_weight_decay`.
    - `step_size`: eta, the optimizer's learning rate, a number > 0 or an optax schedule; its sum is the flow's time.

    **Returns, raises:** as `scheduled_weight_decay`.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), with the learning rate as in optax.
    """

    def subtract(u: PyTree, strength: Float[Array, ""], eta: Float[Array, ""], params: PyTree) -> PyTree:
        return add_multiple("decoupled_weight_decay", u, -2 * strength * eta, params)

    require_optimizer(optimizer, "decoupled_weight_decay")
    strength, clock = as_strength(alpha, "alpha"), as_step_size(step_size)
    warn_of_late_end(alpha, step_size)
    decay = _decay(strength, pending_in_time(alpha), clock, subtract, "decoupled_weight_decay")
    return optax.chain(optimizer, masked(decay, mask))


def switch_off_adamw(
    learning_rate: StepSize,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: Any = None,
    weight_decay: Callable | ArrayLike = 1e-4,
    mask: Mask = None,
    *,
    off_at: ArrayLike,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """`optax.adamw` for the first `off_at` steps, `optax.adam` after.

    **Arguments:** those of `optax.adamw` in its order, with its `weight_decay` (which multiplies theta: twice the
    theory's alpha) and its masks, or patterns over paths; `off_at`: the number of steps with decay, >= 0, `inf` for
    all.
    **Returns:** an optax transformation.
    **Raises:** as `scheduled_weight_decay`, and `ValueError` for an `off_at` that is negative or NaN, a learning rate
    or an eps that is negative or not finite, and b1 or b2 outside [0, 1).

    Source: the paper's section 5, Tables 3 and 5 (decay switched off in training).
    """
    _require_rate(learning_rate)
    for name, value in {"b1": b1, "b2": b2}.items():
        require_share(value, name)
    for name, value in {"eps": eps, "eps_root": eps_root}.items():
        require_nonnegative(as_scalar(value, name), name, finite=True)
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root, mu_dtype=mu_dtype, nesterov=nesterov),
        # Not optax.adamw(weight_decay=schedule): optax takes a schedule there from 0.2.6 on, and keeps neither the
        # strength nor whether the switch-off lies ahead, which logs and train() read.
        _switch_off(weight_decay, off_at, mask),
        optax.scale_by_learning_rate(learning_rate),  # type: ignore[arg-type]
    )


def switch_off_sgd(
    learning_rate: StepSize,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    weight_decay: Callable | ArrayLike,
    off_at: ArrayLike,
    mask: Mask = None,
) -> optax.GradientTransformation:
    """`optax.sgd` of the gradient plus `weight_decay * theta` for the first `off_at` steps, `optax.sgd` after.

    The decay is coupled, so momentum still contains some of it for a while after the switch-off (as in PyTorch's SGD).

    **Arguments:** those of `optax.sgd` in its order; `weight_decay` multiplies theta (twice the theory's alpha);
    `off_at`: the number of steps with decay, >= 0, `inf` for all; `mask`: which tensors, as in
    `scheduled_weight_decay`.
    **Returns:** an optax transformation.
    **Raises:** as `scheduled_weight_decay`, and `ValueError` for an `off_at` that is negative or NaN, a learning rate
    that is negative or not finite, and a momentum outside [0, 1).

    Source: the paper's section 5, Table 5 (SGD with momentum 0.9).
    """
    _require_rate(learning_rate)
    if momentum is not None:
        require_share(momentum, "momentum")
    return optax.chain(
        _switch_off(weight_decay, off_at, mask),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),  # type: ignore[arg-type]
    )


def _require_rate(learning_rate: StepSize) -> None:
    """Raises `ValueError` for a learning rate that is a schedule of the flow's time, negative or not finite."""
    refuse_time(learning_rate, "learning_rate")
    if not callable(learning_rate):
        require_nonnegative(as_scalar(learning_rate, "learning_rate"), "learning_rate", finite=True)


def _switch_off(weight_decay: Callable | ArrayLike, off_at: ArrayLike, mask: Mask) -> optax.GradientTransformation:
    schedule = switched_off(weight_decay, off_at, "weight_decay")
    strength = as_strength(lambda count: schedule(count) / 2, "alpha")  # halving and doubling are exact
    return _added(strength, pending_in_steps(off_at), as_step_size(1.0), mask)
