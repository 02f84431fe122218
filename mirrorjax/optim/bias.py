"""Splits the bias that training accumulates on x = m w into the parts of decay, of finite steps and of noise.

With `u = m + w` and `v = m - w` the accumulated regularization of a coordinate is `a = log|u v / (u0 v0)| / 4` for
`h = m^2 + w^2` (`mirrorjax.read_bias`). Gradient descent with coupled decay multiplies u by `1 - 2 eta alpha - eta g`
and v by `1 - 2 eta alpha + eta g`, whatever the gradient g of f at x, so that after K steps, exactly,

    4 a = sum_k [ 2 log|1 - 2 eta alpha_k| + log|1 - (eta g_k / (1 - 2 eta alpha_k))^2| ].

The first term is the part of decay, the second that of the step, which noise in g makes larger. For other optimizers
the same is measured step by step from the weights before and after each part of the update.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .clock import StepSize, Strength
from .decay import decoupled_weight_decay, scheduled_weight_decay
from .masks import Mask, as_mask
from .tensors import over_pairs, require_optimizer, require_params

Values = Float[Array, "..."]
Pair = tuple[Values, Values]


class Sum(NamedTuple):
    """A compensated sum (Kahan): the value and its rounding error. Parts of 1e-9 a step count in float32, too."""

    value: Values
    carry: Values

    def add(self, term: Values) -> "Sum":
        """The sum with one more term."""
        addend = term - self.carry
        value = self.value + addend
        return Sum(value, (value - self.value) - addend)


class BiasState(NamedTuple):
    """The state of `track_bias`; `accumulated_bias` reads the parts out of it.

    `optimizer`: of the optimizer that trains; `undecayed`, `mean`: of its copies that see gradients without decay, and
    mean gradients; `decay_clock`: of the decay; `decay`, `step`, `noise`: 4 times the parts of a, a `Sum` for each pair
    and `None` for other tensors.
    """

    optimizer: Any
    undecayed: Any
    mean: Any
    decay_clock: Any
    decay: PyTree
    step: PyTree
    noise: PyTree


class BiasParts(NamedTuple):
    """The parts of a, trees with an array for each pair and `None` for other tensors.

    `decay`, `step`, `noise`: their sum is `a` of `read_bias(Hadamard(), WeightDecay(), w0, w)`. `noise` is `None`
    where no mean gradients were given; `step` is then the part of steps and noise together.
    """

    decay: PyTree
    step: PyTree
    noise: PyTree | None

    @property
    def total(self) -> PyTree:
        """The sum of the parts, `a`."""
        parts = [part for part in self if part is not None]
        return jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *parts)


def track_bias(
    optimizer: optax.GradientTransformation,
    alpha: Strength,
    *,
    coupled: bool,
    step_size: StepSize | None = None,
    noise: bool = False,
    pairs: Mask = None,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with weight decay, which also accumulates what decay, steps and noise add to a.

    The updates are those of `coupled_weight_decay(optimizer, alpha)` or `decoupled_weight_decay(optimizer, alpha)`,
    unchanged, and no extra pass through the model is made. Each update is taken apart in this order:

    - **decay**: what decay adds to the update. Decoupled, that is `-2 eta alpha theta`. Coupled, it is the update minus
      that of a copy of the optimizer which has seen the same gradients without decay. With plain gradient descent,
      and decoupled with any optimizer, decay moves a by `log|1 - 2 eta alpha| / 2` a step, the same in all coordinates.
    - **step**: what a copy of the optimizer would add that sees mean gradients without decay: the deterministic part of
      the finite step, which is negative for gradient descent, and 0 in the limit of small steps.
    - **noise**: the rest of the update. It needs `noise=True` and the mean gradient, which the training loop passes:
      `optimizer.update(gradients, state, params, mean_gradient=full_batch)`. A running mean of gradients is an estimate
      that lags. With `noise=False` the rest counts as step.

    The changes of `log|u v|` over the parts add up to that of the whole update. For gradient descent with coupled
    decay the split is the formula at the top of this file; for momentum it is exact, since the update is linear in the
    gradient; for Adam, and for decay that goes through Adam, it is a definition. Parts of a coordinate whose weights
    change orthant are those of |u v| and say little; `mirrorjax.read_bias` finds these coordinates. It costs six arrays
    for each pair and one or two more states of the optimizer. Let it be the last transformation of a chain: a later
    one would change the updates after they were measured.

    **Arguments:**

    - `optimizer`: any complete optax optimizer, its learning rate included.
    - `alpha`, `step_size`, `mask`: the decay `alpha |theta|^2`, its clock and its tensors, as in
      `coupled_weight_decay` and `decoupled_weight_decay`; 0 for none.
    - `coupled`: True if the optimizer sees the gradient of the decay, False if decay bypasses it (AdamW).
    - `noise`: True if every update is given the mean gradient.
    - `pairs`: which parts of the parameters are pairs (m, w): a tree of booleans that is the top of the parameters,
      such as `split.factored` of `mirrorjax.nn.reparameterize`; by default the parameters are one pair.

    **Returns:** an optax transformation; `accumulated_bias(state)` reads the parts.

    **Raises:** `ValueError` as the decay does, for pairs that are not two arrays of one shape, for `coupled` and
    `noise` that are no booleans, and from `update` for a missing or superfluous mean gradient.

    Example:

        optimizer = optim.track_bias(optax.sgd(0.1), alpha=0.01, coupled=True)
        state = optimizer.init((m, w))
        updates, state = optimizer.update(gradients, state, (m, w))
        optim.accumulated_bias(state).decay

    Source: none published; Pesme, Pillaud-Vivien, Flammarion (2021) and Even, Pesme, Gunasekar, Flammarion (arXiv
    2302.08982) for what steps and noise do to x = u^2 - v^2.
    """
    require_optimizer(optimizer, "track_bias")
    for name, value in {"coupled": coupled, "noise": noise}.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} of track_bias must be True or False, got {value!r}")
    pairs_of, inner = as_mask(pairs), optax.with_extra_args_support(optimizer)
    if coupled:
        decay = scheduled_weight_decay(alpha, step_size=step_size, mask=mask)
    elif step_size is None:
        raise ValueError("decoupled decay is multiplied by the learning rate: give track_bias step_size")
    else:
        decay = decoupled_weight_decay(optax.identity(), alpha, step_size=step_size, mask=mask)

    def init(params: PyTree) -> BiasState:
        zero = over_pairs("track_bias", pairs_of(params), _zero, params)
        return BiasState(
            optimizer=inner.init(params),
            undecayed=inner.init(params) if coupled else (),
            mean=inner.init(params) if noise else (),
            decay_clock=decay.init(params),
            decay=zero,
            step=zero,
            noise=zero if noise else (),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, mean_gradient: PyTree = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        require_params(params, "track_bias")
        _require_mean(mean_gradient, noise)
        if coupled:
            decayed, clock = decay.update(updates, state.decay_clock, params)
            whole, trained = inner.update(decayed, state.optimizer, params, **extra)
            rest, undecayed = inner.update(updates, state.undecayed, params, **extra)
        else:
            rest, trained = inner.update(updates, state.optimizer, params, **extra)
            whole, clock = decay.update(rest, state.decay_clock, params)
            undecayed = ()
        after = optax.apply_updates(params, whole)
        after_decay = optax.apply_updates(params, jax.tree.map(lambda one, other: one - other, whole, rest))
        after_step, mean, noisy = after, (), ()
        if noise:
            expected, mean = inner.update(mean_gradient, state.mean, params, **extra)
            after_step = optax.apply_updates(after_decay, expected)
            noisy = _grown(pairs_of(params), state.noise, after_step, after)
        decayed_by = _grown(pairs_of(params), state.decay, params, after_decay)
        stepped_by = _grown(pairs_of(params), state.step, after_decay, after_step)
        return whole, BiasState(trained, undecayed, mean, clock, decayed_by, stepped_by, noisy)

    return optax.GradientTransformationExtraArgs(init, update)


def accumulated_bias(state: PyTree) -> BiasParts:
    """Returns the parts of a that `track_bias` has accumulated, from the state of an optimizer that contains it.

    **Arguments:** `state`: the state of `track_bias`, or of a chain with one `track_bias`.
    **Returns:** a `BiasParts`.
    **Raises:** `ValueError` for a state with none or several of them.

    Example:

        optim.accumulated_bias(state).total  # = mirrorjax.read_bias(Hadamard(), WeightDecay(), w0, w).a
    """
    is_bias = lambda node: isinstance(node, BiasState)  # noqa: E731
    found = [node for node in jax.tree.leaves(state, is_leaf=is_bias) if is_bias(node)]
    if len(found) != 1:
        raise ValueError(f"the state must hold the state of one track_bias, it holds {len(found)}")
    is_sum = lambda node: isinstance(node, Sum)  # noqa: E731
    parts = (found[0].decay, found[0].step, found[0].noise)
    read = [jax.tree.map(lambda total: total.value / 4, part, is_leaf=is_sum) for part in parts]
    return BiasParts(read[0], read[1], None if found[0].noise == () else read[2])


def _require_mean(mean_gradient: PyTree, noise: bool) -> None:
    if noise and mean_gradient is None:
        raise ValueError(
            "track_bias with noise=True needs the mean gradient of each step: call optimizer.update(gradients, state, "
            "params, mean_gradient=full_batch_gradients), or leave noise out"
        )
    if not noise and mean_gradient is not None:
        raise ValueError("track_bias was given a mean gradient and would ignore it: build it with noise=True")


def _grown(pairs: PyTree, sums: PyTree, before: PyTree, after: PyTree) -> PyTree:
    """The sums with the change of `log|u v|` of each pair between two sets of parameters."""
    return over_pairs("track_bias", pairs, _added, before, after, sums)


def _zero(pair: Pair) -> Sum:
    zero = jnp.zeros(pair[0].shape, _accumulated(pair))
    return Sum(zero, zero)


def _accumulated(pair: Pair) -> Any:
    """The dtype of the sums: that of the weights, and at least float32."""
    return max(jnp.dtype(jnp.float32), *(leaf.dtype for leaf in pair), key=lambda dtype: jnp.finfo(dtype).nmant)


def _added(before: Pair, after: Pair, total: Sum) -> Sum:
    """The sum with the change of `log|u v|` from one pair to the other."""
    dtype = _accumulated(before)
    m0, w0, m1, w1 = (leaf.astype(dtype) for leaf in (*before, *after))
    return total.add(_log_size((m1 - m0) + (w1 - w0), m0 + w0) + _log_size((m1 - m0) - (w1 - w0), m0 - w0))


def _log_size(change: Values, start: Values) -> Values:
    """`log|1 + change / start|`, with all the digits of a small change."""
    ratio = change / start
    ahead = ratio > -1
    return jnp.where(ahead, jnp.log1p(jnp.where(ahead, ratio, 0.0)), jnp.log(jnp.where(ahead, 1.0, -1 - ratio)))
