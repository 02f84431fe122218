"""Solves by explicit steps that store what their derivative in reverse mode, in `backward.py`, needs: the kept steps.

diffrax differentiates the whole body of its loop: rejected steps, error control and all. A step that was kept is a
function of its two times, of the state at its start and of the numbers of the motion, and nothing else has a
derivative: step sizes are constants, and times move with the breakpoint before them, or the one they stop at.

States are stored as they are passed: those of the first steps all, later ones every so many steps, between which steps
are taken once more, without error control. Memory for one lane: see `Places`.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .guards import Field, unguarded_field
from .motion import state_bytes
from .pieces import OnPieces

Scalar = Float[Array, ""]
Count = Int[Array, ""]
Save = Callable[[Scalar, PyTree, Field], PyTree]
loop = eqx.Partial(eqxi.while_loop, kind="lax")

# The error of an explicit step shows a stage that is not finite, and a step that is kept has none.
TERMS = diffrax.ODETerm(unguarded_field)
# Steps whose states are all stored: as many as most solves take, and as fit into so many bytes.
MOST_STORED, ROOM = 1024, 2**20


class Ran(eqx.Module):
    """A solve that has ended: what was saved at the save times, the state and the tick at its end, and how it went."""

    saved: PyTree
    final: PyTree
    tick: Scalar
    stats: dict[str, Count]
    result: diffrax.RESULTS


class Inputs(eqx.Module):
    """The numbers that a solve can be differentiated in. `save(tick, y, field)` is what is kept at the ticks `ts`,
    or at the end where they are `None`; `jumps`: the breakpoints, in ticks."""

    y0: PyTree
    field: Field
    save: Save
    ts: Float[Array, " time"] | None
    end: Scalar
    jumps: Float[Array, " breakpoints"]


class Method(eqx.Module):
    """How the steps are made, which has no derivative. `first`: the tick at which the first step ends; `control`: the
    controller's state there."""

    solver: OnPieces
    controller: diffrax.AbstractStepSizeController
    first: Scalar
    control: PyTree
    max_steps: int = eqx.field(static=True)  # static: memory is sized by it


class Walk(eqx.Module):
    """A solve between two steps: the next step goes from `start` to `stop`. `rate`: the velocity that the solver
    carries; `tried`, `kept`, `saved`: steps tried and kept, and save times passed."""

    y: PyTree
    start: Scalar
    stop: Scalar
    rate: PyTree
    jumped: Bool[Array, ""]
    control: PyTree
    result: diffrax.RESULTS
    tried: Count
    kept: Count
    saved: Count


class Places(eqx.Module):
    """The layout of the array of stored states: all states up to kept step `dense`, and every `stride`-th one after it.

    Room for `dense + max_steps / stride + stride` states in all, with `dense` a mebibyte of them but at most 1024, and
    stride the root of max_steps. A step is taken at most once more than the solve took it.
    """

    dense: int = eqx.field(static=True)  # static: sizes of arrays
    stride: int = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __init__(self, max_steps: int, y: PyTree):
        size = state_bytes(y)
        self.dense = min(max_steps, MOST_STORED, ROOM // max(size, 1))
        self.stride = math.isqrt(max(max_steps - self.dense, 1) - 1) + 1
        self.count = self.dense + -(-(max_steps - self.dense) // self.stride)

    def of(self, step: Count) -> tuple[Count, Bool[Array, ""]]:
        """The place of the state at the start of a step, and True if there is one."""
        later, rest = jnp.divmod(step - self.dense, self.stride)
        is_dense = step < self.dense
        return jnp.where(is_dense, step, self.dense + later), is_dense | (rest == 0)


class Record(eqx.Module):
    """The arrays that the loop over the steps fills; inside of the loop they are buffers of equinox.

    - `saved`: the values at the save times.
    - For a derivative, else `None`: `stops`, the ticks at which kept steps end; `states`, laid out by `Places`;
      `within`, the number of the kept step in which each save time lies, -1 for none.
    """

    saved: PyTree
    stops: Any
    states: PyTree
    within: Any


def is_under_way(walk: Walk, method: Method) -> Bool[Array, ""]:
    """True if the solve has neither ended nor failed, and may take another step."""
    return (walk.result == diffrax.RESULTS.successful) & (walk.tried < method.max_steps)


def take_steps(inputs: Inputs, method: Method, places: Places | None) -> tuple[Walk, Record]:
    """Takes the steps, and stores what their derivative needs if there are places for it."""
    field, solver, y0 = inputs.field, method.solver, inputs.y0
    start, none = jnp.zeros_like(inputs.end), jnp.array(0)
    rate = solver.init(TERMS, start, method.first, y0, field)
    walk = Walk(
        y0, start, method.first, rate, jnp.array(False), method.control, diffrax.RESULTS.successful, none, none, none
    )
    record = _empty(inputs, method, places)

    def advance(carry: tuple) -> tuple:
        now, record = carry
        jumped: Any = now.jumped if inputs.jumps.size else False
        y, error, info, rate, _ = solver.step(TERMS, now.start, now.stop, now.y, field, now.rate, jumped)
        # A stage outside the domain: the step is rejected and made shorter.
        error = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, jnp.inf), error)
        y = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), y, now.y)
        judged: Any = method.controller.adapt_step_size(
            now.start, now.stop, now.y, y, field, error, solver.error_order(TERMS), now.control
        )
        kept, start, stop, jumped, control, result = judged
        record, saved = _saved(inputs, method, now, record, kept, info)
        if places is not None:
            place, stored = places.of(now.kept)
            record = eqx.tree_at(
                lambda record: (record.stops, record.states),
                record,
                (
                    record.stops.at[now.kept].set(now.stop, pred=kept),
                    jax.tree.map(lambda y, rows: rows.at[place].set(y, pred=kept & stored), now.y, record.states),
                ),
            )
        y, rate, jumped = jax.tree.map(
            lambda new, old: jnp.where(kept, new, old), (y, rate, jnp.asarray(jumped)), (now.y, now.rate, now.jumped)
        )
        counts = now.tried + 1, now.kept + kept.astype(int), saved
        return Walk(y, start, stop, rate, jumped, control, result, *counts), record

    return loop(lambda carry: is_under_way(carry[0], method), advance, (walk, record), buffers=lambda carry: carry[1])


def _empty(inputs: Inputs, method: Method, places: Places | None) -> Record:
    y, ts = inputs.y0, inputs.ts

    def room(count: int, like: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), like)

    saved = None if ts is None else room(ts.size, eqx.filter_eval_shape(inputs.save, inputs.end, y, inputs.field))
    if places is None:
        return Record(saved, None, None, None)
    within = None if ts is None else jnp.full(ts.size, -1)
    return Record(saved, jnp.zeros(method.max_steps, inputs.end.dtype), room(places.count, y), within)


def _saved(
    inputs: Inputs, method: Method, now: Walk, record: Record, kept: Bool[Array, ""], info: PyTree
) -> tuple[Record, Count]:
    """The record with the values at the save times in a step, and the number of save times passed after it."""
    ts = inputs.ts
    if ts is None:
        return record, now.saved

    def is_due(carry: tuple) -> Bool[Array, ""]:
        return kept & (carry[1] < ts.size) & (ts[carry[1]] <= now.stop)

    def add(carry: tuple) -> tuple:
        record, at = carry
        value = value_inside(method.solver, info, now.start, now.stop, ts[at], inputs.save, inputs.field)
        saved = jax.tree.map(lambda row, rows: rows.at[at].set(row), value, record.saved)
        within = None if record.within is None else record.within.at[at].set(now.kept)
        return eqx.tree_at(lambda r: (r.saved, r.within), record, (saved, within), is_leaf=lambda x: x is None), at + 1

    def written(carry: tuple) -> PyTree:
        return carry[0].saved, carry[0].within

    return loop(is_due, add, (record, now.saved), buffers=written)


def value_inside(
    solver: OnPieces, info: PyTree, start: Scalar, stop: Scalar, t: Scalar, save: Save, field: Field
) -> PyTree:
    """Evaluates `save` at the tick t inside a step, on the state that the solver interpolates there from `info`."""
    return save(t, solver.interpolation_cls(t0=start, t1=stop, **info).evaluate(t), field)
