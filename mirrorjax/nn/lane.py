"""Calls the functions that define a training, and checks what they return.

A lane returns its optimizer, weights and key; loss, batch and metrics are shared by all lanes. Errors name the
function, and come before anything is compiled.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..calls import calling, require_numbers
from ..checks import require_key
from ..paths import named_leaves
from ..runs.devices import Devices
from ..runs.grid import OneLane

Carry = tuple[PyTree, PyTree]  # weights and the optimizer's state


class Task(eqx.Module):
    """The functions that define the training of a lane; they may be modules that hold data."""

    lane: Callable
    loss: Callable
    batch: Callable
    metrics: Callable
    every: int = eqx.field(static=True)  # static: the length of a loop
    accumulate: int = eqx.field(static=True)  # static: the length of a loop
    shares: Devices = eqx.field(static=True)  # static: devices that each batch is divided over


def call_lane(task: Task, values: OneLane) -> tuple[optax.GradientTransformationExtraArgs, PyTree, PRNGKeyArray]:
    """Returns optimizer, weights and key of a lane. Raises `ValueError` where the lane returns something else."""
    with calling("the lane"):
        made = task.lane(**values)
    if not isinstance(made, tuple | list) or len(made) != 3:
        raise ValueError(f"the lane must return (optimizer, weights, key), got {type(made).__name__}")
    optimizer, weights, key = made
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ValueError(
            f"the lane must return an optax optimizer first, such as optax.sgd(0.1), got {optimizer!r}; a function of "
            "optax is called with its learning rate"
        )
    require_key(key, "the third part that the lane returns")
    return optax.with_extra_args_support(optimizer), weights, key


def initialize(optimizer: optax.GradientTransformation, weights: PyTree) -> PyTree:
    """The optimizer's first state. Raises `ValueError` for lookahead, which trains two copies of the weights."""
    with calling("the optimizer"):
        state = optimizer.init(weights)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, optax.LookaheadState))
    if any(isinstance(node, optax.LookaheadState) for node in nodes):
        raise ValueError(
            "optax.lookahead trains pairs of fast and slow weights, which train cannot: give the optimizer inside it"
        )
    return state


def update(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: PyTree,
    state: PyTree,
    weights: PyTree,
    value: Float[Array, ""],
    value_fn: Callable[[PyTree], Float[Array, ""]],
) -> tuple[PyTree, PyTree]:
    """One update, with what line searches need. Raises `ValueError` for an optimizer that needs still more."""
    try:
        with calling("the optimizer"):
            updates, new = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=value_fn)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise ValueError(
            f"the optimizer needs more than train has, the gradient, the weights, value, grad and value_fn: {error}"
        ) from None
    return updates, new


def measured_by(task: Task, weights: PyTree) -> PyTree:
    """The metrics of one lane. Raises `ValueError` unless they are real numbers."""
    with calling("metrics"):
        measured = task.metrics(weights)
    require_numbers(measured, "metrics")
    for name, leaf in named_leaves(measured):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(f"metrics must be real, got a complex number at {name!r}: record its parts")
    return jax.tree.map(jnp.asarray, measured)


def start(task: Task, values: OneLane) -> Carry:
    """The weights of a lane and the state of its optimizer before the first step.

    **Raises:** `ValueError` for weights that cannot be trained.
    """
    optimizer, weights, _ = call_lane(task, values)
    for name, leaf in named_leaves(weights):
        if not (eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)):
            got = f"dtype {leaf.dtype}" if eqx.is_array(leaf) else repr(leaf)
            raise ValueError(
                f"the lane must return weights that are arrays of floating point, got {got} at {name!r}; arrays that "
                "do not train belong into the loss, e.g. as fields of an equinox.Module"
            )
    if not jax.tree.leaves(weights):
        raise ValueError(f"the lane must return weights to train, got {weights!r}")
    return weights, initialize(optimizer, weights)


def batch_of(task: Task, key: PRNGKeyArray) -> PyTree:
    """The batch that a key draws."""
    with calling("batch"):
        return task.batch(key)


def loss_of(task: Task, weights: PyTree, batch: PyTree) -> Float[Array, ""]:
    """The loss of a batch. Raises `ValueError` unless it is one real number."""
    with calling("loss"):
        value = task.loss(weights, batch)
    require_numbers(value, "loss")
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(f"loss must return one real number, got {jax.tree.map(jax.typeof, value)}; average the batch")
    return value
