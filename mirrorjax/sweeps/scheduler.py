"""Which lane runs when: a batch of slots in which ended lanes make room for waiting ones.

A batch of adaptive solves runs until its slowest lane ends, and ended lanes are masked, not free. So a batch moves on
by a few steps at a time; between, ended lanes leave, waiting ones enter, and when none waits the rest moves into a
smaller batch. Everything here depends on the numbers of the lanes alone, never on the clock: the same sweep is
scheduled the same way each time, and a resumed one goes on with the same bits.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..dynamics.integrate import to_ticks
from ..dynamics.lane import Outcome, Progress
from ..dynamics.options import Options
from ..dynamics.segments import advance, begin, read, work_of
from ..problem import Problem
from ..problem.reparam import Weights
from ..runs.devices import Devices, on_devices, spread
from ..runs.grid import Grid, OneLane, Values

# Segments in a row before the host looks in, for the progress bar, a checkpoint or Ctrl-C.
SEGMENTS = 16
# Lanes started together: fewer than a batch, since starting one costs as much as several steps.
ENTERING = 4

Lane = Callable[..., tuple[Problem, Weights]]


class Program(eqx.Module):
    """What every lane of a sweep shares; arrays in it are leaves, so other numbers do not compile anew."""

    start: Lane
    options: Options
    steady: Float[Array, ""] | None


class Batch(eqx.Module):
    """The lanes of a group, some ended, some in slots, some waiting. As a pytree of arrays it is also a checkpoint.

    - `slots`: which lane of the group is in each slot, -1 where none is; `progress`: how far it is.
    - `started`, `ended` (group,): which lanes have; `outcomes` (group, ...): what those that have ended left.
    - `useful`, `executed`: work of lanes, and work that slots were driven through: steps, or evaluations with `RKC`.
    """

    slots: Int[np.ndarray, " slots"]
    progress: Progress
    started: Bool[np.ndarray, " group"]
    ended: Bool[np.ndarray, " group"]
    outcomes: Outcome
    useful: Int[np.ndarray, ""]
    executed: Int[np.ndarray, ""]

    @property
    def running(self) -> int:
        return int(np.sum(self.slots >= 0))


class Scheduler(eqx.Module):
    """Drives the lanes of one group through slots on the devices.

    **Arguments:** `program`: what lanes share; `grid`: all lanes; `slots`: the size of a full batch; `like`: the
    `shapes` of one lane; `shrink`: whether smaller batches are worth compiling.
    """

    program: Program
    grid: Grid
    slots: int
    devices: Devices
    like: tuple[Progress, Outcome]
    shrink: bool

    def open(self, group: Int[np.ndarray, " group"]) -> Batch:
        """A group of which no lane has started."""
        size = spread(min(self.slots, len(group)), self.devices)
        carried, outcome = self.like
        return Batch(
            slots=np.full(size, -1),
            progress=_zeros(carried, size),
            started=np.zeros(len(group), bool),
            ended=np.zeros(len(group), bool),
            outcomes=_zeros(outcome, len(group)),
            useful=np.asarray(0),
            executed=np.asarray(0),
        )

    def step(self, group: Int[np.ndarray, " group"], batch: Batch) -> Batch:
        """Let waiting lanes in, and advance all until some have ended or a few segments are over."""
        batch = self._shrink(self._admit(group, batch))
        values = self.grid.take(group[np.maximum(batch.slots, 0)])
        wanted = np.full(len(self.devices), self._leave(group, batch) // len(self.devices))
        before = int(np.sum(np.asarray(batch.progress.work)[batch.slots >= 0]))
        progress, outcomes, driven = on_devices(_advance, self.program, (values, batch.progress, wanted), self.devices)
        work = np.asarray(progress.work)[batch.slots >= 0]
        batch = eqx.tree_at(
            lambda batch: (batch.progress, batch.useful, batch.executed),
            batch,
            (progress, batch.useful + int(np.sum(work)) - before, batch.executed + int(np.sum(np.asarray(driven)))),
        )
        return _collect(batch, outcomes)

    def underway(self, batch: Batch) -> float:
        """How many lanes' worth of time the lanes in slots have behind them."""
        inside = batch.slots >= 0
        options = self.program.options
        end = to_ticks(options.t1, options.flow, batch.progress.tick.dtype)
        return float(np.sum(np.asarray(batch.progress.tick)[inside]) / float(end))

    def _leave(self, group: Int[np.ndarray, " group"], batch: Batch) -> int:
        """How many slots must be empty before the host changes anything."""
        empty, size = batch.slots.size - batch.running, batch.slots.size
        if not np.all(batch.started):
            return empty + max(1, size // 16)
        return size - self._smaller(batch)

    def _admit(self, group: Int[np.ndarray, " group"], batch: Batch) -> Batch:
        """Start waiting lanes in the empty slots."""
        empty = np.flatnonzero(batch.slots < 0)
        entering = self._next(group, batch)[: empty.size]
        if not entering.size:
            return batch
        size = spread(min(ENTERING, batch.slots.size), self.devices)
        slots, progress = batch.slots.copy(), jax.tree.map(np.array, batch.progress)
        for first in range(0, entering.size, size):
            lanes = entering[first : first + size]
            padded = group[np.pad(lanes, (0, size - lanes.size), mode="edge")]
            started = on_devices(_begin, self.program, self.grid.take(padded), self.devices)
            into = empty[first : first + size][: lanes.size]
            slots[into] = lanes
            for leaf, new in zip(jax.tree.leaves(progress), jax.tree.leaves(started), strict=True):
                leaf[into] = np.asarray(new)[: lanes.size]
        started_now = batch.started.copy()
        started_now[entering] = True
        new = (slots, progress, started_now)
        return eqx.tree_at(lambda batch: (batch.slots, batch.progress, batch.started), batch, new)

    def _next(self, group: Int[np.ndarray, " group"], batch: Batch) -> Int[np.ndarray, " waiting"]:
        """Waiting lanes, those first that will take longest, so that none is left over at the end.

        A lane is predicted to cost what its nearest neighbour on the grid did that has started; one that has not ended
        yet costs more than all that have.
        """
        waiting, known = np.flatnonzero(np.logical_not(batch.started)), np.flatnonzero(batch.started)
        if not (known.size and waiting.size):
            return waiting
        spent = np.where(batch.ended, batch.outcomes.steps, 0)
        inside = batch.slots >= 0
        spent[batch.slots[inside]] = np.asarray(batch.progress.steps)[inside] + np.max(spent)
        places = self.grid.places(group)
        distance = np.linalg.norm(places[waiting, None] - places[None, known], axis=-1)
        predicted = spent[known[np.argmin(distance, axis=1)]]
        return waiting[np.argsort(-predicted, kind="stable")]

    def _smaller(self, batch: Batch) -> int:
        """The size of the next smaller batch, or 0."""
        half = spread(batch.slots.size // 2, self.devices)
        return half if self.shrink and ENTERING <= half < batch.slots.size else 0

    def _shrink(self, batch: Batch) -> Batch:
        """When none waits and half of the slots are empty, move the rest into half as many."""
        size = self._smaller(batch)
        if not np.all(batch.started) or batch.running > size:
            return batch
        kept = np.argsort(batch.slots < 0, kind="stable")[:size]
        progress = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], batch.progress)
        return eqx.tree_at(lambda batch: (batch.slots, batch.progress), batch, (batch.slots[kept], progress))


def shapes(program: Program, values: OneLane) -> tuple[Progress, Outcome]:
    """What one lane carries, and what it leaves, as shapes."""

    def one(program: Program, values: OneLane) -> tuple[Progress, Outcome]:
        problem, w0 = program.start(**values)
        progress = begin(problem, program.options, w0)
        return progress, read(problem, program.options, w0, progress)

    return eqx.filter_eval_shape(one, program, values)


def _zeros(like: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape), leaf.dtype), like)


def _begin(program: Program, values: Values) -> Progress:
    """Lanes at t = 0, batched."""

    def one(values: Any) -> Progress:
        problem, w0 = program.start(**values)
        return begin(problem, program.options, w0)

    return jax.vmap(one)(values)


def _read(program: Program, values: Values, progress: Progress) -> Outcome:
    def one(values: Any, progress: Progress) -> Outcome:
        problem, w0 = program.start(**values)
        return read(problem, program.options, w0, progress)

    return jax.vmap(one)(values, progress)


def _advance(program: Program, lanes: tuple[Values, Progress, Int[Array, " devices"]]) -> tuple:
    """Segments in a row, until as many slots are empty as are wanted. Also the work that slots were driven through."""
    values, progress, wanted = lanes

    options = program.options

    def body(carry: tuple) -> tuple:
        count, driven, progress = carry
        start = lambda values: program.start(**values)  # noqa: E731
        moved = advance(start, options, values, progress, work=work_of(options), steady=program.steady)
        return count + 1, driven + jnp.max(moved.work - progress.work), moved

    def more(carry: tuple) -> Bool[Array, ""]:
        count, _, progress = carry
        return (count < SEGMENTS) & (jnp.sum(jnp.logical_not(progress.running)) < wanted[0])

    _, driven, progress = jax.lax.while_loop(more, body, (jnp.array(0), jnp.array(0), progress))
    slots = progress.running.size
    return progress, _read(program, values, progress), driven[None] * slots


def _collect(batch: Batch, outcomes: Outcome) -> Batch:
    """Take the outcomes of lanes that have ended, and empty their slots."""
    through = (batch.slots >= 0) & np.logical_not(np.asarray(batch.progress.running))
    if not np.any(through):
        return batch
    lanes = batch.slots[through]
    kept = jax.tree.map(np.array, batch.outcomes)
    for leaf, new in zip(jax.tree.leaves(kept), jax.tree.leaves(outcomes), strict=True):
        leaf[lanes] = np.asarray(new)[through]
    ended = batch.ended.copy()
    ended[lanes] = True
    slots = np.where(through, -1, batch.slots)
    return eqx.tree_at(lambda batch: (batch.slots, batch.ended, batch.outcomes), batch, (slots, ended, kept))
