"""The protocol of steppers, and the lane they move."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...results import RESULTS
from ..motion import AbstractMotion
from ..options import Options

# The part of a batch that is changed together where few lanes need it. A GPU takes as long for one lane as for some
# hundreds: by 4 lanes at a time it read the results of 1024 lanes in 256 rounds.
PART = 16

Prepare = Callable[[Any], AbstractMotion]
"""Builds the motion of one lane from its grid values."""


class Lane(eqx.Module):
    """The state of one lane of a sweep: all that is needed to continue it as if it had never stopped.

    - `tick`: time on the solver's clock; `state`: the motion's state there; `carried`: data of the stepper.
    - `saved`: number of save times passed; `metrics` and `loss` (time, ...) there, 0 at those ahead.
    - `steps`, `rejected_steps`: solver steps so far; `work`: steps, or evaluations of the velocity for RKC.
    - `next_try`: the steps from which it is asked again whether the lane has arrived, see `arrival.py`.
    - `running`: False once the lane has ended; `result` says how, and `tick` when.
    """

    tick: Float[Array, ""]
    state: PyTree
    carried: PyTree
    saved: Int[Array, ""]
    metrics: PyTree
    loss: Float[Array, " time"]
    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    work: Int[Array, ""]
    next_try: Int[Array, ""]
    running: Bool[Array, ""]
    result: RESULTS


class AbstractStepper(eqx.Module):
    """Moves a batch of lanes by a bounded amount of work."""

    @abc.abstractmethod
    def begin(self, motion: AbstractMotion, options: Options, state: PyTree) -> PyTree:
        """The stepper's data of a lane at t = 0, its `carried`."""

    @abc.abstractmethod
    def advance(self, prepare: Prepare, options: Options, values: PyTree, lanes: Lane, work: int) -> Lane:
        """Moves each lane by at most so much work. The result for lanes that do not run is discarded."""

    @abc.abstractmethod
    def halted(self, motion: AbstractMotion, options: Options, lane: Lane) -> tuple[RESULTS, Bool[Array, ""]]:
        """The solver's status of a lane that has moved, and True if the solver only paused for the end of its work."""


def over_lanes(prepare: Prepare, fn: Callable) -> Callable:
    """Turns a function of `(motion, ..)` of one lane into a function of `(values, ..)` of many."""
    return jax.vmap(lambda values, *rest: fn(prepare(values), *rest))


def part_of(count: int, least: int) -> int:
    """So many of `count` lanes are changed together: a `PART`, and at least `least`."""
    return min(count, max(least, count // PART))


def change_where(
    marked: Bool[Array, " lanes"], together: int, change: Callable, values: PyTree, lanes: PyTree
) -> PyTree:
    """Replaces the marked lanes by `change(values, lanes)`, which is computed for so many lanes at a time."""
    count = marked.size

    def some(carry: tuple[Bool[Array, " lanes"], PyTree]) -> tuple[Bool[Array, " lanes"], PyTree]:
        marked, lanes = carry
        wanted, chosen = jax.lax.top_k(marked.astype(int), min(together, count))
        chosen = jnp.where(wanted == 1, chosen, count)
        own, few = jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="clip"), (values, lanes))
        new = change(own, few)
        lanes = jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new, mode="drop"), lanes, new)
        return marked.at[chosen].set(False, mode="drop"), lanes

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0]), some, (marked, lanes))[1]
