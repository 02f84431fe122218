"""The schedule of a sweep: a batch of slots, refilled with new lanes as others end.

A batch of adaptive solves runs until its slowest lane ends, and finished lanes are masked, not free. A batch therefore
advances by a few steps at a time. In between, finished lanes are removed and lanes that have not started are put into
the free slots; when no lane is left to start, the rest is moved into a smaller batch. The schedule depends on the
numbers of the lanes alone, never on the time of day: the same sweep is scheduled the same way each time, and a resumed
sweep continues with the same bits.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from typing_extensions import TypeAliasType

from ..calls import calling, refuse_traced
from ..compilation import Effort
from ..dynamics.lanes import Outcome, advance, begin, mark_missing, read
from ..dynamics.motion import AbstractFlow, AbstractMotion
from ..dynamics.options import Options
from ..dynamics.steppers import Lane, change_where, over_lanes, part_of
from ..problem import Problem
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..programs import as_program
from ..runs.devices import Devices, on_devices, spread
from ..runs.grid import Grid, OneLane, Values

# Segments in a row before control returns to the host, for the progress bar, a checkpoint or Ctrl-C.
SEGMENTS = 32
# The host refills a batch when one slot in so many is empty.
REFILL = 16
# The least number of lanes that start together on a CPU: fewer than a batch, because starting a lane costs as much as
# several steps, and at least a few, which cost little more than one. Elsewhere a start is computed for all slots: with
# 4 lanes a start a GPU spent nine tenths of a sweep on starting 1024 lanes. Lanes start in the program that moves them:
# by calls of their own they took half of the time of a sweep of small lanes.
ENTERING = 8
# Neighbours by which the cost of a lane is predicted. Of products of three and of fourth powers, where a tenth of the
# lanes takes ten times the steps of the others, 0.85 and 0.90 of the work of slots is that of lanes; by one neighbour,
# lanes just started among them, 0.77.
NEIGHBOURS = 8
# The size of the smallest batch into which the last lanes of a group are moved.
SMALLEST = 4

LaneFunction = TypeAliasType("LaneFunction", Callable[..., tuple[Problem, Weights]])
"""Builds the problem and the initial weights of one lane from its grid values."""


Starts = tuple[Bool[Array, " slots"], Bool[Array, " slots"]]
"""The slots whose lane starts, and the slots that hold a lane."""


class Start(eqx.Module):
    """Starts the motion of one lane from its grid values, by the user's function and the flow."""

    lane: LaneFunction
    flow: AbstractFlow
    t1: Float[Array, ""]

    def __call__(self, values: OneLane) -> AbstractMotion:
        with calling("the lane"):
            made = self.lane(**values)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Problem)):
            raise ValueError(f"the lane must return (Problem, w0), got {made!r}")
        problem, w0 = made[0], as_weights(made[1])
        problem.check(w0, self.t1)
        return self.flow.prepare(problem.capture(w0), w0)

    def traced(self, one: OneLane) -> "Start | Started":
        """The same as a program, so that a lane that is defined again finds what was compiled; see `as_program`."""
        program = as_program(self, one, differentiable=False)
        return program if isinstance(program, Start) else Started(program, self.flow, self.t1)

    def followed_by(self, flow: AbstractFlow, one: OneLane) -> "Start | Started":
        """The start of another flow of the same lane."""
        return Start(self.lane, flow, self.t1).traced(one)


class Started(eqx.Module):
    """A `Start` whose Python has run: `prepare` is the program by which it makes a motion of grid values."""

    prepare: Callable[[OneLane], AbstractMotion]
    flow: AbstractFlow
    t1: Float[Array, ""]

    def __call__(self, values: OneLane) -> AbstractMotion:
        return self.prepare(values)

    def followed_by(self, flow: AbstractFlow, one: OneLane) -> "Start | Started":
        """The start of another flow of the same lane, of whose motion the problem and the weights are known."""
        other = as_program(_Followed(self.prepare, flow), one, differentiable=False)
        return Started(other, flow, self.t1)


class _Followed(eqx.Module):
    """Starts another flow from the problem and the weights of a motion."""

    prepare: Callable[[OneLane], Any]
    flow: AbstractFlow

    def __call__(self, values: OneLane) -> AbstractMotion:
        motion = self.prepare(values)
        return self.flow.prepare(motion.problem, motion.w0)


class Program(eqx.Module):
    """All that the lanes of a sweep share. Arrays in it are leaves, so other numbers do not compile anew."""

    start: Start | Started
    options: Options
    steady: Float[Array, ""] | None


class Batch(eqx.Module):
    """The lanes of a group: finished, in slots, or not started. As a pytree of arrays a batch is also a checkpoint.

    - `slots`: the lane of the group in each slot, -1 for an empty slot; `progress`: the state of that lane.
    - `started`, `ended` (group,): flags of the lanes; `outcomes` (group, ...): results of the lanes that have ended.
    - `useful`, `executed`: work of lanes, and work of slots, empty ones included: steps, or evaluations with `RKC`.
    """

    slots: Int[np.ndarray, " slots"]
    progress: Lane
    started: Bool[np.ndarray, " group"]
    ended: Bool[np.ndarray, " group"]
    outcomes: Outcome
    useful: Int[np.ndarray, ""]
    executed: Int[np.ndarray, ""]

    @property
    def running(self) -> int:
        return int(np.sum(self.slots >= 0))

    @property
    def is_possible(self) -> bool:
        """True if each slot is empty or holds a lane of its own, one that has started and has not ended.

        A read checkpoint is asked this: an index that is out of range would be clipped without an error, and a lane
        that is in no slot would never end.
        """
        inside = self.slots[self.slots >= 0]
        if np.any(self.slots < -1) or np.any(inside >= self.started.size):
            return False
        waiting = np.flatnonzero(self.started & np.logical_not(self.ended))
        return np.array_equal(np.sort(inside), waiting) and not np.any(self.ended & np.logical_not(self.started))


class Scheduler(eqx.Module):
    """Runs the lanes of one group through slots on the devices.

    **Arguments:** `program`: the part that lanes share; `grid`: all lanes; `slots`: the size of a full batch; `like`:
    the `shapes` of one lane; `shrink`: True if smaller batches are worth compiling; `early`: the work of slots, as in
    `Batch.executed`, up to which the lanes of a single group are moved by a program that compiles quickly.
    """

    program: Program
    grid: Grid
    slots: int
    devices: Devices
    like: tuple[Lane, Outcome]
    shrink: bool
    early: float

    def open(self, group: Int[np.ndarray, " group"]) -> Batch:
        """A group of which no lane has started."""
        size = self._full(group)
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

    def _full(self, group: Int[np.ndarray, " group"]) -> int:
        """The slots of a batch of this group in which lanes start."""
        return spread(min(self.slots, len(group)), self.devices)

    def step(self, group: Int[np.ndarray, " group"], batch: Batch) -> Batch:
        """Starts lanes in empty slots, and advances all lanes until some have ended or a few segments are over."""
        batch, entering = self._admit(group, batch)
        if not np.any(entering):
            batch = self._shrink(batch)
            entering = entering[: batch.slots.size]
        values = self.grid.take(group[np.maximum(batch.slots, 0)])
        wanted = np.full(len(self.devices), self._leave(group, batch) // len(self.devices))
        inside = batch.slots >= 0
        before = int(np.sum(np.asarray(batch.progress.work)[inside & np.logical_not(entering)]))
        # The parts of a program that start lanes are left out where none is left to start.
        starts = None if batch.slots.size < self._full(group) else (entering, inside)
        lanes = values, batch.progress, wanted, starts
        effort = Effort.LESS if self._is_early(group, batch) else Effort.FULL
        with calling("the lane or metrics"):
            progress, outcomes, driven = on_devices(_advance, self.program, lanes, self.devices, effort)
        # The lane may have closed over a number of an outer transformation.
        refuse_traced((progress, outcomes), "sweep")
        work = np.asarray(progress.work)[inside]
        batch = eqx.tree_at(
            lambda batch: (batch.progress, batch.useful, batch.executed),
            batch,
            (progress, batch.useful + int(np.sum(work)) - before, batch.executed + int(np.sum(np.asarray(driven)))),
        )
        return _collect(batch, outcomes)

    def _is_early(self, group: Int[np.ndarray, " group"], batch: Batch) -> bool:
        """True if lanes take their next steps by a program that compiles quickly.

        Known from the batch alone, like the schedule, because a program that is compiled otherwise rounds otherwise.
        """
        most = int(batch.executed) + SEGMENTS * self.program.start.flow.clock.steps_per_segment * batch.slots.size
        return len(group) == len(self.grid) and most <= self.early

    def underway(self, batch: Batch) -> float:
        """The progress of the unfinished lanes, in units of whole lanes: the sum of their times, divided by t1."""
        inside = batch.slots >= 0
        end = self.program.start.flow.clock.ticks(self.program.options.t1, batch.progress.tick.dtype)
        return float(np.sum(np.asarray(batch.progress.tick)[inside]) / float(end))

    def _leave(self, group: Int[np.ndarray, " group"], batch: Batch) -> int:
        """The number of empty slots at which the host refills or shrinks the batch."""
        empty, size = batch.slots.size - batch.running, batch.slots.size
        if not np.all(batch.started):
            return empty + max(1, size // REFILL)
        return size - self._smaller(batch)

    def _admit(self, group: Int[np.ndarray, " group"], batch: Batch) -> tuple[Batch, Bool[np.ndarray, " slots"]]:
        """Puts lanes into the empty slots; and the slots whose lane is to be started."""
        empty, entering = np.flatnonzero(batch.slots < 0), np.zeros(batch.slots.size, bool)
        lanes = self._next(group, batch)[: empty.size] if empty.size else empty
        if not lanes.size:
            return batch, entering
        slots, started = batch.slots.copy(), batch.started.copy()
        slots[empty[: lanes.size]] = lanes
        # Slots beyond the first lanes get a lane at rest: a state of zeros need not be one of the flow.
        entering[empty[: lanes.size] if np.any(started) else empty] = True
        started[lanes] = True
        return eqx.tree_at(lambda batch: (batch.slots, batch.started), batch, (slots, started)), entering

    def _next(self, group: Int[np.ndarray, " group"], batch: Batch) -> Int[np.ndarray, " waiting"]:
        """Lanes that have not started, the longest first as far as that is known."""
        inside = batch.slots >= 0
        taken = np.asarray(batch.progress.steps)[inside]
        steps = np.where(batch.ended, batch.outcomes.steps, 0)
        return longest_first(self.grid.places(group), batch.started, batch.ended, steps, batch.slots[inside], taken)

    def _smaller(self, batch: Batch) -> int:
        """The size of the next smaller batch, or 0."""
        half = spread(batch.slots.size // 2, self.devices)
        return half if self.shrink and SMALLEST <= half < batch.slots.size else 0

    def _shrink(self, batch: Batch) -> Batch:
        """Moves the lanes into half as many slots when all have started and half of the slots are empty."""
        size = self._smaller(batch)
        if not np.all(batch.started) or batch.running > size:
            return batch
        kept = np.argsort(batch.slots < 0, kind="stable")[:size]
        progress = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], batch.progress)
        return eqx.tree_at(lambda batch: (batch.slots, batch.progress), batch, (batch.slots[kept], progress))


def longest_first(
    places: Float[np.ndarray, "group axes"],
    started: Bool[np.ndarray, " group"],
    ended: Bool[np.ndarray, " group"],
    steps: Int[np.ndarray, " group"],
    running: Int[np.ndarray, " running"],
    taken: Int[np.ndarray, " running"],
) -> Int[np.ndarray, " waiting"]:
    """Lanes that have not started, in order of falling predicted cost, so that no long lane is left for the end.

    The predicted cost of a lane is the mean of those of its neighbours on the grid among the lanes that have ended, and
    those that have taken more steps than half of them did: these count as costlier than all that have ended. Of lanes
    that have just started nothing is known.

    **Arguments:** `places`: of the lanes on the grid; `steps`: of the lanes that have ended; `running`: the lanes in
    slots, and the steps that they have `taken`.
    """
    waiting = np.flatnonzero(np.logical_not(started))
    if not (np.any(ended) and waiting.size):
        return waiting
    is_slow = taken > np.median(steps[ended])
    spent = steps.copy()
    spent[running[is_slow]] = taken[is_slow] + np.max(steps)
    known = np.concatenate([np.flatnonzero(ended), running[is_slow]])
    from scipy.spatial import KDTree  # a tenth of a second, which sweeps of one batch do without

    _, nearest = KDTree(places[known]).query(places[waiting], min(NEIGHBOURS, known.size))
    predicted = np.mean(spent[known[nearest.reshape(waiting.size, -1)]], axis=1)
    return waiting[np.argsort(-predicted, kind="stable")]


def shapes(program: Program, values: OneLane) -> tuple[Lane, Outcome]:
    """The shapes of a lane and of its outcome."""
    # Kept between calls where the lane is a program: no Python of the user runs in it.
    fn = eqx.filter_jit(_begin_and_read) if isinstance(program.start, Started) else _begin_and_read
    return eqx.filter_eval_shape(fn, program, values)


def _begin_and_read(program: Program, values: OneLane) -> tuple[Lane, Outcome]:
    motion = program.start(values)
    lane = begin(motion, program.options)
    return lane, read(motion, program.options, lane)


def computation(program: Program, values: OneLane) -> tuple:
    """The whole computation of one lane, by the very functions that move batches: it identifies a stored sweep."""
    lanes = jax.tree.map(lambda value: value[None], values)
    return _advance(program, (lanes, _begin(program, lanes), jnp.zeros(1, int), None))


def _zeros(like: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape), leaf.dtype), like)


def _begin(program: Program, values: Values) -> Lane:
    """Lanes at t = 0, batched."""
    return over_lanes(program.start, lambda motion: begin(motion, program.options))(values)


def _advance(program: Program, lanes: tuple[Values, Lane, Int[Array, " devices"], Starts | None]) -> tuple:
    """Segments in a row, until enough slots are empty; also the outcomes, and the work that slots were driven through.

    **Arguments:** `lanes`: values, lanes, the number of slots that must be empty, and the slots whose lane starts.
    """
    values, progress, wanted, starts = lanes
    options, work = program.options, program.start.flow.clock.steps_per_segment
    if starts is not None:
        progress = _enter(program, values, progress, starts)

    def body(carry: tuple) -> tuple:
        count, driven, progress = carry
        moved = advance(program.start, options, values, progress, work=work, steady=program.steady)
        return count + 1, driven + jnp.max(moved.work - progress.work), moved

    def more(carry: tuple) -> Bool[Array, ""]:
        count, _, progress = carry
        return (count < SEGMENTS) & (jnp.sum(jnp.logical_not(progress.running)) < wanted[0])

    _, driven, progress = jax.lax.while_loop(more, body, (jnp.array(0), jnp.array(0), progress))
    outcomes = over_lanes(program.start, lambda motion, lane: read(motion, options, lane))(values, progress)
    return progress, outcomes, driven[None] * progress.running.size


def _enter(program: Program, values: Values, progress: Lane, starts: Starts) -> Lane:
    """Starts the lanes of some slots. Slots without a lane are at rest."""
    entering, inside = starts
    together = part_of(entering.size, ENTERING) if jax.default_backend() == "cpu" else entering.size
    progress = change_where(entering, together, lambda own, _: _begin(program, own), values, progress)
    return eqx.tree_at(lambda lane: lane.running, progress, progress.running & inside)


def _collect(batch: Batch, outcomes: Outcome) -> Batch:
    """Collects the outcomes of lanes that have ended and empties their slots."""
    through = (batch.slots >= 0) & np.logical_not(np.asarray(batch.progress.running))
    if not np.any(through):
        return batch
    lanes = batch.slots[through]
    kept = jax.tree.map(np.array, batch.outcomes)
    ended_now = mark_missing(jax.tree.map(lambda leaf: np.asarray(leaf)[through], outcomes))
    for leaf, new in zip(jax.tree.leaves(kept), jax.tree.leaves(ended_now), strict=True):
        leaf[lanes] = new
    ended = batch.ended.copy()
    ended[lanes] = True
    slots = np.where(through, -1, batch.slots)
    return eqx.tree_at(lambda batch: (batch.slots, batch.ended, batch.outcomes), batch, (slots, ended, kept))
