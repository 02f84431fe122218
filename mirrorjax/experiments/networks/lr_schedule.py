"""W_K^T W_Q of a pretrained ViT under schedules of the learning rate, by AdamW and by SGD (the paper's Figs. 15, 16).

The theory's a is the sum of learning rate times decay, so a schedule changes when the bias moves and how far. Under
each schedule and for a range of strengths the theory predicts that the ratio of the nuclear to the Frobenius norm falls
with decay, and that it stays low after the switch-off. A learning rate that falls to 0 ends the movement of a as a
switch-off does. The start is that of `vit`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ... import plot
from ...data import vit_weights
from ...nn.tasks import Decay, decay_grid
from ...optim import switch_off_adamw, switch_off_sgd
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, mean_text
from . import vision
from .imagenet import find_imagenet
from .vit import PRETRAINING, PRETRAINING_RATE
from .vit_start import on_second_half

CYCLES = 3  # of the cosine that restarts
MOMENTUM = 0.9
SCHEDULES = ("constant", "warm restarts", "warm-up cosine")
CONSTANT, RESTARTS, COSINE = range(3)
LAST = 0.2  # share of the training, at its end, over which a falling learning rate must hold the ratio


class Method(NamedTuple):
    """An optimizer: its name, its largest learning rate, and increasing decays, 0 first, as optax counts them."""

    name: str
    rate: float
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Size:
    """The size of a preset: the training, the epoch after which the strongest decay is switched off, the optimizers."""

    training: vision.Training
    end: float
    methods: tuple[Method, ...]

    def decays(self, method: Method, steps_of_epoch: int) -> list[Decay]:
        """The constant strengths, and the last of them switched off."""
        constant = [Decay(strength) for strength in method.strengths]
        return [*constant, Decay(method.strengths[-1], round(self.end * steps_of_epoch))]


SIZES = {
    "paper": Size(
        vision.Training(vision.SMALL, 24, 64, 3, padding=2),
        12.0,
        (Method("AdamW", 1e-3, (0.0, 0.5, 1.0, 2.0)), Method("SGD", 0.05, (0.0, 0.005, 0.01, 0.02))),
    ),
    "gpu": Size(
        vision.Training(vision.TINY, 30, 128, 3, padding=4, chunk=9),
        15.0,
        (Method("AdamW", 1e-4, (0.0, 0.5, 1.0, 2.0)), Method("SGD", 0.01, (0.0, 1e-3, 2e-3, 4e-3))),
    ),
    # The fewer the steps, the stronger: what counts is strength times the sum of the learning rates.
    "quick": Size(
        vision.Training(vision.COARSE, 2, 32, 2, records=4),
        1.0,
        (Method("AdamW", 3e-3, (0.0, 1.5, 4.5)), Method("SGD", 0.05, (0.0, 0.01, 0.03))),
    ),
}
# The paper's own, with a folder of ImageNet. Its learning rates and strengths are not in the text.
IMAGENET = Size(
    vision.Training(vision.PUBLISHED, 300, 256, 3, chunk=3),
    150.0,
    (Method("AdamW", 1e-4, (0.0, 0.05, 0.1, 0.2)), Method("SGD", 0.01, (0.0, 1e-4, 5e-4, 1e-3))),
)


def run(folder: RunFolder, setting: Setting) -> None:
    """The pretrained ViT of `vit`; at the paper's size also the published one, where there is a folder of ImageNet."""
    size, path = SIZES[setting.preset], find_imagenet() if setting.preset == "paper" else None
    weights = None if path is None else vit_weights()  # first, since the file may be missing
    task = on_second_half(folder, size.training, PRETRAINING[setting.preset], PRETRAINING_RATE)
    reproduce(folder, size, task, setting.seed)
    if path is not None and weights is not None:
        task = vision.on_imagenet(folder, IMAGENET.training, path, weights)
        reproduce(folder, IMAGENET, task, setting.seed, "imagenet_", ", ImageNet")


def reproduce(folder: RunFolder, size: Size, task: vision.Vision, seed: int, prefix: str = "", where: str = "") -> None:
    """Each optimizer in one training of all schedules, decays and seeds, written as soon as it is finished.

    **Arguments:** `prefix`: of the names of files; `where`: what claims and titles add to the method.
    """
    solved, rows = {}, []
    for method in size.methods:
        name = f"{prefix}{method.name.lower()}"
        dataset = solve(size, method, task, vision.seeds_from(seed, size.training.seeds), **folder.checkpoints(name))
        folder.save_dataset(name, dataset)
        rows += final_rows(dataset, method, labels(size, method))
        folder.save_table(f"{prefix}lr_schedule", rows)
        solved[method.name] = dataset
    for columns in COLUMNS:
        folder.show(f"At the end, mean ± std over seeds{where}", rows, columns, f"{prefix}lr_schedule")
    for number, method in enumerate(size.methods, start=15):
        name, dataset = f"{prefix}fig{number}_{method.name.lower()}", solved[method.name]
        folder.save_figure(name, over_epochs(dataset, size, method), CAPTION)
        see = (name, f"{prefix}lr_schedule")
        _claim_each(folder, dataset, method, where, see)
        _claim_across(folder, dataset, method, where, see)


def solve(size: Size, method: Method, task: vision.Vision, seeds: Sequence[int], **store: Any) -> Dataset:
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
    dataset = task.train(lane, {"schedule": np.arange(len(rates))} | decays, **store)
    return dataset.assign_coords(schedule=list(SCHEDULES))


def schedules(rate: float, steps: int) -> list[Callable]:
    """The three learning rates as functions of the step, in the order of `SCHEDULES`."""
    length = -(-steps // CYCLES)
    restarts = optax.join_schedules(
        [optax.cosine_decay_schedule(rate, length)] * CYCLES, [length * cycle for cycle in range(1, CYCLES)]
    )
    return [vision.constant_rate(rate, steps), restarts, vision.warm_up_cosine(rate, steps)]


def labels(size: Size, method: Method) -> list[str]:
    """The decays of an optimizer in tables and legends."""
    constant = [f"{strength:g}" for strength in method.strengths]
    return [*constant, f"{method.strengths[-1]:g} until epoch {size.end:g}"]


_WHICH = {"optimizer": "method", "schedule": "learning rate", "decay": "decay"}
# Two tables: one would be wider than a terminal, which cuts it.
COLUMNS = (
    _WHICH | {"ratio": "ratio", "head_ratio": "of heads"},
    _WHICH | {"alignment": "alignment", "accuracy": "accuracy"},
)
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
    names = labels(size, method)
    panels = []
    for i, schedule in enumerate(SCHEDULES):
        for variable, y_label in (("ratio", "nuclear / Frobenius norm"), ("accuracy", "accuracy")):
            over = OverSeeds(dataset, variable)
            lines = [
                mean_curve(dataset.time.values, over, (i, j), name, "--" if j == len(names) - 1 else "-")
                for j, name in enumerate(names)
            ]
            panels.append(plot.Panel(lines, f"Learning rate: {schedule}", "epoch", y_label, events=[size.end]))
    title = rf"{method.name}: $W_K^\top W_Q$, norms averaged over layers; validation"
    return plot.line_panels(panels, title, "weight decay")


def _claim_each(folder: RunFolder, dataset: Dataset, method: Method, where: str, see: Sequence[str]) -> None:
    """Records the paper's claims on one optimizer under each schedule."""
    for i, schedule in enumerate(SCHEDULES):
        one, also = dataset.isel(schedule=i), f" ({method.name}, {schedule}{where})"
        vision.falls_with_decay(folder, one.isel(decay=slice(len(method.strengths))), method.strengths, also, see)
        ends = one.ratio.isel(time=-1).transpose("decay", "seed").values
        gap = ends[0] - ends[-1]
        folder.claim(
            f"After the switch-off the ratio stays below that of no decay to the end, on every seed{also}",
            paper="the effect stays",
            ours=f"below by {mean_text(float(gap.mean()), float(gap.std(ddof=1)))}",
            holds=bool(np.all(gap > 0)),
            key="stays",
            see=see,
        )


def _claim_across(folder: RunFolder, dataset: Dataset, method: Method, where: str, see: Sequence[str]) -> None:
    """Records the paper's claims that compare schedules (Appendix G)."""
    also, strengths = f" ({method.name}{where})", method.strengths
    accuracy = dataset.accuracy.isel(time=-1).mean("seed").transpose("schedule", "decay").values
    gains = (accuracy[RESTARTS] - accuracy[CONSTANT])[: len(strengths)]
    folder.claim(
        f"The accuracy at the end is higher with warm restarts than at a constant learning rate, for every decay{also}",
        paper="rises with restarts",
        ours=", ".join(f"{100 * gain:+.1f} points at {each:g}" for gain, each in zip(gains, strengths, strict=True)),
        holds=bool(np.all(gains > 0)),
        key="restarts-rise",
        see=see,
    )
    held, going = (ratio_fall(dataset, schedule, len(strengths) - 1) for schedule in (COSINE, CONSTANT))
    folder.claim(
        f"A learning rate that falls to 0 holds the ratio under the strongest decay, as a switch-off does: over the "
        f"last fifth it moves by less than a quarter of what it moves at a constant rate{also}",
        paper="a falling learning rate acts like switching off",
        ours=f"{held:.4f} against {going:.4f}",
        holds=abs(held) < abs(going) / 4,
        key="falling-rate-holds",
        see=see,
    )


def ratio_fall(dataset: Dataset, schedule: int, decay: int) -> float:
    """How far the mean ratio of a run falls over the last part of the training."""
    curve = dataset.ratio.isel(schedule=schedule, decay=decay).mean("seed")
    times = dataset.time.values
    return float(np.interp((1 - LAST) * times[-1], times, curve.values) - curve.values[-1])
