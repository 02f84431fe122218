"""Compares hand-made and learned schedules of decay by their generalisation (Table 2, with noise, at several totals).

Hand-made shapes (constant, linear, cosine, exponential, warm-up) are compared at equal totals int alpha dt on two tasks
with noisy data. A learned schedule, constant on pieces up to a switch-off time, starts as the best of them and is
improved by the gradient of the validation error through the flow. All choices are made on validation data, those of
hand-made schedules too; test data judge, and choose nothing.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from scipy import stats

from ... import plot
from ...runs import Zip
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.experiment import Setting
from ..core.run import RunFolder
from .schedule_tasks import (
    RTOL,
    SHAPES,
    AbstractTask,
    Errors,
    Learned,
    Sample,
    Sensing,
    SparseRegression,
    errors,
    hand_made,
    limit,
    on_pieces,
)

SEEDS = 10
OFF = (0.1, 0.5)  # switch-off times of the hand-made schedules, in units of t1
ALWAYS_ON = ("constant, never off", "exponential")
ADAM = optax.adam(0.1)  # on logarithms of strengths and times
AGREE = 1e-4  # gradients and finite differences: the error of the solver, 1e-8 a step, over steps of 1e-3
Evaluate = Callable[[PyTree, Sample], Errors]


@dataclass(frozen=True)
class Size:
    """The size of a preset: the tasks by name, pieces of the learned schedule, and steps of learning."""

    tasks: dict[str, AbstractTask]
    pieces: int
    steps: int


SIZES = {
    "paper": Size({"regression": SparseRegression(n=40, d=100), "sensing": Sensing(n=15, m=100)}, 10, 150),
    "quick": Size({"regression": SparseRegression(n=30, d=60), "sensing": Sensing(n=8, m=30)}, 5, 8),
}


def run(folder: RunFolder, setting: Setting) -> None:
    """Task by task, each written as soon as it is finished."""
    size = SIZES[setting.preset]
    seeds = jnp.arange(setting.seed * SEEDS, (setting.seed + 1) * SEEDS)
    rows, totals, panels = [], [], []
    for name, task in size.tasks.items():
        samples = draw(task, seeds)
        tried = try_hand_made(task, samples, seeds)
        folder.save_dataset(f"hand_made_{name}", tried)
        totals += total_rows(name, tried)
        folder.save_table("totals", totals)
        learned, mine = learn(task, samples, tried, size)
        mine += limit_rows(task, samples, size.steps) if name == "regression" else []
        mine = [{"task": name, **row} for row in mine]
        rows += mine
        folder.save_table("schedules", rows)
        title = f"{name}: test error over {SEEDS} seeds, noise variance {task.noise**2:g}"
        folder.show(title, mine, COLUMNS, "schedules")
        folder.save_figure(f"test_error_{name}", error_figure(mine, name, task.noise**2), ERROR_CAPTION)
        panels.append(schedule_panel(task, tried, learned, name))
        _claim(folder, name, mine)
    curves = plot.line_panels(panels, "Learned schedules and their starts (dashed)", "seed")
    folder.save_figure("learned", curves, LEARNED_CAPTION)


ERROR_CAPTION = (
    "Each schedule at the total and switch-off time that validation data choose; the learned ones in colour."
)
LEARNED_CAPTION = "Strength over time of the learned schedules for three draws of the data, beside their starts."
COLUMNS = {
    "schedule": "schedule",
    "test": "test error",
    "half_width": "95% +-",
    "validation": "validation",
    "difference": "learned - best",
    "difference_half_width": "95% +-",
    "gradient_gap": "gradient gap",
}


@eqx.filter_jit
def draw(task: AbstractTask, seeds: Int[Array, " seeds"]) -> Sample:
    """The data of all seeds, each leaf with a leading axis."""
    return jax.vmap(task.draw)(seeds)


def candidates(task: AbstractTask) -> dict[str, np.ndarray]:
    """Every shape at every total and switch-off time, as parallel arrays; t_off means nothing to one never off."""
    grid = [
        (shape, total, off * task.t1)
        for shape, name in enumerate(SHAPES)
        for total in task.totals
        for off in (OFF if name != SHAPES[0] else OFF[-1:])
    ]
    shape, total, t_off = map(np.asarray, zip(*grid, strict=True))
    return {"shape": shape, "total": total, "t_off": t_off}


def try_hand_made(task: AbstractTask, samples: Sample, seeds: Int[Array, " seeds"]) -> Dataset:
    """Validation and test error of every candidate (dimensions candidate, seed)."""

    def lane(shape, total, t_off, index):
        sample = jax.tree.map(lambda leaf: leaf[index], samples)
        return task.problem(hand_made(shape, total, t_off, task.t1), sample), sample.w0

    grid = {"candidate": Zip(**candidates(task)), "seed": Zip(index=jnp.arange(seeds.size))}
    tried = sweep(lane, grid, t1=task.t1, rtol=RTOL, chunk=320)
    ok = jnp.asarray(tried.status.values == "successful")
    measured = _errors_of(samples, jnp.asarray(tried.x.values), ok)
    dims = ("candidate", "seed")
    tried = tried.assign_coords(seed=("seed", np.asarray(seeds)))
    return tried.assign(validation=(dims, np.asarray(measured.validation)), test=(dims, np.asarray(measured.test)))


@eqx.filter_jit
def _errors_of(samples: Sample, x: Array, ok: Array) -> Errors:
    of_candidates = jax.vmap(errors, in_axes=(None, 0, 0))
    return jax.vmap(of_candidates, in_axes=(0, 1, 1), out_axes=1)(samples, x, ok)


def differentiated(evaluate: Evaluate) -> Callable[[PyTree, Sample], tuple[Errors, PyTree]]:
    """Errors of all seeds at their parameters, and the gradient of each seed's validation error in its own."""

    def loss(parameters: PyTree, sample: Sample) -> tuple[Float[Array, ""], Errors]:
        measured = evaluate(parameters, sample)
        return measured.validation, measured

    slope = jax.vmap(jax.value_and_grad(loss, has_aux=True))

    @eqx.filter_jit
    def evaluated(parameters: PyTree, samples: Sample) -> tuple[Errors, PyTree]:
        (_, measured), gradient = slope(parameters, samples)
        return measured, gradient

    return evaluated


def improve(evaluated: Callable, start: PyTree, samples: Sample, steps: int) -> tuple[PyTree, Errors]:
    """Adam on the validation error, every seed for itself; the parameters that were best there, and their errors."""
    parameters, state = start, eqx.filter_jit(ADAM.init)(start)
    best, (kept, gradient) = start, evaluated(start, samples)
    for step in range(steps):
        _refuse_undefined(gradient, step)
        parameters, state = _step(parameters, gradient, state)
        measured, gradient = evaluated(parameters, samples)
        best, kept = _better((parameters, measured), (best, kept))
    return best, kept


# Whole, since each of their operations alone would be compiled by itself.
@eqx.filter_jit
def _step(parameters: PyTree, gradient: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in whole numbers
        updates, state = ADAM.update(gradient, state)
    return optax.apply_updates(parameters, updates), state


@eqx.filter_jit
def _better(new: tuple[PyTree, Errors], old: tuple[PyTree, Errors]) -> tuple[PyTree, Errors]:
    """The parameters of less validation error, seed by seed, and their errors."""
    return _choose(new[1].validation < old[1].validation, new, old)


def _refuse_undefined(gradient: PyTree, step: int) -> None:
    """A seed whose gradient is NaN would keep the schedule it has, and look as if there were nothing to gain."""
    leaves = map(np.asarray, jax.tree.leaves(gradient))
    finite = [np.isfinite(leaf.reshape(leaf.shape[0], -1)).all(axis=1) for leaf in leaves]
    if seeds := np.flatnonzero(~np.all(finite, axis=0)).tolist():
        raise FloatingPointError(f"the gradient of the validation error is not finite at step {step} of seeds {seeds}")


def _choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` for the seeds where the condition holds."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)


def gradient_gap(evaluated: Callable, parameters: PyTree, samples: Sample, step: float = 1e-3) -> float:
    """Largest relative difference over seeds of a directional derivative and its central difference of fourth order."""
    generator = np.random.default_rng(0)
    _, gradient = evaluated(parameters, samples)
    leaves, structure = jax.tree.flatten(parameters)
    direction = [generator.normal(size=leaf.shape) for leaf in leaves]

    def value(k: int) -> np.ndarray:
        moved = [jnp.asarray(np.asarray(p) + k * step * v) for p, v in zip(leaves, direction, strict=True)]
        return np.asarray(evaluated(jax.tree.unflatten(structure, moved), samples)[0].validation)

    exact = sum(
        np.sum((np.asarray(a) * b).reshape(len(b), -1), axis=1)
        for a, b in zip(jax.tree.leaves(gradient), direction, strict=True)
    )
    differenced = (8 * (value(1) - value(-1)) - value(2) + value(-2)) / (12 * step)
    return float(np.max(np.abs(exact - differenced) / np.max(np.abs(differenced))))


def best_hand_made(tried: Dataset) -> Int[np.ndarray, " seeds"]:
    """For each seed the candidate of least validation error."""
    return np.nanargmin(tried.validation.values, axis=0)


def starts(task: AbstractTask, tried: Dataset, pieces: int) -> Learned:
    """The best hand-made schedule of each seed on pieces, up to its switch-off, or t1 where it has none."""
    chosen = tried.isel(candidate=best_hand_made(tried))
    shape, total, t_off = (jnp.asarray(chosen[name].values) for name in ("shape", "total", "t_off"))
    always_on = np.isin(np.asarray(SHAPES)[np.asarray(shape)], ALWAYS_ON)
    until = jnp.where(jnp.asarray(always_on), task.t1, t_off)

    return _on_pieces(task, (shape, total, t_off, until), pieces)


@eqx.filter_jit
def _on_pieces(task: AbstractTask, numbers: tuple[Array, ...], pieces: int) -> Learned:
    def one(shape: Array, total: Array, t_off: Array, until: Array) -> Learned:
        return on_pieces(hand_made(shape, total, t_off, task.t1), until, pieces)

    return jax.vmap(one)(*numbers)


def learn(task: AbstractTask, samples: Sample, tried: Dataset, size: Size) -> tuple[Learned, list[dict[str, Any]]]:
    """The learned schedules, and the table of this task: each shape at its best, the best of all, the learned one."""
    evaluated = differentiated(lambda learned, sample: task.end(learned.schedule, sample))
    start = starts(task, tried, size.pieces)
    learned, end = improve(evaluated, start, samples, size.steps)
    # Away from t_off = t1, where the error as a function of t_off has a corner.
    inside = eqx.tree_at(lambda s: s.log_t_off, start, jnp.full_like(start.log_t_off, jnp.log(0.6 * task.t1)))
    gap = gradient_gap(evaluated, inside, samples)
    rows = []
    for shape, name in enumerate(SHAPES):
        own = tried.isel(candidate=np.flatnonzero(tried["shape"].values == shape))
        rows.append(_row(f"{name}", *_selected(own)))
    best = _selected(tried)
    rows.append(_row("best hand-made", *best))
    test = np.asarray(end.test)
    difference, width = confidence(test - best[1])
    extra = {"difference": difference, "difference_half_width": width, "gradient_gap": gap}
    rows.append(_row("learned", np.asarray(end.validation), test) | extra)
    return learned, rows


def limit_rows(task: AbstractTask, samples: Sample, steps: int) -> list[dict[str, Any]]:
    """The same for t -> infinity, where only the total matters: the best of the grid, and the learned total."""
    evaluated = differentiated(functools.partial(limit, task))
    # With a dtype, so that one program serves the grid and what is learned.
    grid = [evaluated(jnp.asarray(np.full(SEEDS, np.log(total))), samples)[0] for total in task.totals]
    validation, test = (np.stack([np.asarray(getattr(each, key)) for each in grid]) for key in ("validation", "test"))
    chosen, seeds = np.nanargmin(validation, axis=0), np.arange(SEEDS)
    start = jnp.asarray(np.log(np.asarray(task.totals, float))[chosen])
    _, end = improve(evaluated, start, samples, steps)
    gap = gradient_gap(evaluated, start, samples)
    difference, width = confidence(np.asarray(end.test) - test[chosen, seeds])
    extra = {"difference": difference, "difference_half_width": width, "gradient_gap": gap}
    return [
        _row("limit, best total", validation[chosen, seeds], test[chosen, seeds]),
        _row("limit, learned total", np.asarray(end.validation), np.asarray(end.test)) | extra,
    ]


def _selected(tried: Dataset) -> tuple[Float[np.ndarray, " seeds"], Float[np.ndarray, " seeds"]]:
    """Validation and test error of the candidate that each seed's validation data choose."""
    chosen, seeds = best_hand_made(tried), np.arange(tried.seed.size)
    return tried.validation.values[chosen, seeds], tried.test.values[chosen, seeds]


def _row(name: str, validation: Float[np.ndarray, " seeds"], test: Float[np.ndarray, " seeds"]) -> dict[str, Any]:
    mean, width = confidence(test)
    missing = {"difference": None, "difference_half_width": None, "gradient_gap": None}
    return {"schedule": name, "test": mean, "half_width": width, "validation": float(np.mean(validation)), **missing}


def confidence(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Mean and half the width of its 95% confidence interval (Student's t)."""
    return float(np.mean(values)), float(stats.t.ppf(0.975, values.size - 1) * stats.sem(values))


def total_rows(task: str, tried: Dataset) -> list[dict[str, Any]]:
    """The ablation: every candidate by itself, its test error over seeds."""
    rows = []
    for index in range(tried.candidate.size):
        lane = tried.isel(candidate=index)
        mean, width = confidence(lane.test.values)
        rows.append(
            {
                "task": task,
                "schedule": SHAPES[int(lane["shape"])],
                "total": float(lane.total),
                "t_off": float(lane.t_off),
                "test": mean,
                "half_width": width,
                "failed": int(np.sum(lane.status.values != "successful")),
            }
        )
    return rows


def _claim(folder: RunFolder, name: str, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if row["difference"] is None:
            continue
        folder.claim(
            f"{name}: {row['schedule']} is at least as good on test data as the best hand-made schedule",
            paper="-",
            ours=f"difference {row['difference']:.2g} +- {row['difference_half_width']:.2g} (95%, {SEEDS} seeds)",
            holds=row["difference"] <= 0,
            see=(f"test_error_{name}", "schedules"),
        )
        folder.claim(
            f"{name}: the gradient of {row['schedule']} agrees with finite differences",
            paper=f"within {AGREE:g}",
            ours=f"{row['gradient_gap']:.1e}",
            holds=row["gradient_gap"] < AGREE,
            see=("schedules",),
        )


def error_figure(rows: Sequence[dict[str, Any]], name: str, noise: float) -> Any:
    """Mean test error with its interval, each way of choosing a schedule in a row."""
    return plot.intervals(
        [row["schedule"] for row in rows],
        np.array([row["test"] for row in rows]),
        np.array([row["half_width"] for row in rows]),
        title=f"Held-out error, {name}",
        value_label=f"mean squared error, test data ({SEEDS} seeds, 95%)",
        highlighted=["learned" in row["schedule"] for row in rows],
        floor=noise,
        floor_label="noise",
    )


def schedule_panel(task: AbstractTask, tried: Dataset, learned: Learned, name: str, shown: int = 3) -> plot.Panel:
    """alpha(t) of the learned schedules of the first seeds, and of the hand-made ones they started from."""
    ts = jnp.asarray(np.linspace(0.0, task.t1, 601))
    chosen = tried.isel(candidate=best_hand_made(tried))
    strength = eqx.filter_jit(jax.vmap(lambda schedule, t: schedule(t), in_axes=(None, 0)))
    lines = []
    for index, color in zip(range(shown), ("#440154", "#21918c", "#b5a000"), strict=True):
        shape, total, t_off = (chosen[key].values[index] for key in ("shape", "total", "t_off"))
        before = hand_made(shape, total, t_off, task.t1)
        after = jax.tree.map(lambda leaf, index=index: jnp.asarray(np.asarray(leaf)[index]), learned).schedule
        for schedule, label, style in ((after, f"{index}", "-"), (before, "", "--")):
            lines.append(plot.Line(np.asarray(ts), np.asarray(strength(schedule, ts)), label, style, color))
    return plot.Panel(lines, name, "time t (flow)", r"strength $\alpha(t)$")
