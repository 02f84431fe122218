"""PILoT: sparsity from x = m w and a weight decay that is switched off.

For x = m w under h = m^2 + w^2, `m^2 - w^2` is a known function of the regularization spent alone,
`(m0^2 - w0^2) exp(-4 int alpha)`, whatever the loss; half of its absolute value is the width A of R_a. Where |x| >> A
the bias is L1, where |x| << A it is L2. So the width A at the end of decay determines which x are driven to zero, and
the schedule is computed from that width.

The published method (Jacobs and Burkholz, arXiv 2408.09966) has the parameterization, the start at x = m w, a strength
that moves the bias from L2 to L1, and explicit regularization that is switched off at the end. Its rule, which adapts
the strength during training, is not reproduced: the strength here is fixed in advance.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks import as_time_scalar, refuted, require_positive
from ..problem import CosineDecay
from .clock import StepSize
from .decay import decoupled_weight_decay
from .masks import Mask, masked
from .tensors import require_params


def pilot_schedule(balance: ArrayLike, width: ArrayLike, t_off: ArrayLike) -> CosineDecay:
    """Returns `alpha(t)`, a cosine to 0 at t_off, under which x = m w ends with the hyperbolic width `A = width`.

    A falls from balance / 2 by the factor `exp(-4 int alpha)` and the integral is `alpha t_off / 2`, so
    `alpha = log(balance / (2 width)) / (2 t_off)`.

    **Arguments:** `balance`: `m^2 - w^2` at the start, > 0, as given to `mirrorjax.nn.Factored`; `width`: A at the end,
    in 0 < width <= balance / 2; `t_off`: when decay ends, > 0, in the flow's time (sum of learning rates).
    **Returns:** a `CosineDecay`.
    **Raises:** `ValueError` for numbers outside these ranges.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (9), with `A_a = A_0 exp(4 a)`.
    """
    numbers = {"balance": balance, "width": width, "t_off": t_off}
    b, A, end = (as_time_scalar(value, name) for name, value in numbers.items())
    for name, value in zip(numbers, (b, A, end), strict=True):
        require_positive(value, name)
    if refuted(lambda: b / 2 >= A, b, A):
        raise ValueError(f"width = {A} is above balance / 2 = {b / 2}, its value at the start; decay only narrows it")
    return CosineDecay(jnp.log(b / (2 * A)) / (2 * end), end)


def pilot(
    optimizer: optax.GradientTransformation,
    *,
    balance: ArrayLike,
    width: ArrayLike,
    t_off: ArrayLike,
    step_size: StepSize,
    mask: Mask,
) -> optax.GradientTransformation:
    """`optimizer(grad f) - eta 2 alpha(t) theta` on the factors m, w, with the strength of `pilot_schedule`.

    The decay is decoupled, so that it narrows A by the same factor for every optimizer; with `optax.sgd` without
    momentum a step is the primal flow's Euler step. The steps of an adaptive optimizer change `m^2 - w^2` too, so with
    one A ends only near `width`. After t_off the optimizer runs without decay.

    **Arguments:** `optimizer`: any complete optax optimizer; `balance`, `width`, `t_off`: as in `pilot_schedule`;
    `step_size`: the optimizer's learning rate or its schedule; `mask`: the factors, `split.factored` of
    `mirrorjax.nn.reparameterize`, or patterns over paths.
    **Returns:** an optax transformation.
    **Raises:** `ValueError` as `pilot_schedule` and `decoupled_weight_decay`.

    Source: Jacobs and Burkholz, Mask in the Mirror (arXiv 2408.09966); the schedule is ours.
    """
    schedule = pilot_schedule(balance, width, t_off)
    return decoupled_weight_decay(optimizer, schedule, step_size=step_size, mask=mask)


def keep_zeros(mask: Mask = None) -> optax.GradientTransformation:
    """`u <- 0 where theta = 0`, so that pruned entries stay pruned. It must be the last transformation of a chain.

    **Arguments:** `mask`: which tensors, as in `scheduled_weight_decay`. Name the pruned ones: biases that start at 0
    would never be trained.
    **Returns:** an optax transformation without state.
    **Raises:** `ValueError` for `update` without parameters and for a pattern that names nothing.
    """

    def zero(u: Float[Array, "..."] | None, p: Float[Array, "..."]) -> Float[Array, "..."] | None:
        return None if u is None else jnp.where(p == 0, jnp.zeros_like(u), u)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        require_params(params, "keep_zeros")
        return jax.tree.map(zero, updates, params, is_leaf=lambda u: u is None), state

    return masked(optax.GradientTransformation(optax.init_empty_state, update), mask)
