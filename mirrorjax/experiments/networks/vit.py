"""W_K^T W_Q of a ViT under weight decay that is switched off (the paper's Figs. 4 and 14, Tables 3 and 4).

CIFAR-10 from scratch by AdamW, with a warm-up and a cosine of the learning rate; every kernel decays. Decay
moves the bias of these products from the Frobenius to the nuclear norm, so the ratio of the two norms falls with the
strength. After a strong decay is switched off, its ratio rises above the ratio of a weaker decay that goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ... import plot
from ...data import vit_weights
from ...nn.tasks import Decay, decay_grid
from ...optim import switch_off_adamw
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, crossing_columns, mean_text
from .imagenet import find_imagenet
from .vision import (
    KERNELS,
    PUBLISHED,
    SMALL,
    TINY,
    Training,
    Vision,
    end_columns,
    falls_with_decay,
    on_cifar10,
    on_imagenet,
    seeds_from,
    warm_up_cosine,
)


@dataclass(frozen=True)
class Size:
    """The size of a preset: the training, its largest learning rate, the decays, and when the strongest ends.

    `strengths`: constant decays, increasing, as optax counts them; the last is also switched off after each of `ends`,
    in epochs, and then compared with the last but one.
    """

    training: Training
    rate: float
    strengths: tuple[float, ...]
    ends: tuple[float, ...]

    @property
    def constant(self) -> list[Decay]:
        return [Decay(strength) for strength in self.strengths]

    def switched_off(self, steps_of_epoch: int) -> list[Decay]:
        return [Decay(self.strengths[-1], round(end * steps_of_epoch)) for end in self.ends]


SIZES = {
    "paper": Size(
        Training(TINY, 300, 128, 3, padding=4, chunk=6), 1e-3, (0.0, 0.05, 0.1, 0.2), (50.0, 100.0, 150.0, 200.0)
    ),
    "gpu": Size(Training(TINY, 30, 128, 3, padding=4, chunk=6), 1e-3, (0.0, 0.1, 0.2, 0.4), (5.0, 10.0, 15.0, 20.0)),
    # The fewer the steps, the stronger: what counts is strength times the sum of the learning rates. The four times lie
    # in the first third of training: a decay of 1.5 that ends later leaves a ratio that decay 1 does not come down to.
    "quick": Size(Training(SMALL, 9, 64, 3, records=2), 4e-3, (0.0, 0.5, 1.0, 1.5), (1.75, 2.25, 2.75, 3.25)),
}


# Fine-tuning of the published ViT, with a folder of ImageNet.
IMAGENET = Size(
    Training(PUBLISHED, 10, 256, 3, records=4, chunk=3), 1e-4, (0.0, 0.5, 1.0, 2.0), (5 / 3, 10 / 3, 5.0, 20 / 3)
)


def run(folder: RunFolder, setting: Setting) -> None:
    """CIFAR-10 from scratch; at the paper's size also the published ViT on ImageNet, where there is a folder of it."""
    size, path = SIZES[setting.preset], find_imagenet()
    if setting.preset != "paper" or path is None:
        reproduce(folder, size, on_cifar10(folder, size.training), setting.seed)
        return
    task = on_imagenet(folder, IMAGENET.training, path, vit_weights())  # first, since a file may be missing
    reproduce(folder, size, on_cifar10(folder, size.training), setting.seed)
    reproduce(folder, IMAGENET, task, setting.seed, "ImageNet")


def reproduce(folder: RunFolder, size: Size, task: Vision, seed: int, images: str = "") -> None:
    """All decays and seeds in one training; then the tables, the figures, the claims.

    **Arguments:** `images`: their name, where they are not those the run is about.
    """
    prefix, where = (f"{images.lower()}_", f" ({images})") if images else ("", "")
    dataset = solve(size, task, seeds_from(seed, size.training.seeds))
    folder.save_dataset(f"{prefix}vit", dataset)
    decays = [*size.constant, *size.switched_off(task.steps_of_epoch)]
    labels = [label(decay, task.steps_of_epoch) for decay in decays]
    crossings = crossing_rows(dataset, size)
    folder.save_table(f"{prefix}table3", crossings)
    folder.show(_title(size) + where, crossings, CROSSING_COLUMNS, f"{prefix}table3")
    finals = final_rows(dataset, labels)
    folder.save_table(f"{prefix}table4", finals)
    folder.show(f"At the end, mean ± standard deviation over seeds{where}", finals, FINAL_COLUMNS, f"{prefix}table4")
    folder.save_figure(f"{prefix}fig4_ratio", over_epochs(dataset, size, labels), OVER_EPOCHS_CAPTION)
    folder.save_figure(f"{prefix}fig14_layers", by_layer(dataset, size), BY_LAYER_CAPTION)
    count = len(size.strengths)
    falls_with_decay(folder, dataset.isel(decay=slice(count)), size.strengths, where)
    _claim_crossings(folder, crossings, size, where)
    _claim_effect_stays(folder, dataset, size, where)


def solve(size: Size, task: Vision, seeds: Sequence[int]) -> Dataset:
    """Every decay and seed: dimensions decay, seed, time (in epochs), and layer."""

    def lane(
        weight_decay: Float[Array, ""], off_at: Float[Array, ""], seed: Int[Array, ""]
    ) -> tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]:
        rate = warm_up_cosine(size.rate, task.steps)
        optimizer = switch_off_adamw(rate, weight_decay=weight_decay, mask=KERNELS, off_at=off_at)
        return optimizer, *task.start(seed)

    return task.train(lane, decay_grid([*size.constant, *size.switched_off(task.steps_of_epoch)], seeds))


def label(decay: Decay, steps_of_epoch: int) -> str:
    """A decay in the legend."""
    if decay.is_constant:
        return f"{decay.strength:g}"
    return f"{decay.strength:g} until epoch {decay.off_at / steps_of_epoch:g}"


CROSSING_COLUMNS = {
    "off_at": "off at",
    "seeds": "seeds",
    "at": "at epoch",
    "ratio": "ratio",
    "on": "accuracy, on",
    "off": "accuracy, off",
}
FINAL_COLUMNS = {"decay": "decay", "ratio": "ratio", "accuracy": "accuracy", "loss": "loss"}
OVER_EPOCHS_CAPTION = (
    "Figs. 4 and 14; bands are one standard deviation over seeds. The ratio ends lower for stronger decay. When a "
    "strong decay is switched off (dashed), its ratio stays low, and the ratio of a weaker decay may fall below it."
)
BY_LAYER_CAPTION = "Fig. 14. The ratio of each layer."
SWITCHED_COLORS = ("#fdae6b", "#f16913", "#d94801", "#7f2704")


def _title(size: Size) -> str:
    weaker, strong = size.strengths[-2:]
    return f"Crossings of the ratio of decay {strong:g}, switched off, with that of decay {weaker:g}"


def crossing_rows(dataset: Dataset, size: Size) -> list[dict[str, Any]]:
    """Table 3: one mapping a switch-off time; means and deviations over the seeds that cross."""
    count = len(size.strengths)
    on = dataset.isel(decay=count - 2)
    return [
        {"off_at": end} | crossing_columns(dataset.isel(decay=count + i), on, end, "accuracy")
        for i, end in enumerate(size.ends)
    ]


def final_rows(dataset: Dataset, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Table 4: one mapping a decay."""
    return [{"decay": decay} | end_columns(dataset.isel(decay=i)) for i, decay in enumerate(labels)]


def over_epochs(dataset: Dataset, size: Size, labels: Sequence[str]) -> Any:
    """Ratio and accuracy over epochs, of every decay."""
    count = len(size.strengths)
    panels = []
    for variable, title, y_label in (
        ("ratio", r"$W_K^\top W_Q$, mean of all heads", "nuclear norm / Frobenius norm"),
        ("accuracy", "Validation", "accuracy"),
    ):
        over = OverSeeds(dataset, variable)
        lines = [mean_curve(dataset.time.values, over, i, labels[i]) for i in range(count)]
        lines += [
            mean_curve(dataset.time.values, over, count + i, labels[count + i], "--", color)
            for i, color in zip(range(len(size.ends)), SWITCHED_COLORS, strict=False)
        ]
        panels.append(plot.Panel(lines, title, "epoch", y_label, events=size.ends))
    return plot.line_panels(panels, "Weight decay, constant and switched off (dotted lines)", "weight decay")


def by_layer(dataset: Dataset, size: Size) -> Any:
    """The ratio of each layer at the end against the strength of a constant decay."""
    constant = dataset.isel(time=-1, decay=slice(len(size.strengths)))
    over = OverSeeds(constant, "layer_ratio")
    strengths = np.asarray(size.strengths)
    lines = [
        plot.Line(strengths, over.mean[:, layer], str(layer + 1), "o-", spread=over.deviation[:, layer])
        for layer in range(over.mean.shape[1])
    ]
    panel = plot.Panel(lines, r"$W_K^\top W_Q$, mean of heads", "weight decay", "nuclear norm / Frobenius norm")
    return plot.line_panels([panel], "Each layer at the end", "layer")


def _claim_crossings(folder: RunFolder, rows: Sequence[Mapping[str, Any]], size: Size, where: str) -> None:
    """Records the paper's claims on Table 3."""
    weaker, strong = size.strengths[-2:]
    counts = [f"{row['seeds']} when off at {row['off_at']:g}" for row in rows]
    folder.claim(
        f"decay {strong:g}, switched off, crosses the ratio of decay {weaker:g}, for every time and seed{where}",
        paper="crosses",
        ours=", ".join(counts),
        holds=all(row["crossed"] == size.training.seeds for row in rows),
    )
    crossed = [row for row in rows if row["crossed"]]
    differences = [f"{row['difference']} when off at {row['off_at']:g}" for row in crossed]
    folder.claim(
        f"where the ratios cross, decay off is at least as accurate as decay on, in the mean over seeds{where}",
        paper="off >= on",
        ours="off - on: " + ", ".join(differences) if crossed else "no crossing",
        holds=bool(crossed) and all(row["difference_mean"] >= 0 for row in crossed),
    )


def _claim_effect_stays(folder: RunFolder, dataset: Dataset, size: Size, where: str) -> None:
    """Records the claim of Theorem 3.10 that a decay that ended has a lasting effect."""
    ends = dataset.ratio.isel(time=-1)
    free = ends.isel(decay=0)
    gaps = [(free - ends.isel(decay=len(size.strengths) + i)).values for i in range(len(size.ends))]
    folder.claim(
        f"after the switch-off the ratio stays below that of no decay until the end, on every seed{where}",
        paper="stays",
        ours="below by " + ", ".join(f"{mean_text(float(gap.mean()), float(gap.std(ddof=1)))}" for gap in gaps),
        holds=bool(np.all(np.asarray(gaps) > 0)),
    )
