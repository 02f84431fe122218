"""sweep(): many problems at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..checks import Number, as_time_scalar, require_positive
from ..dynamics.guards import Field
from ..dynamics.lanes import Outcome


class _Job(AbstractJob):
    """The flows of a sweep, group by group."""

    scheduler: Scheduler
    group_size: int
    lane_bytes: int

    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        fresh = self.scheduler.open(group)
        found = None if checkpoint is None else checkpoint.find(fresh, lambda batch: batch.is_possible)
        batch = fresh if found is None else found
        self._tell(group, reporter, fresh, batch)
        while not np.all(batch.ended):
            before, batch = batch, self.scheduler.step(group, batch)
            if checkpoint is not None:
                checkpoint.offer(batch)
            self._tell(group, reporter, before, batch)
        return _named(batch.outcomes) | {USEFUL: batch.useful, EXECUTED: batch.executed}

    def _tell(self, group: Lanes, reporter: Reporter, before: Batch, after: Batch) -> None:
        new = after.ended & np.logical_not(before.ended)
        latest = _named(jax.tree.map(lambda leaf: leaf[new], after.outcomes))
        share = self.scheduler.underway(after)
        steps = int(after.useful - before.useful), int(after.executed - before.executed)
        reporter.moved(latest | {"lanes": group[new]}, failures(latest), share, *steps)


PER_LANE = ("x", "status", "steps", "rejected_steps", "t_end")


def _named(outcome: Outcome) -> dict[str, Any]:
    """Names the parts of an outcome as variables of a dataset."""
    metrics = flatten(outcome.metrics, "metric")
    named = {
        "loss": outcome.loss,
        "a": outcome.a,
        "x": outcome.x,
        "status": status_name(outcome.result) if isinstance(outcome.x, np.ndarray) else Shape(TEXT),
        "steps": outcome.steps,
        "rejected_steps": outcome.rejected_steps,
        "t_end": outcome.t_end,
    }
    return joined(named, metrics)


def _no_metrics(t: Any, x: Any, w: Any) -> PyTree:
    return {}


def _tolerance(steady: Number | None) -> Float[Array, ""] | None:
    if steady is None:
        return None
    tolerance = as_time_scalar(steady, "steady")
    require_positive(tolerance, "steady", "; None for no such end")
    return tolerance


def _probe(program: Program, values: OneLane) -> PyTree:
    """The initial state of a lane, one velocity, and the saved values: what a step costs, for `_operations`."""
    motion, options = program.start(values), program.options
    state = motion.initial()
    tick, field = jnp.zeros((), state_dtype(state)), Field(motion, state)
    return state, field.velocity(tick, state), field.save(options.metrics, tick, state)


def _operations(traced: jax.stages.Traced) -> float:
    """Floating-point operations of the program, as far as XLA can tell."""
    cost = traced.lower().cost_analysis()
    return float(cost.get("flops", 0.0)) if isinstance(cost, dict) else 0.0
