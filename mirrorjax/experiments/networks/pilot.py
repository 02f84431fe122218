"""PILoT (Jacobs and Burkholz, Mask in the Mirror): sparse networks from x = m w, beside magnitude pruning.

Every kernel is written as x = m w. Weight decay that is switched off narrows the width A of its bias, which is then L1
for all |x| above A; after that the smallest |x| are pruned, and the others are tuned. Three kinds of network are
compared with it: the network of x itself, pruned at the same time, without decay and with the same decay on x, where
the bias is L2; and x = m w without decay. All train for as many epochs by the same optimizer on the same batches, each
at the learning rate that is best on held-out training images. Dense training is a network that trains on without
pruning.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from ... import plot
from ...nn.train import KEPT
from ...nn.vit import ViT, ViTConfig
from ...runs.dataset import Dataset
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds
from .pruning import SMALL, Method, Perceptron, Size, load, solve

WEAK, STRONG = 0.05, 0.005  # widths A: kernels are drawn with entries of about 0.1
PLAIN = (
    Method("magnitude", False),
    Method("magnitude, weak decay", False, WEAK),
    Method("magnitude, strong decay", False, STRONG),
)
FACTORED = (
    Method("x = m w, no decay", True),
    Method("PILoT, weak decay", True, WEAK),
    Method("PILoT, strong decay", True, STRONG),
)
PROGRAMS = {"plain": PLAIN, "factored": FACTORED}
MAGNITUDE, NO_DECAY, PILOT = PLAIN[0], FACTORED[0], FACTORED[-1]
SHADES = ("#fdae6b", "#e6550d", "#8c2d04", "#9ecae1", "#4292c6", "#08306b")
COLORS = {method.name: shade for method, shade in zip((*PLAIN, *FACTORED), SHADES, strict=True)}
MOMENTS = ("mean", "deviation")
SHOWN = 0.9  # curves over training have the learning rate that is best at this sparsity


def perceptron(rngs: nnx.Rngs) -> nnx.Module:
    """A perceptron for images of 8 x 8, of 33,610 numbers."""
    return Perceptron((192, 128, 64, 10), rngs=rngs)


def vit(rngs: nnx.Rngs) -> nnx.Module:
    """A ViT for images of 32 x 32, of 5.4 million numbers."""
    return ViT(ViTConfig.named("cifar"), rngs=rngs)


VIT_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SIZES = {
    "paper": Size(vit, 32, epochs=100, decaying=60, tuning=100, rates=VIT_RATES, seeds=5, record=5),
    "gpu": Size(vit, 32, epochs=30, decaying=20, tuning=30, rates=VIT_RATES[1:], seeds=3, record=5),
    "quick": Size(perceptron, 8, epochs=12, decaying=8, tuning=12, rates=(5e-4, 2e-3, 7e-3, 2e-2), seeds=3, record=2),
}


def run(folder: RunFolder, setting: Setting) -> None:
    """The kernels as they are, then x = m w, each written when it is solved; then table, figures and claims."""
    size = SIZES[setting.preset]
    splits = load(size, setting.seed)
    found: dict[Method, Outcome] = {}
    for name, methods in PROGRAMS.items():
        training, tuning = (without_weights(dataset) for dataset in solve(size, methods, splits, setting.seed))
        folder.save_dataset(f"training_{name}", training)
        folder.save_dataset(f"tuning_{name}", tuning)
        found |= {each: Outcome(training.isel(method=i), tuning.isel(method=i)) for i, each in enumerate(methods)}
    rows = [row for method, outcome in found.items() for row in table_rows(method, outcome)]
    folder.save_table("pilot", rows)
    folder.show(f"Accuracy in % of {len(splits.test[1])} test images, {size.seeds} seeds", rows, COLUMNS, "pilot")
    folder.console.print(NOTE.format(size.held_out, 50 / len(splits.test[1]) ** 0.5), soft_wrap=True)
    folder.save_figure("accuracy", accuracy_figure(rows), ACCURACY_CAPTION)
    folder.save_figure("training", training_figure(found, size), TRAINING_CAPTION)
    _claim_accuracy(folder, rows)
    _claim_bias(folder, found, size)


def without_weights(dataset: Dataset) -> Dataset:
    """Drops the weights of all lanes, which are much larger than the measurements."""
    return dataset.drop_vars([name for name in dataset if str(name).startswith(KEPT)])


@dataclass(frozen=True)
class Outcome:
    """A method's training, by rate, seed and time; and tuning, also by sparsity."""

    training: Dataset
    tuning: Dataset

    def rate(self, sparsity: float) -> Any:
        """The learning rate of the highest accuracy on the images held out: at the end, in the mean over seeds."""
        held = self.tuning.held_out.sel(sparsity=sparsity).isel(time=-1).mean("seed")
        return held.rate.values[int(held.argmax("rate"))]

    def curves(self, variable: str, sparsity: float = 0.0) -> tuple[OverSeeds, OverSeeds]:
        """Over training, and over what follows at a sparsity, at the rate of the curves."""
        rate = self.rate(SHOWN)
        training, tuning = self.training.sel(rate=rate), self.tuning.sel(rate=rate, sparsity=sparsity)
        return OverSeeds(training, variable), OverSeeds(tuning, variable)

    @property
    def epochs(self) -> np.ndarray:
        """The times of both curves, one after the other."""
        return np.concatenate([self.training.time.values, self.tuning.time.values])


COLUMNS = {
    "method": "method",
    "sparsity": "pruned %",
    "rate": "rate",
    "epochs": "epochs",
    "pruned": "just after",
    "tuned": "at the end",
}
NOTE = (
    "rate: the best one by {} training images held out; ±: standard deviation over seeds, which all see the same test "
    "images (these alone are worth a standard error of up to {:.1f} %); pruned 0 %: trains on without pruning"
)


def table_rows(method: Method, outcome: Outcome) -> list[dict[str, Any]]:
    """One mapping a sparsity, with the columns of pilot.csv."""
    rows = []
    for sparsity in outcome.tuning.sparsity.values:
        rate = outcome.rate(sparsity)
        training, tuning = outcome.training.sel(rate=rate), outcome.tuning.sel(rate=rate, sparsity=sparsity)
        before, after = (OverSeeds(100 * dataset, "test") for dataset in (training[["test"]], tuning[["test"]]))
        statuses = [*training.status.values, *tuning.status.values]
        rows.append(
            {
                "method": method.name,
                "sparsity": round(100 * float(sparsity), 6),
                "rate": float(rate),
                "epochs": float(tuning.time[-1]),
                **before.columns("trained", -1),
                **after.columns("pruned", 0),
                **after.columns("tuned", -1),
                "zero": 100 * float(tuning.zero.isel(time=-1).min()),
                "status": next((status for status in statuses if status != "successful"), "successful"),
            }
        )
    return rows


def _claim_accuracy(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Strong decay beside the others; more than a standard deviation of the difference counts as a difference."""
    table = {(row["method"], row["sparsity"]): row for row in rows}
    sparsities = sorted({row["sparsity"] for row in rows if row["sparsity"] > 0})
    rivals = {
        "magnitude pruning": (PLAIN[:1], "gains, above all at high sparsity"),
        "magnitude pruning after decay of x, the better strength": (PLAIN[1:], "-"),
        "x = m w without decay": (FACTORED[:1], "-"),
    }
    for text, (methods, paper) in rivals.items():
        for sparsity in sparsities:
            ours = table[PILOT.name, sparsity]
            other = max((table[method.name, sparsity] for method in methods), key=lambda row: row["tuned_mean"])
            gap, deviation = ours["tuned_mean"] - other["tuned_mean"], math.hypot(ours["tuned_std"], other["tuned_std"])
            folder.claim(
                f"at {sparsity:g} % sparsity PILoT (strong decay) is more accurate than {text}",
                paper=paper,
                ours=f"{ours['tuned']} beside {other['tuned']} %",
                holds=gap > deviation,
            )
    lost = np.array([[_lost(table[method.name, sparsity]) for sparsity in sparsities] for method in (PILOT, *PLAIN)])
    least = lost[1:].min(axis=0)
    folder.claim(
        f"pruning to {_listed(sparsities)} % costs PILoT less accuracy, before tuning, than networks of x itself",
        paper="-",
        ours=f"{_listed(lost[0])} beside at least {_listed(least)} %",
        holds=bool(np.all(lost[0] < least)),
    )


def _lost(row: Mapping[str, Any]) -> float:
    return row["trained_mean"] - row["pruned_mean"]


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def _claim_bias(folder: RunFolder, found: Mapping[Method, Outcome], size: Size) -> None:
    """Records the claims on the weights before anything is pruned."""
    rate = found[PILOT].rate(SHOWN)
    small = [100 * float(found[each].training.small.sel(rate=rate).isel(time=-1).mean()) for each in FACTORED]
    folder.claim(
        f"stronger decay makes more entries of x = m w small without pruning (learning rate {rate:g})",
        paper="sparsity grows",
        ours=f"{_listed(small)} %",
        holds=bool(np.all(np.diff(small) > 0)),
    )
    (before, after), (_, free) = found[PILOT].curves("ratio"), found[NO_DECAY].curves("ratio")
    start, off, end = before.mean[0], before.mean[size.decaying // size.record], after.mean[-1]
    folder.claim(
        "|x|_1 / |x|_2 of x = m w falls while decay is on",
        paper="L2 to L1",
        ours=f"from {start:.0f} to {off:.0f}",
        holds=bool(off < start),
    )
    folder.claim(
        "|x|_1 / |x|_2 stays low after the switch-off: nearer to its value there than to x = m w without decay",
        paper="stays",
        ours=f"{end:.0f} in the end, without decay {free.mean[-1]:.0f}",
        holds=bool(abs(end - off) < abs(end - free.mean[-1])),
    )


ACCURACY_CAPTION = (
    "Left: the accuracy that a method loses by pruning, before tuning. Right: the accuracy after tuning. Bands are one "
    "standard deviation over seeds."
)
TRAINING_CAPTION = (
    "Under decay |x|_1 / |x|_2 of x = m w falls and small entries appear (up to "
    f"{SMALL:g} of their kernel's largest); both stay after the switch-off. The same decay of x itself has neither "
    "effect."
)


def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy against sparsity, just after pruning and at the end; dashed: dense training."""
    sparse = [row for row in rows if row["sparsity"] > 0]
    dense = next(row["tuned_mean"] for row in rows if row["method"] == MAGNITUDE.name and row["sparsity"] == 0)

    def lines(name: str) -> list[plot.Line]:
        found = []
        for method in dict.fromkeys(row["method"] for row in sparse):
            chosen = [row for row in sparse if row["method"] == method]
            x, mean, deviation = (
                np.array([row[key] for row in chosen]) for key in ("sparsity", f"{name}_mean", f"{name}_std")
            )
            found.append(plot.Line(x, mean, method, "o-", COLORS[method], spread=deviation))
        return found

    panels = [
        plot.Panel(lines(name), title, "entries pruned, %", "test accuracy, %", level=dense)
        for name, title in (("pruned", "Just after pruning"), ("tuned", "After tuning"))
    ]
    return plot.line_panels(panels, "Pruned to a sparsity; dashed: dense training, as many epochs")


def training_figure(found: Mapping[Method, Outcome], size: Size) -> Any:
    """Draws the measurements over all epochs, of networks pruned to one sparsity and of networks not pruned."""

    def panel(variable: str, sparsity: float, scale: float, title: str, label: str) -> plot.Panel:
        lines = []
        for method, outcome in found.items():
            parts = outcome.curves(variable, sparsity)
            mean, deviation = (scale * np.concatenate([getattr(part, key) for part in parts]) for key in MOMENTS)
            lines.append(plot.Line(outcome.epochs, mean, method.name, "-", COLORS[method.name], spread=deviation))
        return plot.Panel(lines, title, "epochs", label, events=[float(size.decaying), float(size.epochs)])

    panels = [
        panel("test", SHOWN, 100.0, f"Pruned to {100 * SHOWN:g} %", "test accuracy, %"),
        panel("loss", SHOWN, 1.0, f"Pruned to {100 * SHOWN:g} %", "training loss"),
        panel("ratio", 0.0, 1.0, "Not pruned", r"$|x|_1\ /\ |x|_2$ of all kernels"),
        panel("small", 0.0, 100.0, "Not pruned", "small entries, %"),
    ]
    return plot.line_panels(panels, "Dotted: the end of decay, and the epoch of pruning")
