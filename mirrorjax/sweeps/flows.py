"""sweep(): many problems at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np

from ..calls import refuse_traced, require_parameters
from ..checks import Number, Numbers, as_time_scalar
from ..dynamics.lanes import Outcome
from ..dynamics.motion import AbstractFlow
from ..dynamics.options import (
    Integration,
    refuse_unknown,
    with_integration,
)
from ..results import status_name
from ..runs.archive import TEXT, Arrays, Shape
from ..runs.configuration import configuration, trace
from ..runs.dataset import EXECUTED, USEFUL, About, Dataset, flatten, joined, results_like
from ..runs.devices import Device, Devices
from ..runs.engine import AbstractJob, Checkpoint, Lanes, RunOptions, failures, run
from ..runs.executors import Executors, choose_place
from ..runs.grid import Grid, Zip
from ..runs.memory import choose_slots, size_of
from ..runs.progress import Callback, Reporter
from ..runs.store import recorded_slots
from ..signals import stoppable
from .plan import NoMetrics, Plan, make_plan
from .scheduler import Batch, LaneFunction, Program, Scheduler, Start, computation

# Long names and units of the variables.
TEXTS = {
    "time": ("time (one step of descent takes step_size)", "units of the flow"),
    "loss": ("f(x), without the regularizer", "1"),
    "a": ("accumulated regularization, minus the integral of alpha", "1"),
    "x": ("parameters at the end; missing where the lane failed", "1"),
    "status": ("how the lane ended", "1"),
    "steps": ("solver steps, accepted and rejected", "1"),
    "rejected_steps": ("rejected solver steps", "1"),
    "t_end": ("the time reached; below t1 where the lane failed or was steady", "units of the flow"),
}
# Batches of lanes in a group: enough that filling and emptying the slots costs little.
BATCHES = 8
# Where lanes may end long before t1, a CPU gets batches of a quarter of all lanes, so that most are replaced as they
# end, but none below 16, and none of fewer operations a step than 6e6, where starting kernels takes more time than
# their work: 36 lanes of 40 x 100 measurements took 0.15 s in one batch, half of whose work was for ended lanes, and
# 0.26 s in batches of 12. Measured on `benchmarks/workloads.py`.
REPLACED, FEWEST, LIGHTEST = 4, 16, 6e6
# Operations up to which a lane is light.
LIGHT = 2e5
# Moving the rest of a group into a smaller batch compiles that size anew, which takes seconds. It pays where a thousand
# evaluations of the whole batch take more operations than the device does in ten seconds.
WORTH = {"cpu": 3e12}
WORTH_ELSEWHERE = 1e13
# Operations, of one velocity a step, up to which lanes are moved by a program that compiles in half of the time. They
# take about a tenth of a second, so that its code, slower by up to a third, costs a warm sweep at most 0.04 s.
EARLY = 2e8


@stoppable()
@with_integration
@jax.transfer_guard("allow")  # all transfers here are meant: grid values to the devices, results to the host
def sweep(
    lane: LaneFunction,
    grid: Mapping[str, Numbers | Zip] | Zip,
    *,
    t1: Number,
    steady: Number | None = None,
    chunk: int | None = None,
    devices: Sequence[Device] | None = None,
    executor: Executors | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 10.0,
    progress: bool | None = None,
    callback: Callback | None = None,
    **given: Unpack[Integration],
) -> Dataset:
    """Solves `lane(**parameters)` for every point of a grid, vmapped, and returns one labelled dataset.

    Finished lanes are replaced by new ones while the batch runs, so a slow lane holds up no other. The same call gives
    the same bits, also when it was killed and resumed; another `chunk`, other devices or versions change the last
    digits.

    **Arguments:**

    - `lane`: parameters -> `(Problem, w0)`, a pure JAX function; each parameter arrives as a scalar (or one slice).
    - `grid`: `{"alpha": alphas, "t_off": t_offs}` is a product, `Zip(alpha=.., t_off=..)` pairs its values, and a `Zip`
      may be an entry of a product.
    - `t1`, `saveat`, `metrics`, `flow`, `solver`, `rtol`, `atol`, `max_steps`: as in `solve`. Without a `flow` gradient
      flow is followed in the variables whose steps cost least: the weights, or, where R_a has a closed form and exists
      in every lane up to t1, its dual variable (`MirrorFlow`) or one number a measurement (`DualFlow`); the results are
      the same up to the tolerances. The default solver is chosen by the stiffness of four lanes, spread over the grid:
      if all are stiff, `RKC` at rtol >= 1e-4, and `diffrax.Kvaerno5()` for very stiff ones on measurements.
    - `steady`: end a lane once `|dx/dt| <= steady |x|`, after its last breakpoint before t1; in 1/time. Its values stay
      as they are up to t1. A saddle looks steady too, and errors of size `rtol` do not look steady, so this is off
      (`None`) unless asked for. Without it, where only one time is saved, a lane whose limit is known to be where it is
      at t1, up to rtol, ends there as soon as that is known.
    - `chunk`: lanes solved together on all devices; chosen from the memory that is free when `None`.
    - `devices`: where; all local ones of the first platform when `None`. Several hosts, after
      `jax.distributed.initialize()`, share the lanes; give them one `store`, and `open_sweep` it at the end.
    - `executor`: workers that compute the groups of up to `8 * chunk` lanes, with the same bits: any
      `concurrent.futures.Executor`, such as `client.get_executor()` of `dask.distributed`, or a function that makes
      one. A group whose worker dies goes to another.
    - `store`: a new folder that keeps results as they come, so that the sweep survives being killed. Needed where they
      do not fit into memory. `resume`: go on with the one that is there (or begin it).
    - `checkpoint_every`: seconds between two checkpoints of lanes under way.
    - `progress`: show a bar; when `None`, on a terminal only. `callback`: gets a `SweepReport` every few segments.

    **Returns:** an `xarray.Dataset` with one dimension a parameter and `time`: `loss`, `a`, each metric, the final `x`
    (dimensions x_0, ..), and for each lane `status` (the name of a `RESULTS`), `steps`, `rejected_steps` and `t_end`. A
    failed lane holds NaN from the time it failed. `attrs["representation"]`: the flow that was followed, `WeightFlow`
    for the weights. `attrs["work"]`: the steps that all lanes took, or with
    `RKC` their evaluations of the velocity; `attrs["efficiency"]`: this work divided by the work of all slots of the
    batch, empty ones included.

    **Raises:** `ValueError` for an empty grid, a lane that does not take its parameters or does not return
    `(Problem, w0)`, arguments that `solve` would refuse, an implicit solver on several devices, results that fit
    neither memory nor disk, a store that holds another run, or a call inside `jax.grad`, `jit` or `vmap`. `TypeError`
    for a lane that needs the value of a parameter, or keeps one. `OSError` where the store cannot be written; what was
    finished is safe. Bad *values* of a lane do not raise: they are its status.
    """
    refuse_unknown(given, "sweep")
    refuse_traced((lane, grid, t1, steady, given), "sweep")
    lanes, (chosen, workers), t1 = Grid(grid), choose_place(devices, executor), as_time_scalar(t1, "t1")
    require_parameters(lane, lanes.take(np.zeros(1, int)), "the lane")
    plan = make_plan(lane, lanes, t1, steady, given, len(chosen))
    program, outcome, start, options = plan.program, plan.like[1], plan.program.start, plan.program.options
    named = _named(outcome)
    slots = recorded_slots(chunk, store, resume) or _slots(plan, len(lanes), chosen, stored=store is not None)
    shrink = plan.operations * slots * 1000 > WORTH.get(chosen[0].platform, WORTH_ELSEWHERE)
    # Workers get the functions themselves, because a jaxpr cannot be pickled.
    carried_out = program if workers is None else _untraced(program, lane, given)
    early = EARLY / plan.operations
    scheduler = Scheduler(carried_out, lanes, min(slots, len(lanes)), chosen, plan.like, shrink, early)
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    dataset = run(
        _Job(scheduler=scheduler, group_size=BATCHES * scheduler.slots, lane_bytes=size_of(outcome)),
        lanes,
        about=About(
            results_like(named), np.asarray(options.ts), tuple(name for name in named if name not in PER_LANE), TEXTS
        ),
        configure=lambda: configuration(
            lanes,
            trace(lambda values: computation(program, values), lanes.first(), "the lane or metrics"),
            slots,
            chosen,
            settings | {"flow": start.flow, "steady": program.steady, "representation": _name(start.flow)},
        ),
        options=RunOptions(store, resume, checkpoint_every, progress, callback),
        workers=workers,
    )
    dataset.attrs["representation"] = _name(start.flow)
    return dataset


def _slots(plan: Plan, lanes: int, devices: Devices, *, stored: bool) -> int:
    """The lanes that are moved together, where nobody has said how many."""
    carried, outcome = plan.like
    room = {"result_bytes": size_of(outcome), "batches": BATCHES, "stored": stored}
    slots = choose_slots(size_of(carried), lanes, devices, **room, is_light=plan.operations <= LIGHT)
    if not plan.arrives or devices[0].platform != "cpu":
        return slots
    fewest = max(FEWEST, int(LIGHTEST / plan.operations)) * len(devices)
    most = min(slots, max(fewest, lanes // REPLACED))
    # Such lanes take about equally many steps: full batches in a row leave no slot empty.
    return -(-lanes // -(-lanes // most))


def _untraced(program: Program, lane: LaneFunction, given: Integration) -> Program:
    """The same, with the user's functions in the place of their programs."""
    metrics = given.get("metrics")
    options = dataclasses.replace(program.options, metrics=NoMetrics() if metrics is None else metrics)
    return Program(Start(lane, program.start.flow, program.start.t1), options, program.steady)


def _name(flow: AbstractFlow) -> str:
    """The name of the flow that moves the lanes."""
    return type(flow).__name__


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
