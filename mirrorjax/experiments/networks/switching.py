"""Constant decays of a ViT, and a strong one that is switched off: training, tables, figures and claims.

`vit` and `vit-scratch` share it. Every kernel decays, by AdamW. Decay moves the bias of W_K^T W_Q from the Frobenius to
the nuclear norm, so the ratio of the two norms falls with the strength. After a strong decay is switched off its ratio
rises above the ratio of a weaker decay that goes on; there the two runs are compared at one ratio.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ... import plot
from ...nn.tasks import Decay, decay_grid
from ...optim import switch_off_adamw
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, crossing_columns, mean_text
from .vision import (
    END_COLUMNS,
    KERNELS,
    Training,
    Vision,
    aligned_by_decay,
    end_columns,
    falls_with_decay,
    seeds_from,
)

Rates = Callable[[float, int], optax.Schedule]  # the largest learning rate and the steps -> a schedule


class Published(NamedTuple):
    """A row of the paper's Table 3: the ViT-tiny on ImageNet, 300 epochs, decay off at the epoch `off_at`.

    `at`: the epoch of the crossing, None where there is none; `ratio`: there; `on`, `off`: accuracies.
    """

    off_at: float
    at: float | None
    ratio: float | None
    on: float
    off: float


TABLE_3 = (
    Published(50, 104, 6.9, 0.707, 0.724),
    Published(100, 195, 6.5, 0.702, 0.726),
    Published(150, 270, 6.4, 0.711, 0.734),
    Published(200, None, None, 0.703, 0.725),
)
EPOCHS = 300  # of Table 3


@dataclass(frozen=True)
class Size:
    """The size of a run: the training, its learning rate, the decays, and when the strongest ends.

    `rate`, `rates`: the largest learning rate and its schedule; `strengths`: constant decays, increasing, as optax
    counts them; the last is also switched off after each of `ends`, in epochs, and then compared with the last but one;
    `paper`: the rows of Table 3 that stand beside, one an end, or none.
    """

    training: Training
    rate: float
    rates: Rates
    strengths: tuple[float, ...]
    ends: tuple[float, ...]
    paper: tuple[Published, ...] = ()

    @property
    def constant(self) -> list[Decay]:
        return [Decay(strength) for strength in self.strengths]

    def switched_off(self, steps_of_epoch: int) -> list[Decay]:
        return [Decay(self.strengths[-1], round(end * steps_of_epoch)) for end in self.ends]

    @property
    def pair(self) -> tuple[float, float]:
        """The decay that goes on and the stronger one that is switched off, which are compared."""
        return self.strengths[-2], self.strengths[-1]


class Names(NamedTuple):
    """The names of a run's files, and what is added to its titles and claims."""

    dataset: str
    crossings: str
    ends: str
    ratio: str
    layers: str
    where: str = ""


def reproduce(folder: RunFolder, size: Size, task: Vision, seed: int, names: Names) -> None:
    """All decays and seeds in one training; then the tables, the figures, the claims."""
    dataset = solve(size, task, seeds_from(seed, size.training.seeds), **folder.checkpoints(names.dataset))
    folder.save_dataset(names.dataset, dataset)
    decays = [*size.constant, *size.switched_off(task.steps_of_epoch)]
    labels = [label(decay, task.steps_of_epoch) for decay in decays]
    crossings = crossing_rows(dataset, size)
    folder.save_table(names.crossings, crossings)
    weaker, strong = size.pair
    title = f"Crossings of the ratio of decay {strong:g}, switched off, with that of decay {weaker:g}{names.where}"
    for columns in (CROSSING_COLUMNS, ACCURACY_COLUMNS):
        folder.show(title, crossings, columns, names.crossings)
    if size.paper:
        title = f"The paper's Table 3 (ImageNet, {EPOCHS} epochs) beside{names.where}"
        folder.show(title, crossings, PAPER_COLUMNS, names.crossings)
    finals = final_rows(dataset, labels)
    folder.save_table(names.ends, finals)
    for columns in END_COLUMNS:
        folder.show(f"At the end, mean ± standard deviation over seeds{names.where}", finals, columns, names.ends)
    folder.save_figure(names.ratio, over_epochs(dataset, size, labels), OVER_EPOCHS_CAPTION)
    folder.save_figure(names.layers, by_layer(dataset, size), BY_LAYER_CAPTION)
    constant = dataset.isel(decay=slice(len(size.strengths)))
    falls_with_decay(folder, constant, size.strengths, names.where, (names.ratio, names.layers, names.ends))
    aligned_by_decay(folder, constant, size.strengths, names.where, (names.ends,))
    _claim_crossings(folder, crossings, size, names)
    _claim_ends(folder, dataset, size, names)


def solve(size: Size, task: Vision, seeds: Sequence[int], **store: Any) -> Dataset:
    """Every decay and seed: dimensions decay, seed, time (in epochs), and layer."""

    def lane(
        weight_decay: Float[Array, ""], off_at: Float[Array, ""], seed: Int[Array, ""]
    ) -> tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]:
        rate = size.rates(size.rate, task.steps)
        optimizer = switch_off_adamw(rate, weight_decay=weight_decay, mask=KERNELS, off_at=off_at)
        return optimizer, *task.start(seed)

    return task.train(lane, decay_grid([*size.constant, *size.switched_off(task.steps_of_epoch)], seeds), **store)


def label(decay: Decay, steps_of_epoch: int) -> str:
    """A decay in the legend."""
    if decay.is_constant:
        return f"{decay.strength:g}"
    return f"{decay.strength:g} until epoch {decay.off_at / steps_of_epoch:g}"


CROSSING_COLUMNS = {"off_at": "off at", "seeds": "seeds", "at": "at epoch", "ratio": "ratio"}
ACCURACY_COLUMNS = {
    "off_at": "off at",
    "on": "accuracy, on",
    "off": "accuracy, off",
    "interval": "off - on, 95 %",
}
PAPER_COLUMNS = {
    "off_at": "off at",
    "at": "crossing",
    "paper_off_at": "paper: off at",
    "paper_at": "crossing",
    "paper_ratio": "ratio",
    "paper_on": "accuracy, on",
    "paper_off": "accuracy, off",
}
OVER_EPOCHS_CAPTION = (
    "Figs. 4 and 14; bands are one standard deviation over seeds. The ratio ends lower for stronger decay. When a "
    "strong decay is switched off (dashed), its ratio stays low, and the ratio of a weaker decay may fall below it."
)
BY_LAYER_CAPTION = "Fig. 14. The ratio of each layer."
SWITCHED_COLORS = ("#fdae6b", "#f16913", "#d94801", "#7f2704")


def crossing_rows(dataset: Dataset, size: Size) -> list[dict[str, Any]]:
    """Table 3: one mapping a switch-off time, over the seeds that cross, with the paper's row where there is one."""
    count = len(size.strengths)
    on = dataset.isel(decay=count - 2)
    rows = [
        {"off_at": end} | crossing_columns(dataset.isel(decay=count + i), on, end, "accuracy")
        for i, end in enumerate(size.ends)
    ]
    beside = [{f"paper_{name}": value for name, value in row._asdict().items()} for row in size.paper]
    return [row | paper for row, paper in zip(rows, beside or [{}] * len(rows), strict=True)]


def final_rows(dataset: Dataset, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Table 4: one mapping a decay."""
    return [{"decay": decay} | end_columns(dataset.isel(decay=i)) for i, decay in enumerate(labels)]


def over_epochs(dataset: Dataset, size: Size, labels: Sequence[str]) -> Any:
    """Ratio and accuracy over epochs, of every decay."""
    count = len(size.strengths)
    panels = []
    for variable, title, y_label in (
        ("ratio", r"$W_K^\top W_Q$, norms averaged over layers", "nuclear norm / Frobenius norm"),
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
    panel = plot.Panel(lines, r"$W_K^\top W_Q$ of each layer", "weight decay", "nuclear norm / Frobenius norm")
    return plot.line_panels([panel], "Each layer at the end", "layer")


def _claim_crossings(folder: RunFolder, rows: Sequence[Mapping[str, Any]], size: Size, names: Names) -> None:
    """Records the paper's claims on Table 3."""
    where, see = names.where, (names.ratio, names.crossings)
    weaker, strong = size.pair
    expected = [row for row in rows if "paper_at" not in row or row["paper_at"] is not None]
    counts = [f"{row['seeds']} when off at {row['off_at']:g}" for row in rows]
    folder.claim(
        f"The ratio of decay {strong:g}, switched off, is crossed by that of decay {weaker:g}, on every seed{where}",
        paper="at epochs 104, 195, 270 of 300 and, when off at 200, never" if size.paper else "crosses",
        ours=", ".join(counts),
        holds=all(row["crossed"] == size.training.seeds for row in expected),
        key="crosses",
        see=see,
    )
    crossed = [row for row in rows if row["crossed"] > 1]  # one seed has no interval
    intervals = ", ".join(f"{row['interval']} when off at {row['off_at']:g}" for row in crossed) or "no crossing"
    folder.claim(
        f"At equal ratio, decay off is more accurate than decay on: the 95 % interval over seeds is above 0{where}",
        paper="+1.7, +2.4, +2.3 points",
        ours=intervals,
        holds=bool(crossed) and all(row["difference_low"] > 0 for row in crossed),
        key="off-more-accurate",
        see=see,
    )
    means = ", ".join(f"{100 * row['difference_mean']:.1f}" for row in crossed) or "no crossing"
    folder.claim(
        f"At equal ratio, decay off is more accurate than decay on by more than 1 %, in the mean over seeds{where}",
        paper="> 1 %",
        ours=f"{means} points",
        holds=bool(crossed) and all(row["difference_mean"] > 0.01 for row in crossed),
        key="off-gains-1-percent",
        see=see,
    )


def _claim_ends(folder: RunFolder, dataset: Dataset, size: Size, names: Names) -> None:
    """Records that a decay that ended has a lasting effect (Theorem 3.10), and that ending it improves."""
    where, see = names.where, (names.ratio, names.ends)
    ends, count = dataset.isel(time=-1), len(size.strengths)
    switched = range(count, count + len(size.ends))
    gaps = [(ends.ratio.isel(decay=0) - ends.ratio.isel(decay=i)).values for i in switched]
    folder.claim(
        f"After the switch-off the ratio stays below that of no decay until the end, on every seed{where}",
        paper="stays",
        ours=f"below by {', '.join(_over_seeds(gap) for gap in gaps)}",
        holds=bool(np.all(np.asarray(gaps) > 0)),
        key="stays",
        see=see,
    )
    gains = [(ends.accuracy.isel(decay=i) - ends.accuracy.isel(decay=count - 1)).values for i in switched]
    folder.claim(
        f"Switching decay {size.strengths[-1]:g} off improves the accuracy at the end, in the mean, at any time{where}",
        paper="in all cases switching off improves",
        ours=f"by {', '.join(_over_seeds(gain) for gain in gains)}",
        holds=all(float(gain.mean()) > 0 for gain in gains),
        key="switching-off-improves",
        see=see,
    )


def _over_seeds(values: Float[np.ndarray, " seeds"]) -> str:
    return mean_text(float(values.mean()), float(values.std(ddof=1)))
