"""PILoT: sparsity from x = m w and a weight decay that is switched off, by a fixed schedule or by the published rule.

For x = m w under h = m^2 + w^2, `m^2 - w^2` is a known function of the regularization spent alone,
`(m0^2 - w0^2) exp(-4 int alpha)`, whatever the loss; half of its absolute value is the width A of R_a. Where |x| >> A
the bias is L1, where |x| << A it is L2. So the width A at the end of decay determines which x are driven to zero.

`pilot` computes its schedule from that width before training starts. `pilot_decay` is the published method (Jacobs and
Burkholz, arXiv 2408.09966): the strength follows the training accuracy, and the width is what comes out.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ..calls import calling
from ..checks import as_count, as_scalar, as_time_scalar, refuted, require_nonnegative, require_positive
from ..problem import CosineDecay
from .clock import ClockState, StepSize, at_count, or_nan
from .decay import decoupled_weight_decay
from .masks import Mask, as_mask, masked, spread
from .tensors import over_pairs, over_tensors, require_params

Accuracy = Callable[[PyTree], Float[Array, ""]]
# A tensor whose largest entry is below this share of its first largest entry passes no signal on.
DEAD = 1e-3


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

    **Choosing the numbers**, measured on a perceptron of 17,000 weights for scikit-learn's digits (SGD with momentum
    0.9, decay for two thirds of 60 epochs, 3 seeds, balances 0.03 to 10 by widths 1e-4 to 0.2):

    - `balance`: 1, which leaves learning rates as they are: x moves `balance` times as fast in the beginning as without
      factors. From 0.3 to 3 the accuracy after pruning, at the best width, differs by less than 1 %; at 10 the same
      learning rate diverged.
    - `width`: in units of the size of freshly drawn entries, a third to prune to a share of 20 %, a sixth for 10 %, a
      tenth for 5 %, a fiftieth for 2 %: there pruning costs at most 1.2 % of accuracy before any tuning. Five times too
      large a width costs up to 7 %, ten times too small a one 1 %: when in doubt, take the narrower.
    - `t_off`: so long that the first strength, `log(balance / (2 width)) / (2 t_off)`, stays below about 0.1 with
      momentum 0.9, 0.01 without, for a cross-entropy. Stronger decay outweighs the loss and drives whole layers to
      zero: with 0.3, at the smallest of three learning rates, accuracy fell to 31 %.

    **Arguments:** `optimizer`: any complete optax optimizer; `balance`, `width`, `t_off`: as in `pilot_schedule`;
    `step_size`: the optimizer's learning rate or its schedule; `mask`: the factors, `split.factored` of
    `mirrorjax.nn.reparameterize`, or patterns over paths.
    **Returns:** an optax transformation. `has_collapsed` of its state says whether decay drove a tensor to zero.
    **Raises:** `ValueError` as `pilot_schedule` and `decoupled_weight_decay`.

    Source: Jacobs and Burkholz, Mask in the Mirror (arXiv 2408.09966); the schedule is ours.
    """
    schedule = pilot_schedule(balance, width, t_off)
    return optax.chain(decoupled_weight_decay(optimizer, schedule, step_size=step_size, mask=mask), _watch(mask))


class SizeState(NamedTuple):
    """The largest entry of each decayed tensor at the start, and the least of these entries now, as a share of it."""

    start: PyTree
    share: Float[Array, ""]


def _watch(mask: Mask) -> optax.GradientTransformation:
    """Leaves the updates as they are, and notes how far the tensors have shrunk."""

    def init(params: PyTree) -> SizeState:
        return SizeState(jax.tree.map(_largest, params), jnp.ones(()))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, SizeState]:
        require_params(params, "pilot")
        return updates, SizeState(state.start, _least_share(state.start, params))

    return masked(optax.GradientTransformation(init, update), mask)


def _largest(leaf: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.max(jnp.abs(leaf), initial=0.0)


def _least_share(start: PyTree, params: PyTree) -> Float[Array, ""]:
    """The least of `max |theta| / max |theta_0|` over the tensors; a tensor that starts at zero does not count."""
    sizes = zip(jax.tree.leaves(start), map(_largest, jax.tree.leaves(params)), strict=True)
    shares = [jnp.where(first > 0, now / jnp.where(first > 0, first, 1), 1.0).astype(float) for first, now in sizes]
    return jnp.min(jnp.stack([jnp.ones(()), *shares]))


class RuleState(NamedTuple):
    """The state of `pilot_decay`; `current_strength` reads alpha out of it.

    `first`, `last`: the training accuracy before training and after the last whole epoch, NaN where there is none yet;
    `norm`: |m w|_1 at that time.
    """

    clock: ClockState
    first: Float[Array, ""]
    last: Float[Array, ""]
    norm: Float[Array, ""]


def pilot_decay(
    alpha: ArrayLike,
    *,
    delta: ArrayLike,
    least_norm: ArrayLike,
    epochs: int,
    steps_per_epoch: int,
    accuracy: Accuracy,
    pairs: Mask = None,
) -> optax.GradientTransformation:
    """`u <- u + 2 alpha_k theta` on the factors of x = m w, with the strength that PILoT adapts after each epoch.

    With `alpha_0 = alpha`, after k epochs

        alpha_{k+1} = alpha_k delta   if the training accuracy rose, |m w|_1 > least_norm and k <= epochs / 2,
        alpha_{k+1} = alpha_k / delta   otherwise.

    So the strength rises as long as the network can afford it and is not yet as sparse as was asked for; in the second
    half of training it falls geometrically, and the L1 bias that was stored by then stays.

    As published, the decay is a term of the loss: `optax.chain(pilot_decay(..), optax.sgd(0.1, momentum=0.9))`. Between
    `optax.scale_by_adam()` and `optax.scale_by_learning_rate(1e-3)` it is decoupled. The start is m0 w0 = x with
    m0^2 - w0^2 = balance, `mirrorjax.nn.Factored(Hadamard(), balance)`; the authors use balance 1.

    **Arguments:**

    - `alpha`: the first strength, of alpha (|m|^2 + |w|^2), >= 0: half of optax's `weight_decay`.
    - `delta`: the factor, > 1.
    - `least_norm`: K >= 0, in units of |x|_1 over all pairs together; 0 lets the strength rise whatever the norm is.
    - `epochs`, `steps_per_epoch`: T, after half of which the strength only falls, and the length of an epoch in steps.
    - `accuracy`: a function of the parameters that returns the accuracy on training data, pure JAX; called before the
      first step and after every epoch. Under `jax.vmap` the compiled program calls it at every step: a part of the
      training data is enough.
    - `pairs`: which parts of the parameters are pairs (m, w), as in `track_bias`: `split.factored` of
      `mirrorjax.nn.reparameterize`; by default the parameters are one pair.

    **Returns:** an optax transformation; its state is a `RuleState`. `current_strength(state)` is alpha_k, and
    `has_collapsed(state)` is True where the accuracy has not risen above the one before training.

    **Raises:** `ValueError` for numbers outside these ranges, an accuracy that is no function or returns no number,
    pairs that are not two arrays of one shape, and `update` without parameters. A traced number that is bad makes the
    update NaN.

    Example:

        split, weights = nn.reparameterize(params, {"*/kernel": mj.Hadamard()})
        decay = optim.pilot_decay(
            1e-4, delta=1.1, least_norm=50.0, epochs=100, steps_per_epoch=20, accuracy=on_training_data,
            pairs=split.factored,
        )
        optimizer = optax.chain(decay, optax.sgd(0.1, momentum=0.9))

    Source: Jacobs and Burkholz, Mask in the Mirror (arXiv 2408.09966), Algorithm 1. Its comparisons are read as above:
    the reviews of the paper say that the strength rises while |m w|_1 >= K. The k in k <= T / 2 counts finished epochs.
    """
    first, factor, least = _rule_numbers(alpha, delta, least_norm)
    whole, length = as_count(epochs, "epochs"), as_count(steps_per_epoch, "steps_per_epoch")
    if not callable(accuracy):
        raise ValueError(f"accuracy must be a function of the parameters that returns a number, got {accuracy!r}")
    pairs_of = as_mask(pairs)

    def seen(params: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        with calling("accuracy"):
            found = accuracy(params)
        return as_scalar(found, "the accuracy").astype(float), _norm_of_products(pairs_of(params), params)

    def init(params: PyTree) -> RuleState:
        nan = jnp.full((), jnp.nan)
        return RuleState(_rule_clock(jnp.zeros((), jnp.int32), whole * length, first), nan, nan, nan)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        require_params(params, "pilot_decay")
        count, strength = state.clock.count, state.clock.strength
        is_due, k = count % length == 0, count // length
        looked = jax.lax.cond(is_due, seen, lambda _: (state.last, state.norm), jax.lax.stop_gradient(params))
        rises = (looked[0] > state.last) & (looked[1] > least) & (2 * k <= whole)
        changed = jnp.where(rises, strength * factor, strength / factor)
        strength = or_nan(jnp.where(is_due & (k > 0), changed, strength))
        moved = over_tensors(
            lambda u, p: u + (2 * strength).astype(p.dtype) * p,
            "pilot_decay",
            updates,
            params,
            chosen=spread(pairs_of, params),
        )
        clock = _rule_clock(jnp.asarray(optax.safe_increment(count)), whole * length, strength)
        return moved, RuleState(clock, jnp.where(count == 0, looked[0], state.first), *looked)

    return optax.GradientTransformation(init, update)


def _rule_numbers(alpha: ArrayLike, delta: ArrayLike, least_norm: ArrayLike) -> tuple[Float[Array, ""], ...]:
    first, factor, least = map(as_time_scalar, (alpha, delta, least_norm), ("alpha", "delta", "least_norm"))
    require_nonnegative(first, "alpha", finite=True)
    require_nonnegative(least, "least_norm", finite=True)
    if refuted(lambda: (factor > 1) & jnp.isfinite(factor), factor):
        raise ValueError(f"delta must be above 1 and finite, got {factor}: the strength rises and falls by this factor")
    return or_nan(first), jnp.where(factor > 1, factor, jnp.nan), or_nan(least)


def _rule_clock(count: Array, steps: int, strength: Float[Array, ""]) -> ClockState:
    """The count of steps with the strength; pending in the first half of the steps, where the strength may rise."""
    return at_count(count)._replace(pending=2 * count < steps, strength=strength)


def _norm_of_products(pairs: PyTree, params: PyTree) -> Float[Array, ""]:
    """`|m w|_1` over all pairs together."""
    norms = over_pairs("pilot_decay", pairs, lambda pair: jnp.sum(jnp.abs(pair[0] * pair[1])).astype(float), params)
    return sum(jax.tree.leaves(norms), jnp.zeros(()))


def has_collapsed(state: PyTree) -> Bool[Array, "*lanes"]:
    """Returns True where a run of `pilot` or `pilot_decay` is at chance, from the state of its optimizer.

    With `pilot` that is a decayed tensor of which no entry is above a thousandth of its largest at the start, so that
    no signal passes it; with `pilot_decay` a training accuracy that is not above the one before training. The remedy is
    a wider `width` or a weaker `alpha`.

    **Arguments:** `state`: the state of an optimizer that contains one of the two; after training, or at any time.
    **Returns:** a boolean; with one entry a lane for states under `jax.vmap`.
    **Raises:** `ValueError` for a state with neither of them.

    Example:

        bool(optim.has_collapsed(state))
    """
    signs = _signs(state)
    if not signs:
        raise ValueError("the state must hold the state of pilot or pilot_decay, it holds neither")
    return jnp.any(jnp.stack(signs), axis=0)


def _signs(state: PyTree) -> list[Bool[Array, "*lanes"]]:
    """Returns for each transformation of PILoT in the state a flag that is True if the run is at chance."""
    is_one = lambda node: isinstance(node, SizeState | RuleState)  # noqa: E731
    found = [node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node)]
    return [node.share < DEAD if isinstance(node, SizeState) else node.last <= node.first for node in found]


def warn_of_collapse(state: PyTree, lanes: int) -> None:
    """Warns of lanes of `mirrorjax.nn.train` that PILoT has led to chance; `state` may hold more lanes, as padding."""
    if signs := _signs(state):
        count = int(np.sum(np.any([np.asarray(sign)[:lanes] for sign in signs], axis=0)))
        if count:
            warnings.warn(
                f"{count} of {lanes} lanes of PILoT ended at chance: decay drove a whole tensor to zero, or the "
                "training accuracy is not above the one before training; give a wider width or a weaker alpha",
                stacklevel=3,
            )


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
