"""Training loops of a few steps, as small as they get: what the tests of `optim/` and `nn/` share."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array

PyTree = Any


def train(
    optimizer: optax.GradientTransformation, loss: Callable, params: PyTree, steps: int, state: PyTree = None
) -> tuple[PyTree, PyTree]:
    """Parameters and optimizer state after so many full-batch steps, in one compiled loop."""
    return trainer(optimizer, loss, steps)(params, optimizer.init(params) if state is None else state)


def trainer(optimizer: optax.GradientTransformation, loss: Callable, steps: int) -> Callable:
    """The compiled loop of `train`, `(params, state) -> (params, state)`, to be called more than once."""
    step = stepper(optimizer, loss)
    return jax.jit(lambda *carry: jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=steps)[0])


def stepper(optimizer: optax.GradientTransformation, loss: Callable) -> Callable:
    """One full-batch step, `(params, state) -> (params, state)`."""

    def step(carry: tuple) -> tuple:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def end_points(build: Callable, end: float, loss: Callable, start: PyTree, counts: tuple[int, ...]) -> list[PyTree]:
    """Parameters after n steps of size `end / n` of the optimizer `build(step_size)`, for each n, by one program."""

    @jax.jit
    def run(step_size: Array, count: Array) -> PyTree:
        optimizer = build(step_size)
        step = stepper(optimizer, loss)
        return jax.lax.fori_loop(0, count, lambda _, carry: step(carry), (start, optimizer.init(start)))[0]

    return [run(end / count, count) for count in counts]


def update(optimizer: optax.GradientTransformation, gradients: PyTree, state: PyTree, params: PyTree) -> PyTree:
    """`optimizer.update`, whose types optax leaves wide open."""
    return optimizer.update(gradients, state, params)
