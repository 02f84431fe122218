"""Training loops of a few steps, as small as they get: what the tests of `optim/` and `nn/` share."""

from collections.abc import Callable
from typing import Any

import jax
import optax

PyTree = Any


def train(
    optimizer: optax.GradientTransformation, loss: Callable, params: PyTree, steps: int, state: PyTree = None
) -> tuple[PyTree, PyTree]:
    """Parameters and optimizer state after so many full-batch steps, in one compiled loop."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params) if state is None else state)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])(start)


def update(optimizer: optax.GradientTransformation, gradients: PyTree, state: PyTree, params: PyTree) -> PyTree:
    """`optimizer.update`, whose types optax leaves wide open."""
    return optimizer.update(gradients, state, params)
