"""W_K^T W_Q of a ViT under schedules of the learning rate, with AdamW and with SGD (the paper's Figs. 15 and 16).

The theory's a is the sum of learning rate times decay, so a schedule changes when the bias moves and how far. Under
each schedule the theory predicts that the ratio of the nuclear to the Frobenius norm falls with decay, and stays below
the ratio without decay after the switch-off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ... import plot
from ...nn.tasks import Decay, decay_grid
from ...optim import switch_off_adamw, switch_off_sgd
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, mean_text
from . import vision

CYCLES = 3  # of the cosine that restarts
MOMENTUM = 0.9
SCHEDULES = ("constant", "warm restarts", "warm-up cosine")


class Method(NamedTuple):
    """An optimizer: its name, its largest learning rate, and a strength of decay that matters, as optax counts it."""

    name: str
    rate: float
    strength: float


@dataclass(frozen=True)
class Size:
    """The size of a preset: the training, the epoch after which decay is switched off, the two optimizers."""

    training: vision.Training
    end: float
    methods: tuple[Method, ...]

    def decays(self, method: Method, steps_of_epoch: int) -> list[Decay]:
        """None, constant, and switched off."""
        strong = method.strength
        return [Decay(0.0), Decay(strong), Decay(strong, round(self.end * steps_of_epoch))]


SIZES = {
    "paper": Size(
        vision.Training(vision.TINY, 300, 128, 3, padding=4, chunk=9),
        150.0,
        (Method("AdamW", 1e-3, 0.2), Method("SGD", 0.05, 5e-4)),
    ),
    "gpu": Size(
        vision.Training(vision.TINY, 30, 128, 3, padding=4, chunk=9),
        15.0,
        (Method("AdamW", 1e-3, 0.4), Method("SGD", 0.05, 1e-3)),
    ),
    # The fewer the steps, the stronger: what counts is strength times the sum of the learning rates.
    "quick": Size(
        vision.Training(vision.SMALL, 2, 32, 3, records=4),
        1.0,
        (Method("AdamW", 3e-3, 3.0), Method("SGD", 0.05, 0.015)),
    ),
}


def run(folder: RunFolder, setting: Setting) -> None:
    """Each optimizer in one training of all schedules, decays and seeds, written as soon as it is finished."""
    size = SIZES[setting.preset]
    reproduce(folder, size, vision.on_cifar10(folder, size.training), setting.seed)


def reproduce(folder: RunFolder, size: Size, task: vision.Vision, seed: int) -> None:
    """Runs the experiment on a given task's images."""
    solved, rows = {}, []
    for method in size.methods:
        dataset = solve(size, method, task, vision.seeds_from(seed, size.training.seeds))
        folder.save_dataset(method.name.lower(), dataset)
        rows += final_rows(dataset, method, labels(size, method))
        folder.save_table("lr_schedule", rows)
        solved[method.name] = dataset
    folder.show("At the end, mean ± std over seeds", rows, COLUMNS, "lr_schedule")
    for number, method in enumerate(size.methods, start=15):
        figure = over_epochs(solved[method.name], size, method)
        folder.save_figure(f"fig{number}_{method.name.lower()}", figure, CAPTION)
    for method in size.methods:
        _claim(folder, solved[method.name], method)


def solve(size: Size, method: Method, task: vision.Vision, seeds: Sequence[int]) -> Dataset:
    """One optimizer: dimensions schedule, decay, seed, time (in epochs), and layer.

    Schedules are lanes, chosen by a number; each lane computes the rates of all schedules and uses one.
    """
    rates = schedules(method.rate, task.steps)

    def lane(
        schedule: Int[Array, ""], weight_decay: Float[Array, ""], off_at: Float[Array, ""], seed: Int[Array, ""]
    ) -> tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]:
        def rate(count: Int[Array, ""]) -> Float[Array, ""]:
            return jnp.stack([jnp.asarray(each(count), jnp.float32) for each in rates])[schedule]

        options: Mapping[str, Any] = {"weight_decay": weight_decay, "mask": vision.KERNELS, "off_at": off_at}
        is_adam = method.name == "AdamW"
        optimizer = switch_off_adamw(rate, **options) if is_adam else switch_off_sgd(rate, MOMENTUM, **options)
        return optimizer, *task.start(seed)

    decays = decay_grid(size.decays(method, task.steps_of_epoch), seeds)
    dataset = task.train(lane, {"schedule": np.arange(len(rates))} | decays)
    return dataset.assign_coords(schedule=list(SCHEDULES))


def schedules(rate: float, steps: int) -> list[Callable]:
    """The three learning rates as functions of the step, in the order of `SCHEDULES`."""
    length = -(-steps // CYCLES)
    restarts = optax.join_schedules(
        [optax.cosine_decay_schedule(rate, length)] * CYCLES, [length * cycle for cycle in range(1, CYCLES)]
    )
    return [optax.constant_schedule(rate), restarts, vision.warm_up_cosine(rate, steps)]


def labels(size: Size, method: Method) -> list[str]:
    """The decays of an optimizer in tables and legends."""
    return ["none", f"{method.strength:g}", f"{method.strength:g} until epoch {size.end:g}"]


COLUMNS = {
    "optimizer": "method",
    "schedule": "learning rate",
    "decay": "decay",
    "ratio": "ratio",
    "accuracy": "accuracy",
}
CAPTION = (
    "Figs. 15 and 16; bands are one standard deviation over seeds. Under every learning rate the ratio falls with "
    "decay, and it does not return after the switch-off (dashed from the dotted line on)."
)


def final_rows(dataset: Dataset, method: Method, names: Sequence[str]) -> list[dict[str, Any]]:
    """One mapping a schedule and decay."""
    return [
        {"optimizer": method.name, "schedule": schedule, "decay": decay}
        | vision.end_columns(dataset.isel(schedule=i, decay=j))
        for i, schedule in enumerate(SCHEDULES)
        for j, decay in enumerate(names)
    ]


def over_epochs(dataset: Dataset, size: Size, method: Method) -> Any:
    """Ratio on the left and accuracy on the right over epochs, a row a schedule."""
    names, styles = labels(size, method), ("-", "-", "--")
    panels = []
    for i, schedule in enumerate(SCHEDULES):
        for variable, y_label in (("ratio", "nuclear / Frobenius norm"), ("accuracy", "accuracy")):
            over = OverSeeds(dataset, variable)
            lines = [
                mean_curve(dataset.time.values, over, (i, j), name, style)
                for j, (name, style) in enumerate(zip(names, styles, strict=True))
            ]
            panels.append(plot.Panel(lines, f"Learning rate: {schedule}", "epoch", y_label, events=[size.end]))
    return plot.line_panels(panels, rf"{method.name}: $W_K^\top W_Q$, mean of all heads; validation", "weight decay")


def _claim(folder: RunFolder, dataset: Dataset, method: Method) -> None:
    """Records the paper's claims on one optimizer."""
    for i, schedule in enumerate(SCHEDULES):
        one, where = dataset.isel(schedule=i), f" ({method.name}, {schedule})"
        vision.falls_with_decay(folder, one.isel(decay=slice(2)), (0.0, method.strength), where)
        ends = one.ratio.isel(time=-1).transpose("decay", "seed").values
        gap = ends[0] - ends[2]
        folder.claim(
            f"after the switch-off the ratio stays below that of no decay to the end, on every seed{where}",
            paper="the effect stays",
            ours=f"below by {mean_text(float(gap.mean()), float(gap.std(ddof=1)))}",
            holds=bool(np.all(gap > 0)),
        )
