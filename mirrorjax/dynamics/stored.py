"""Solves by explicit steps whose derivative in reverse mode goes through the kept steps alone, one after the other.

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

from ..checks import freeze
from .guards import Field, unguarded_field
from .pieces import OnPieces

Scalar = Float[Array, ""]
Count = Int[Array, ""]
Save = Callable[[Scalar, PyTree, Field], PyTree]
loop = eqx.Partial(eqxi.while_loop, kind="lax")

# The error of an explicit step shows a stage that is not finite, and a step that is kept has none.
TERMS = diffrax.ODETerm(unguarded_field)
# Steps whose states are all stored: as many as most solves take, and as fit into so many bytes.
MOST_STORED, ROOM = 1024, 2**20
# The times next to a breakpoint at which steps end and begin are the neighbours of it, or next but one.
_NEIGHBOURS = 4


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
    controller: diffrax.AbstractAdaptiveStepSizeController
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
    """Where states are stored: those of the first `dense` kept steps in places of their own, later ones every `stride`.

    Room for `dense + max_steps / stride + stride` states in all, with `dense` a mebibyte of them but at most 1024, and
    stride the root of max_steps. A step is taken at most once more than the solve took it.
    """

    dense: int = eqx.field(static=True)  # static: sizes of arrays
    stride: int = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __init__(self, max_steps: int, y: PyTree):
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(y))
        self.dense = min(max_steps, MOST_STORED, ROOM // max(size, 1))
        self.stride = math.isqrt(max(max_steps - self.dense, 1) - 1) + 1
        self.count = self.dense + -(-(max_steps - self.dense) // self.stride)

    def of(self, step: Count) -> tuple[Count, Bool[Array, ""]]:
        """The place of the state at the start of a step, and True if there is one."""
        later, rest = jnp.divmod(step - self.dense, self.stride)
        is_dense = step < self.dense
        return jnp.where(is_dense, step, self.dense + later), is_dense | (rest == 0)


class Record(eqx.Module):
    """What the loop writes. `saved`: values at the save times. For a derivative: the ticks `stops` at which kept steps
    end, states at `Places`, and the step `within` which each save time lies, -1 for none. Arrays, which inside the loop
    are buffers of equinox."""

    saved: PyTree
    stops: Any
    states: PyTree
    within: Any


def walk_and_save(inputs: Inputs, method: Method) -> Ran:
    """Integrates from tick 0 to the end, or as many steps as there may be."""
    final, saved, tick, stats, result = _solved(inputs, freeze(method))
    if inputs.ts is None:
        saved = jax.tree.map(lambda leaf: leaf[None], inputs.save(tick, final, inputs.field))
    return Ran(saved, final, tick, stats, result)


@eqx.filter_custom_vjp
def _solved(inputs: Inputs, method: Method) -> tuple:
    walk, record = _walk(inputs, method, None)
    return _results(walk, record, method)


@_solved.def_fwd
def _solved_forward(perturbed: PyTree, inputs: Inputs, method: Method) -> tuple[tuple, PyTree]:
    places = Places(method.max_steps, inputs.y0)
    walk, record = _walk(inputs, method, places)
    return _results(walk, record, method), (record, walk)


def _results(walk: Walk, record: Record, method: Method) -> tuple:
    spent = _is_under_way(walk, method)
    result = diffrax.RESULTS.where(spent, diffrax.RESULTS.max_steps_reached, walk.result)
    stats = {"steps": walk.tried, "accepted_steps": walk.kept, "rejected_steps": walk.tried - walk.kept}
    return walk.y, record.saved, walk.start, stats, result


def _is_under_way(walk: Walk, method: Method) -> Bool[Array, ""]:
    return (walk.result == diffrax.RESULTS.successful) & (walk.tried < method.max_steps)


def _walk(inputs: Inputs, method: Method, places: Places | None) -> tuple[Walk, Record]:
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
        kept, start, stop, jumped, control, result = method.controller.adapt_step_size(
            now.start, now.stop, now.y, y, field, error, solver.error_order(TERMS), now.control
        )
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

    return loop(lambda carry: _is_under_way(carry[0], method), advance, (walk, record), buffers=lambda carry: carry[1])


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
        value = _value(method.solver, info, now.start, now.stop, ts[at], inputs.save, inputs.field)
        saved = jax.tree.map(lambda row, rows: rows.at[at].set(row), value, record.saved)
        within = None if record.within is None else record.within.at[at].set(now.kept)
        return eqx.tree_at(lambda r: (r.saved, r.within), record, (saved, within), is_leaf=lambda x: x is None), at + 1

    def written(carry: tuple) -> PyTree:
        return carry[0].saved, carry[0].within

    return loop(is_due, add, (record, now.saved), buffers=written)


def _value(solver: OnPieces, info: PyTree, start: Scalar, stop: Scalar, t: Scalar, save: Save, field: Field) -> PyTree:
    """What is saved at a time inside a step."""
    return save(t, solver.interpolation_cls(t0=start, t1=stop, **info).evaluate(t), field)


@_solved.def_bwd
def _solved_backward(
    stored: tuple[Record, Walk], slopes: tuple, perturbed: Inputs, inputs: Inputs, method: Method
) -> Inputs:
    (record, walk), (slope, saved, tick, _, _) = stored, slopes
    back = Backward(inputs, perturbed, method.solver, Places(method.max_steps, inputs.y0), record, walk.kept)
    saved = back.given(saved)
    total = jax.tree.map(lambda leaf, wanted: jnp.zeros_like(leaf) if wanted else None, inputs, perturbed)
    if tick is not None:
        total = back.moved(total, walk.start, tick)
    slope = jax.tree.map(jnp.zeros_like, inputs.y0) if not jax.tree.leaves(slope) else slope
    last = eqxi.unvmap_max(walk.kept)
    # The save times still to come, of which the last one is the next.
    ahead = jnp.zeros((), int) if record.within is None else jnp.sum(record.within >= 0)
    start = back.scratch(), slope, total, ahead

    def one_step(index: Count, carry: tuple) -> tuple:
        return back.step(last - 1 - index, last, saved, *carry)

    _, slope, total, _ = jax.lax.fori_loop(0, last, one_step, start)
    y0 = jax.tree.map(lambda leaf, wanted: leaf if wanted else None, slope, perturbed.y0)
    return eqx.tree_at(lambda total: total.y0, total, y0, is_leaf=lambda leaf: leaf is None)


class Backward(eqx.Module):
    """The kept steps of a solve, the last one first. All lanes of a batch are at the same step, those idle that took
    fewer: so each place is read for all lanes at once."""

    inputs: Inputs
    perturbed: Inputs
    solver: OnPieces
    places: Places
    record: Record
    count: Count

    def given(self, saved: PyTree) -> PyTree:
        """The slopes of the saved values, zeros where only some are known; `None` where none is."""
        if not jax.tree.leaves(saved):
            return None
        return jax.tree.map(
            lambda slope, rows: jnp.zeros_like(rows) if slope is None else slope,
            saved,
            self.record.saved,
            is_leaf=lambda leaf: leaf is None,
        )

    def scratch(self) -> PyTree:
        """Room for the states of the steps that are taken once more; `None` where none are."""
        size = self.places.stride
        if self.places.count == self.places.dense:
            return None
        return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), self.inputs.y0)

    def times(self, step: Count) -> tuple[Scalar, Scalar]:
        """The ticks between which a step goes. It began a neighbour later where the one before ended at a jump."""
        stops = self.record.stops
        return jnp.where(step > 0, _row(stops, jnp.maximum(step - 1, 0)), 0), _row(stops, step)

    def taken(self, y: PyTree, start: Scalar, stop: Scalar, field: Field) -> tuple[PyTree, PyTree]:
        """The state after a step, and what the solver knows about the states inside it."""
        rate = self.solver.init(TERMS, start, stop, y, field)
        y1, _, info, _, _ = self.solver.step(TERMS, start, stop, y, field, rate, False)
        return y1, info

    def state(self, step: Count, last: Count, scratch: PyTree) -> tuple[PyTree, PyTree]:
        """The state at the start of a step, and the scratch that it may be in."""
        places, states = self.places, self.record.states
        if scratch is None:
            return _row(states, step), None
        place, inside = jnp.divmod(step - places.dense, places.stride)
        entered = (step >= places.dense) & ((step == last - 1) | (inside == places.stride - 1))

        def again(index: Count, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            scratch, y = carry
            scratch = jax.tree.map(
                lambda rows, leaf: jax.lax.dynamic_update_index_in_dim(rows, leaf, index, 0), scratch, y
            )
            return scratch, self.taken(y, *self.times(step - inside + index), self.inputs.field)[0]

        first = _row(states, jnp.where(step < places.dense, step, places.dense + place))
        scratch, _ = jax.lax.fori_loop(0, jnp.where(entered, inside + 1, 0), again, (scratch, first))
        again_there = _row(scratch, jnp.maximum(inside, 0))
        return jax.tree.map(lambda a, b: jnp.where(step < places.dense, a, b), first, again_there), scratch

    def step(
        self, step: Count, last: Count, saved: PyTree, scratch: PyTree, slope: PyTree, total: Inputs, ahead: Count
    ) -> tuple[PyTree, PyTree, Inputs, Count]:
        """Turns the slopes of the state after a step into those of the state before it, and adds to the others."""
        y, scratch = self.state(step, last, scratch)
        start, stop = self.times(step)
        chosen, rest = eqx.partition(self.inputs.field, self.perturbed.field)

        def taken(y: PyTree, start: Scalar, stop: Scalar, chosen: PyTree) -> tuple[PyTree, PyTree]:
            y1, info = self.taken(y, start, stop, eqx.combine(chosen, rest))
            return y1, None if saved is None else info

        (y1, info), pull = jax.vjp(taken, y, start, stop, chosen)
        fine = (step < self.count) & _is_finite((y1, info))
        added, info_slope, moved = jax.tree.map(jnp.zeros_like, total), None, (0.0, 0.0)
        if saved is not None:
            added, info_slope, moved, ahead = self.saves(step, saved, added, ahead, info, start, stop)
        before, start_slope, stop_slope, field_slope = pull((slope, info_slope))
        added = eqx.tree_at(
            lambda added: added.field,
            added,
            jax.tree.map(jnp.add, added.field, field_slope),
        )
        added = self.moved(added, start, start_slope + moved[0])
        added = self.moved(added, stop, stop_slope + moved[1])
        total = jax.tree.map(lambda sum, more: sum + jnp.where(fine, more, 0), total, added)
        slope = jax.tree.map(lambda new, old: jnp.where(fine, new, old), before, slope)
        return scratch, slope, total, ahead

    def saves(
        self, step: Count, saved: PyTree, added: Inputs, ahead: Count, info: PyTree, start: Scalar, stop: Scalar
    ) -> tuple[Inputs, PyTree, tuple[Scalar, Scalar], Count]:
        """The slopes that the values saved in a step have, in what they are made of."""
        inputs, within = self.inputs, self.record.within
        chosen, rest = eqx.partition((inputs.save, inputs.field), (self.perturbed.save, self.perturbed.field))

        def add(carry: tuple) -> tuple:
            added, info_slope, moved, ahead = carry
            at = ahead - 1

            def value(info: PyTree, start: Scalar, stop: Scalar, t: Scalar, chosen: PyTree) -> PyTree:
                return _value(self.solver, info, start, stop, t, *eqx.combine(chosen, rest))

            pull = jax.vjp(value, info, start, stop, inputs.ts[at], chosen)[1]
            new_info, *new_moved, t, (save, field) = pull(jax.tree.map(lambda rows: rows[at], saved))
            more = eqx.tree_at(
                lambda added: (added.save, added.field),
                jax.tree.map(jnp.zeros_like, added),
                (save, field),
            )
            added = jax.tree.map(jnp.add, added, more)
            if added.ts is not None:
                added = eqx.tree_at(lambda added: added.ts, added, added.ts.at[at].add(t))
            return added, *jax.tree.map(jnp.add, (info_slope, moved), (new_info, tuple(new_moved))), at

        def is_inside(carry: tuple) -> Bool[Array, ""]:
            ahead = carry[-1]
            return (ahead > 0) & (within[jnp.maximum(ahead - 1, 0)] == step)

        none = jax.tree.map(jnp.zeros_like, (info, (start, stop)))
        return loop(is_inside, add, (added, *none, ahead))

    def moved(self, total: Inputs, t: Scalar, slope: Scalar) -> Inputs:
        """Adds the slope of a time in the solve to that of the number that it moves with: the end, if it is that, or
        the last breakpoint before it."""
        jumps, end = self.inputs.jumps, self.inputs.end
        is_end = t == end
        if total.end is not None:
            total = eqx.tree_at(lambda total: total.end, total, total.end + jnp.where(is_end, slope, 0))
        if total.jumps is not None and jumps.size:
            margin = _NEIGHBOURS * jnp.finfo(t.dtype).eps
            before = (jumps > 0) & (jumps <= (1 + margin) * t)
            last = jnp.argmax(jnp.where(before, jumps, -jnp.inf))
            moves = jnp.any(before) & jnp.logical_not(is_end) & (jnp.arange(jumps.size) == last)
            total = eqx.tree_at(lambda total: total.jumps, total, total.jumps + jnp.where(moves, slope, 0))
        return total


def _row(rows: PyTree, at: Count) -> PyTree:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False), rows)


def _is_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
