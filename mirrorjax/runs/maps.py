"""map_grid(): evaluates any function over a grid, in groups, on devices and with a store."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..calls import calling, refuse_traced, require_parameters
from ..checks import Numbers
from ..programs import Computed, as_program
from ..results import RESULTS, status_name
from ..signals import stoppable
from .archive import TEXT, Arrays, Shape, shape_of
from .configuration import configuration, require_pure, trace, trace_pure, traced_once
from .dataset import About, Dataset, flatten, results_like
from .devices import Device, Devices, on_devices, spread
from .engine import AbstractJob, Checkpoint, Lanes, RunOptions, failures, run
from .executors import Executors, choose_place
from .grid import Grid, OneLane, Values, Zip
from .memory import choose_slots, size_of
from .progress import Callback, Reporter
from .store import recorded_slots

Function = Callable[..., PyTree]


@stoppable()
@jax.transfer_guard("allow")  # all transfers here are meant: grid values to the devices, results to the host
def map_grid(
    fn: Function,
    grid: Mapping[str, Numbers | Zip] | Zip,
    *,
    chunk: int | None = None,
    devices: Sequence[Device] | None = None,
    executor: Executors | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> Dataset:
    """`fn(**parameters)` for every point of a grid, vmapped, as one labelled dataset.

    For example predicted limits, gradients of an objective in the schedule, or a loop of your own. Every chunk runs
    until its slowest lane ends; `mirrorjax.sweep` replaces lanes that have ended, for flows.

    **Arguments:**

    - `fn`: parameters -> a pytree of arrays, a pure JAX function; each parameter arrives as a scalar (or one slice). An
      `equinox.Module` keeps large data as leaves. A `RESULTS` in the output becomes the names of statuses.
    - `grid`: parameter name -> values; or a `Zip`.
    - `chunk`: how many lanes are computed at a time; chosen by memory if None.
    - `devices`: the devices to use, by default all of this process; `executor`: workers that compute the chunks, as in
      `mirrorjax.sweep`.
    - `store`: a folder in which finished chunks are kept; `resume`: continue the run that it holds.
    - `progress`: show a bar, by default on a terminal; `callback`: gets a `SweepReport` after every chunk.

    **Returns:** an `xarray.Dataset` with one dimension a parameter, and one variable a leaf of the output, named by its
    path (`"value"` for a lone array) with dimensions NAME_0, .. of its own.

    **Raises:** `ValueError` for an empty grid, a function that is not pure or returns something that is not arrays,
    names of results that a dataset cannot hold, results that fit neither memory nor disk, or a store that holds another
    run; `TypeError` for a function that needs the value of a parameter while it is traced; `OSError` where the store
    cannot be written.
    """
    refuse_traced((fn, grid), "map_grid")
    lanes = Grid(grid)
    require_parameters(fn, lanes.labels.parameters(), "the function")
    chosen, workers = choose_place(devices, executor)
    one = lanes.first()
    program = _pure(_ByName(fn), one)
    with calling("the function"):
        outputs = eqx.filter_eval_shape(program, one)
    results = _shapes(outputs)
    room = {"result_bytes": size_of(outputs), "stored": store is not None}
    slots = recorded_slots(chunk, store, resume) or choose_slots(size_of(outputs), len(lanes), chosen, **room)
    size = spread(min(slots, len(lanes)), chosen)
    # Workers get the function itself, because a jaxpr cannot be pickled.
    carried_out = program if workers is None else _ByName(fn)
    return run(
        _Job(fn=carried_out, grid=lanes, group_size=size, devices=chosen, lane_bytes=size_of(outputs)),
        lanes,
        about=About(results),
        configure=lambda: configuration(lanes, trace(program, one, "the function"), slots, chosen, {}),
        options=RunOptions(store, resume, None, progress, callback),
        workers=workers,
    )


def _pure(fn: Callable[[OneLane], PyTree], one: OneLane) -> Callable[[OneLane], PyTree]:
    """Returns the function as its program, or as it is where that cannot be compared with others.

    **Raises:** `ValueError` if two traces of it differ.
    """

    def traced() -> Callable[[OneLane], PyTree]:
        return as_program(fn, one, differentiable=False)

    program = traced_once(traced, "the function", "map_grid")
    if isinstance(program, Computed):
        require_pure(program, traced, "the function")
    else:
        trace_pure(program, one, "the function")
    return program


def _shapes(outputs: PyTree) -> dict[str, Shape]:
    """Returns dtype and shape of the results by name. Raises `ValueError` unless the outputs are arrays of numbers."""
    leaves = jax.tree.leaves(outputs)
    is_number = [isinstance(leaf, jax.ShapeDtypeStruct) and not _is_key(leaf) for leaf in leaves]
    if not leaves or not all(is_number):
        raise ValueError(f"the function must return arrays, in a pytree such as a dict, got {leaves!r}")
    shapes = jax.tree.map(
        lambda leaf: Shape(TEXT, jax.tree.leaves(leaf)[0].shape) if isinstance(leaf, RESULTS) else shape_of(leaf),
        outputs,
        is_leaf=lambda leaf: isinstance(leaf, RESULTS),
    )
    return results_like(flatten(shapes, "value"))


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended)


class _Job(AbstractJob):
    """Evaluates a function on the lanes of a grid; a group is one batch."""

    fn: Callable[[OneLane], PyTree]
    grid: Grid
    group_size: int
    devices: Devices
    lane_bytes: int

    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        padded = np.pad(group, (0, self.group_size - len(group)), mode="edge")
        outputs = on_devices(_map, self.fn, self.grid.take(padded), self.devices)
        refuse_traced(outputs, "map_grid")  # the function may have closed over a number of an outer transformation
        named = {name: value[: len(group)] for name, value in flatten(_plain(outputs), "value").items()}
        reporter.moved(named | {"lanes": group}, failures(named), 0.0, 0, 0)
        return named


def _plain(outputs: PyTree) -> PyTree:
    """Converts arrays to NumPy and statuses to their names."""
    return jax.tree.map(
        lambda leaf: status_name(leaf) if isinstance(leaf, RESULTS) else np.asarray(leaf),
        outputs,
        is_leaf=lambda leaf: isinstance(leaf, RESULTS),
    )


class _ByName(eqx.Module):
    """A function of the values of a lane, by name. A class, so that the same function is found compiled."""

    fn: Function

    def __call__(self, values: OneLane) -> PyTree:
        return self.fn(**values)


def _map(fn: Callable[[OneLane], PyTree], values: Values) -> Any:
    return jax.vmap(fn)(values)
