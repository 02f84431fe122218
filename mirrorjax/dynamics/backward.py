"""The derivative in reverse mode of solves whose steps are stored: each kept step by itself, the last one first."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ..checks import freeze
from .blocks import in_cache
from .guards import Field
from .pieces import OnPieces
from .solvers.explicit import is_written_out
from .stored import (
    TERMS,
    Count,
    Inputs,
    Method,
    Places,
    Ran,
    Record,
    Scalar,
    Walk,
    loop,
    take_steps,
    value_inside,
)

# The times next to a breakpoint at which steps end and begin are the neighbours of it, or next but one.
_NEIGHBOURS = 4


def walk_and_save(inputs: Inputs, method: Method) -> Ran:
    """Integrates from tick 0 to the end, or as many steps as there may be."""
    final, saved, tick, stats, result = _solved(inputs, freeze(method))
    if inputs.ts is None:
        saved = jax.tree.map(lambda leaf: leaf[None], inputs.save(tick, final, inputs.field))
    return Ran(saved, final, tick, stats, result)


@eqx.filter_custom_vjp
def _solved(inputs: Inputs, method: Method) -> tuple:
    walk, record = take_steps(inputs, method, None)
    return _results(walk, record, method)


@_solved.def_fwd
def _solved_forward(perturbed: PyTree, inputs: Inputs, method: Method) -> tuple[tuple, PyTree]:
    def stored(inputs: Inputs, method: Method) -> tuple[tuple, PyTree]:
        walk, record = take_steps(inputs, method, Places(method.max_steps, inputs.y0))
        return _results(walk, record, method), (record, walk.start, walk.kept)

    return _of_lanes(stored, method, inputs.y0, inputs, method)


def _of_lanes(fn: Callable, method: Method, y0: PyTree, *args: PyTree) -> PyTree:
    """`fn(*args)`, in blocks of lanes where the steps are those for lanes."""
    return in_cache(fn, y0, *args) if is_written_out(method.solver.solver) else fn(*args)


def _results(walk: Walk, record: Record, method: Method) -> tuple:
    # A walk that ended says so, by `event_occurred`, and one that failed why: any other has no step left.
    over = walk.result != diffrax.RESULTS.successful
    result = diffrax.RESULTS.where(over, walk.result, diffrax.RESULTS.max_steps_reached)
    stats = {"steps": walk.tried, "accepted_steps": walk.kept, "rejected_steps": walk.tried - walk.kept}
    return walk.y, record.saved, walk.start, stats, result


@_solved.def_bwd
def _solved_backward(stored: tuple, slopes: tuple, perturbed: Inputs, inputs: Inputs, method: Method) -> Inputs:
    return _of_lanes(_slopes, method, inputs.y0, stored, slopes, perturbed, inputs, method)


def _slopes(stored: tuple, slopes: tuple, perturbed: Inputs, inputs: Inputs, method: Method) -> Inputs:
    """The slopes of all inputs that are differentiated."""
    (record, tick, kept), (slope, saved, tick_slope, _, _) = stored, slopes
    back = Backward(inputs, perturbed, method.solver, Places(method.max_steps, inputs.y0), record, kept)
    saved = back.given(saved)
    total = jax.tree.map(lambda leaf, wanted: jnp.zeros_like(leaf) if wanted else None, inputs, perturbed)
    if tick_slope is not None:
        total = back.moved(total, tick, tick_slope)
    slope = jax.tree.map(jnp.zeros_like, inputs.y0) if not jax.tree.leaves(slope) else slope
    last = eqxi.unvmap_max(kept)
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
        ts: Any = inputs.ts  # there are save times, if there are saved values
        chosen, rest = eqx.partition((inputs.save, inputs.field), (self.perturbed.save, self.perturbed.field))

        def add(carry: tuple) -> tuple:
            added, info_slope, moved, ahead = carry
            at = ahead - 1

            def value(info: PyTree, start: Scalar, stop: Scalar, t: Scalar, chosen: PyTree) -> PyTree:
                return value_inside(self.solver, info, start, stop, t, *eqx.combine(chosen, rest))

            pull = jax.vjp(value, info, start, stop, ts[at], chosen)[1]
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
