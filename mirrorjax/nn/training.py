"""train(): runs one training loop for every lane of a grid, vmapped, and returns one labelled dataset.

Lanes differ in numbers of the optimizer and of the initial weights (a weight decay, a switch-off step, a seed), never
in the program. Grids, stores and datasets are those of `mirrorjax.sweep`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from ..calls import calling, refuse_traced, require_parameters
from ..checks import Numbers, as_count, require_kind
from ..optim import ClockState
from ..optim.pilot import warn_of_collapse
from ..paths import leaf_names, named_leaves, variable_name
from ..programs import as_program
from ..runs.archive import TEXT, Arrays, Shape
from ..runs.configuration import configuration, trace
from ..runs.dataset import About, Dataset, flatten, joined, results_like
from ..runs.devices import Device, Devices, choose_devices, on_devices, spread
from ..runs.engine import AbstractJob, Checkpoint, Lanes, RunOptions, failures, run
from ..runs.grid import Grid, OneLane, Values, Zip
from ..runs.memory import choose_slots, size_of
from ..runs.progress import Callback, Reporter
from ..runs.store import recorded_slots
from ..signals import stoppable
from .lane import Carry, Task, batch_of, call_lane, loss_of, measured_by, start, update

# Bytes of weights and states that a batch may have whatever their number: small lanes cost as much as they are calls.
CACHED = 2**20
KEPT = "weights."  # prefix of the names of the trained weights
TEXTS = {
    "time": ("steps of the optimizer", "1"),
    "loss": ("mean loss of the batches since the last record", "1"),
    "status": ("how the lane ended", "1"),
}
History = dict[str, np.ndarray]
State = tuple[Carry, History, np.ndarray]  # the carry, what was recorded, and the count of steps


@stoppable()
def train(
    lane: Callable[..., tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]],
    grid: Mapping[str, Numbers | Zip] | Zip,
    *,
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    batch: Callable[[PRNGKeyArray], PyTree],
    steps: int,
    every: int,
    metrics: Callable[[PyTree], PyTree] | None = None,
    keep: bool = False,
    accumulate: int = 1,
    chunk: int | None = None,
    devices: Sequence[Device] | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> Dataset:
    """`w <- w + optimizer(mean of grad loss(w, batch))`, so many steps, for every point of a grid.

    **Arguments:**

    - `lane`: parameters -> `(optimizer, weights, key)`, pure JAX; each parameter arrives as a scalar. The optimizer is
      any of optax; those that search along a line or scale by the loss get `value`, `grad` and `value_fn`, on the
      batches of the step. The key draws the batches: lanes of equal keys see equal ones.
    - `grid`: as in `mirrorjax.sweep`, e.g. `{"weight_decay": [0, 0.1], "seed": [0, 1, 2]}`.
    - `loss`, `batch`: weights and a batch -> a number; a key -> a batch, a pytree with the examples along the first
      axes. Both are pure JAX; the precision is the model's. Use `equinox.Module`s for functions with data sets or
      frozen weights: their arrays are arguments of the compiled program instead of constants in it.
    - `steps`: the number of steps, a multiple of `every`, the number of steps between two records.
    - `metrics`: weights -> a pytree of numbers, for instance `SpectralTracker.measure` or a validation loss;
      recorded at step 0 and after every record.
    - `keep`: store the trained weights, as variables that `weights_of` reads.
    - `accumulate`: the number of batches whose gradients are averaged in a step, computed one after the other.
    - `devices`: lanes are divided over the devices; each batch is, if there are fewer lanes than devices.
    - `chunk`: the number of lanes at a time. On a CPU, if one lane already uses all cores and caches, `chunk=1` is
      faster than all at once; it also compiles only once.
    - `store`, `resume`, `checkpoint_every` (seconds), `progress`, `callback`: as in `mirrorjax.sweep`. A run that was
      killed continues from its last checkpoint and gives the same bits.

    **Returns:** an `xarray.Dataset` with one dimension a parameter and `time`, the count of steps: `loss`, the mean
    over the batches since the previous record (missing at step 0), the metrics, and a `status`, `"diverged"` if a loss
    was infinite or NaN. Warns where a decay of `mirrorjax.optim` was to be switched off after the last step,
    and where `pilot` or `pilot_decay` led to chance.

    **Raises:** `ValueError` for `steps` that `every` does not divide, a lane that returns something else or weights
    that are not floating point, an optimizer that needs more than those three arguments, a loss that is no scalar,
    metrics that are not real numbers or named like variables of every run, or a store that holds another run;
    `TypeError` for a function that needs the value of a number that is traced; `OSError` where the store cannot be
    written.
    """
    _require_functions(loss=loss, batch=batch, metrics=metrics or _nothing)
    lanes, chosen = Grid(grid), choose_devices(devices)
    require_parameters(lane, lanes.labels.parameters(), "the lane")
    steps, every, accumulate = _counts(steps, every, accumulate)
    shares = chosen if len(lanes) < len(chosen) else ()
    task = Task(lane, loss, batch, metrics or _nothing, every, accumulate, shares)
    one = lanes.first()
    programs, carry, measured = _programs(task, one)
    refuse_traced(programs, "train")  # functions may have closed over a number of an outer transformation
    records = 1 + steps // every
    lane_bytes = records * (size_of(measured) + 8) + (size_of(carry[0]) if keep else 0)
    slots = recorded_slots(chunk, store, resume) or _slots(carry, lane_bytes, len(lanes), chosen)
    size = min(slots, len(lanes)) if shares else spread(min(slots, len(lanes)), chosen)
    return run(
        _Job(
            programs=programs,
            every=every,
            shares=shares,
            grid=lanes,
            steps=steps,
            keep=keep,
            measures=bool(jax.tree.leaves(measured)),
            devices=chosen,
            group_size=size,
            lane_bytes=lane_bytes,
        ),
        lanes,
        about=_about(measured, carry[0] if keep else {}, np.arange(records) * every),
        configure=lambda: configuration(
            lanes,
            trace(lambda values: _once(programs, values), one),
            slots,
            chosen,
            {"steps": steps, "every": every, "keep": keep},
        ),
        options=RunOptions(store, resume, checkpoint_every, progress, callback),
    )


def _slots(carry: PyTree, lane_bytes: int, lanes: int, chosen: Devices) -> int:
    """The number of lanes at a time: as many as fit, and more where they are so small that a cache holds them."""
    return max(choose_slots(lane_bytes + size_of(carry), lanes, chosen), min(lanes, CACHED // size_of(carry)))


def _counts(steps: int, every: int, accumulate: int) -> tuple[int, int, int]:
    steps, every, accumulate = as_count(steps, "steps"), as_count(every, "every"), as_count(accumulate, "accumulate")
    if steps % every:
        raise ValueError(f"steps must be a multiple of every, got steps={steps} and every={every}")
    return steps, every, accumulate


def _require_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function) or isinstance(function, type):
            raise ValueError(f"{name} must be a function or a module with __call__, got {function!r}")


def _about(measured: PyTree, kept: PyTree, ts: np.ndarray) -> About:
    """Describes the dataset: loss and metrics over time, the status, and the weights that are kept."""
    number = np.dtype(float)
    metrics = {name: Shape(number, (len(ts), *leaf.shape)) for name, leaf in flatten(measured, "metric").items()}
    named = joined({"loss": Shape(number, (len(ts),)), "status": Shape(TEXT)}, metrics)
    weights = joined(named, {_kept(name): leaf for name, leaf in named_leaves(kept)}, "weights")
    return About(results_like(weights), ts, ("loss", *metrics), TEXTS)


def weights_of(dataset: Dataset, like: PyTree, **lane: Any) -> PyTree:
    """Returns the trained weights of one lane, stored by `train(.., keep=True)`, structured like its initial weights.

    **Arguments:** `like`: weights of the same structure; `lane`: the value of each parameter of the grid, e.g.
    `seed=0`.
    **Raises:** `ValueError` if weights were not stored or have another structure, and for a lane that there is not.
    """
    require_kind(dataset, Dataset, "dataset", "the dataset that train returned")
    chosen = _one_lane(dataset, lane)
    names = [_kept(name) for name in leaf_names(like)]
    if not names:
        raise ValueError(f"like must be weights such as those that the lane starts from, got {like!r}")
    if missing := [name for name in names if name not in chosen]:
        raise ValueError(f"the dataset has no {', '.join(missing[:3])}: train with keep=True, and give like's weights")
    leaves, treedef = jax.tree.flatten(like)
    found = [np.asarray(chosen[name]) for name in names]
    for name, leaf, array in zip(names, leaves, found, strict=True):
        if array.shape != jnp.shape(leaf):
            raise ValueError(f"{name} has shape {array.shape}, like's has {jnp.shape(leaf)}: name one lane of the grid")
    return jax.tree.unflatten(treedef, [jnp.asarray(a, x.dtype) for a, x in zip(found, leaves, strict=True)])


def _one_lane(dataset: Dataset, lane: Mapping[str, Any]) -> Dataset:
    """The part of a dataset with these values. Raises `ValueError`, with the values that there are, for others."""
    for name, value in lane.items():
        if name not in dataset.indexes:
            raise ValueError(
                f"{name} is no dimension whose values choose a lane, those are {', '.join(map(str, dataset.indexes))}; "
                "parameters of one Zip are chosen by number before, dataset.isel(..)"
            )
        try:
            dataset = dataset.sel({name: value})
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"no lane has {name}={value!r}; its values are {dataset[name].values}") from None
    return dataset


def _nothing(weights: PyTree) -> PyTree:
    # A module-level function: a new lambda in each run would compile each run anew.
    return {}


def _kept(name: str) -> str:
    return KEPT + variable_name(name)


class Programs(eqx.Module):
    """The computations of one lane, each as its program, so that functions that are defined again are compiled once.

    `start`: values -> weights and the optimizer's state; `advance`: (values, carry, count) -> the carry after the next
    steps, and their mean loss; `measure`: weights -> metrics.
    """

    start: Callable
    advance: Callable
    measure: Callable


def _programs(task: Task, one: OneLane) -> tuple[Programs, Carry, PyTree]:
    """The programs of a lane, and the shapes of its carry and of its metrics.

    **Raises:** `ValueError` and `TypeError`, naming the function, for what the functions of a task must not return.
    """
    with calling("the lane, loss, batch or metrics"):
        begin = as_program(eqx.Partial(start, task), one, differentiable=False)
        carry = eqx.filter_eval_shape(begin, one)
        measure = as_program(eqx.Partial(measured_by, task), carry[0], differentiable=False)
        advance = as_program(eqx.Partial(_steps, task), one, carry, jnp.zeros((), int), differentiable=False)
        return Programs(begin, advance, measure), carry, eqx.filter_eval_shape(measure, carry[0])


# Each of the three gets its own program alone, so that trainings that differ elsewhere share what was compiled of it.
def _begin(start: Callable, values: Values) -> Carry:
    return jax.vmap(start)(values)


def _advance(shared: tuple[Callable, Array], lanes: tuple[Values, Carry]) -> tuple[Carry, Float[Array, " lanes"]]:
    """Takes the next steps of each lane from the count `first`; returns weights, states and mean losses."""
    advance, first = shared
    return jax.vmap(lambda values, carry: advance(values, carry, first))(*lanes)


def _steps(task: Task, values: OneLane, carry: Carry, first: Int[Array, ""]) -> tuple[Carry, Float[Array, ""]]:
    """Takes `every` steps of a lane from the count `first`; returns weights, state and mean loss."""
    optimizer, _, key = call_lane(task, values)

    def step(carry: Carry, count: Array) -> tuple[Carry, Float[Array, ""]]:
        weights, state = carry
        keys = jax.random.split(jax.random.fold_in(key, count), task.accumulate)
        value, gradient = _gradient(task, weights, keys)
        value_fn = partial(_mean_loss, task, keys)  # computed only by optimizers that call it
        updates, state = update(optimizer, gradient, state, weights, value, value_fn)
        return (optax.apply_updates(weights, updates), state), value

    carry, losses = jax.lax.scan(step, carry, first + jnp.arange(task.every))
    return carry, jnp.mean(losses)


def _gradient(task: Task, weights: PyTree, keys: Shaped[Array, "batches *key"]) -> tuple[Float[Array, ""], PyTree]:
    """Averages loss and gradient over the batches of a step."""

    def of_batch(key: PRNGKeyArray) -> PyTree:
        batch = _divide(batch_of(task, key), task.shares)
        return jax.value_and_grad(partial(loss_of, task))(weights, batch)

    if task.accumulate == 1:
        return of_batch(keys[0])

    def add(total: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, of_batch(key)), None

    like = jax.eval_shape(lambda: loss_of(task, weights, batch_of(task, keys[0])))
    zero = jnp.zeros(like.shape, like.dtype), jax.tree.map(jnp.zeros_like, weights)
    total, _ = jax.lax.scan(add, zero, keys)
    return jax.tree.map(lambda x: x / task.accumulate, total)


def _mean_loss(task: Task, keys: Shaped[Array, "batches *key"], weights: PyTree) -> Float[Array, ""]:
    """The loss of the batches of a step, of whose mean `_gradient` is the gradient."""
    return jnp.mean(jax.lax.map(lambda key: task.loss(weights, _divide(task.batch(key), task.shares)), keys))


def _divide(batch: PyTree, devices: Devices) -> PyTree:
    """Divides the examples of a batch over the devices, if the number of examples allows equal shares."""
    if not devices:
        return batch
    mesh = Mesh(np.asarray(devices), ("batch",), axis_types=(AxisType.Auto,))
    share = NamedSharding(mesh, PartitionSpec("batch"))
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, share) if x.ndim and x.shape[0] % len(devices) == 0 else x, batch
    )


def _measure(measure: Callable, weights: PyTree) -> PyTree:
    return jax.vmap(measure)(weights)


def _warn_of_pending(carry: Carry, lanes: int, steps: int) -> None:
    """Warns of lanes whose training ends before their weight decay does what its schedule says."""
    clocks = jax.tree.leaves(carry[1], is_leaf=lambda leaf: isinstance(leaf, ClockState))
    for clock in clocks:
        if isinstance(clock, ClockState) and np.any(late := np.asarray(clock.pending)[:lanes]):
            reached = np.asarray(clock.time)[:lanes][late].max()
            warnings.warn(
                f"{int(late.sum())} of {lanes} lanes ended after {steps} steps, at t = {reached:g}, before a "
                "breakpoint of their weight decay, so that it was never switched off: train longer, or switch off "
                "earlier (t_off is in units of the sum of the learning rates, off_at counts steps)",
                stacklevel=2,
            )


def _once(programs: Programs, values: OneLane) -> PyTree:
    """Computes one lane up to its first record; the checksum of this program identifies a stored run."""
    lanes = jax.tree.map(lambda value: value[None], values)
    carry, losses = _advance((programs.advance, jnp.zeros((), int)), (lanes, _begin(programs.start, lanes)))
    return carry, losses, _measure(programs.measure, carry[0])


class _Job(AbstractJob):
    """Trains the lanes of a grid; a group is one batch of lanes."""

    programs: Programs
    every: int
    shares: Devices
    grid: Grid
    steps: int
    keep: bool
    measures: bool
    devices: Devices
    group_size: int
    lane_bytes: int

    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        values = self.grid.take(np.pad(group, (0, self.group_size - len(group)), mode="edge"))
        carry = self._call(_begin, self.programs.start, values)
        fresh = (carry, self._record({}, 0, None, carry), np.asarray(0))
        found: Any = None if checkpoint is None else checkpoint.find(fresh, self._is_possible)
        state: State = fresh if found is None else found
        while state[-1] < self.steps:
            state = self._step(values, state)
            if checkpoint is not None:
                checkpoint.offer(state)
            reporter.moved({}, 0, len(group) * float(state[-1]) / self.steps, 0, 0)
        carry, history, _ = state
        _warn_of_pending(carry, len(group), self.steps)
        warn_of_collapse(carry[1], len(group))
        results = {name: array[: len(group)] for name, array in (history | self._final(carry, history)).items()}
        reporter.moved(results | {"lanes": group}, failures(results), 0.0, 0, 0)
        return results

    def _is_possible(self, state: State) -> bool:
        count = int(state[-1])
        return 0 <= count <= self.steps and count % self.every == 0

    def _step(self, values: Values, state: State) -> State:
        """Trains up to the next record and returns the new state."""
        carry, history, count = state
        carry, loss = self._call(_advance, (self.programs.advance, jnp.asarray(int(count))), (values, carry))
        count = count + self.every
        return carry, self._record(history, int(count) // self.every, loss, carry), np.asarray(count)

    def _call(self, fn: Callable, shared: PyTree, lanes: PyTree) -> Any:
        results = eqx.filter_jit(fn)(shared, lanes) if self.shares else on_devices(fn, shared, lanes, self.devices)
        refuse_traced(results, "train")  # functions may have closed over a number of an outer transformation
        return results

    def _record(self, history: History, at: int, loss: Array | None, carry: Carry) -> History:
        """Returns the history with one more record; an empty history becomes one with the first record."""
        measured = flatten(self._call(_measure, self.programs.measure, carry[0]), "metric") if self.measures else {}
        now = {name: np.asarray(value, float) for name, value in measured.items()}
        now["loss"] = np.full(self.group_size, np.nan) if loss is None else np.asarray(loss, float)
        length = 1 + self.steps // self.every
        changed = {}
        for name, value in now.items():
            fresh = np.full((value.shape[0], length, *value.shape[1:]), np.nan)
            changed[name] = np.array(history.get(name, fresh))
            changed[name][:, at] = value
        return changed

    def _final(self, carry: Carry, history: History) -> dict[str, np.ndarray]:
        is_finite = np.all(np.isfinite(history["loss"][:, 1:]), axis=1)
        weights = named_leaves(carry[0]) if self.keep else []
        return {"status": np.where(is_finite, "successful", "diverged")} | {
            _kept(name): np.asarray(leaf) for name, leaf in weights
        }
