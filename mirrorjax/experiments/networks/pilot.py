"""PILoT (Jacobs and Burkholz, Mask in the Mirror): sparse networks from x = m w, beside magnitude pruning and spred.

PILoT writes every kernel as x = m w and moves the bias from L2 to L1 by weight decay that ends; after that the smallest
|x| are pruned, and the others are tuned. Here it has two schedules, the published rule, in which the strength follows
the training accuracy, and one computed beforehand from the width A that the bias ends with. Beside it stand magnitude
pruning of the network of x itself, at once and in rounds, and spred, x = m w under constant decay. All train for as
many epochs on the same batches. Each searches as many settings, the same learning rates and as many strengths, and
takes for each sparsity the one that is best on held-out training images. Dense training is a network that trains on
without pruning.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optax
from flax import nnx

from ... import plot
from ...nn.training import KEPT
from ...nn.vit import ViT, ViTConfig
from ...runs.dataset import Dataset
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds
from .pruning import SMALL, Perceptron, Program, Runs, Size, adapting, constant, load, narrowing

DENSE = Program("plain", False, constant, (0.0, 0.01, 0.03, 0.1))
SPRED = Program("spred", True, constant, (0.0, 0.003, 0.01, 0.03))
FIXED = Program("fixed", True, narrowing, (0.15, 0.05, 0.01, 0.002))  # widths
RULE = Program("rule", True, adapting, (0.001, 0.003, 0.01, 0.03))
PROGRAMS = (DENSE, SPRED, FIXED, RULE)


@dataclass(frozen=True)
class Method:
    """The networks of a program, pruned in so many rounds."""

    name: str
    program: Program
    rounds: int = 1


ROUNDS = 4
ONE_SHOT, ITERATIVE = Method("magnitude, one-shot", DENSE), Method("magnitude, iterative", DENSE, ROUNDS)
CONSTANT = Method("spred", SPRED)
PUBLISHED, SCHEDULED = Method("PILoT, published rule", RULE), Method("PILoT, width given", FIXED)
METHODS = (ONE_SHOT, ITERATIVE, CONSTANT, PUBLISHED, SCHEDULED, Method("PILoT, width given, iterative", FIXED, ROUNDS))
SHADES = ("#fdae6b", "#e6550d", "#74c476", "#9ecae1", "#2171b5", "#08306b")
COLORS = {method.name: shade for method, shade in zip(METHODS, SHADES, strict=True)}
MOMENTS = ("mean", "deviation")
SHOWN = 0.95  # curves over training have the setting that is best at this sparsity
# Top-1 accuracy of ResNet-50 on ImageNet in %, by sparsity: not to be reached here, to be set beside.
PUBLISHED_ACCURACY = {80.0: (75.62, 72.64), 90.0: (74.73, 71.84), 95.0: (71.30, 69.47)}  # PILoT, spred


def small_perceptron(rngs: nnx.Rngs) -> nnx.Module:
    """A perceptron for digits of 8 x 8, of 17,226 numbers."""
    return Perceptron((64, 128, 64, 10), rngs=rngs)


def perceptron(rngs: nnx.Rngs) -> nnx.Module:
    """A perceptron for colour images of 8 x 8, of 33,610 numbers."""
    return Perceptron((192, 128, 64, 10), rngs=rngs)


def vit(rngs: nnx.Rngs) -> nnx.Module:
    """A ViT for images of 32 x 32, of 5.4 million numbers."""
    return ViT(ViTConfig.named("cifar"), rngs=rngs)


def momentum() -> optax.GradientTransformation:
    """The direction of SGD with momentum 0.9, which the authors use."""
    return optax.trace(0.9)


RATES = (0.1, 0.2, 0.4)
SIZES = {
    "paper": Size("CIFAR-10", 8, perceptron, momentum, 40, 25, 20, RATES, seeds=5, record=5, held_out=1000),
    "gpu": Size(
        "CIFAR-10", 32, vit, optax.scale_by_adam, 30, 20, 20, (3e-4, 1e-3), 3, 5, 2, batch=128, held_out=1000, chunk=4
    ),
    # The rate that most searches over `RATES` choose.
    "quick": Size("digits", 8, small_perceptron, momentum, 30, 18, 12, (0.2,), seeds=5, record=3),
}


def run(folder: RunFolder, setting: Setting) -> None:
    """Trains each program, prunes by each method, each written when it is solved; then table, figures and claims."""
    size = SIZES[setting.preset]
    splits = load(size, setting.seed)
    found: dict[Method, Outcome] = {}
    for program in PROGRAMS:
        runs = Runs(size, program, splits, setting.seed, folder.checkpoints)
        training = without_weights(runs.training)
        folder.save_dataset(f"training_{program.name}", training)
        for text in runs.warnings:
            folder.console.print(f"{program.name}: {text}", soft_wrap=True, markup=False)
        for method in METHODS:
            if method.program == program:
                tuning = without_weights(runs.tuned(method.rounds))
                folder.save_dataset(f"tuning_{program.name}_{method.rounds}", tuning)
                found[method] = Outcome(training, tuning)
    rows = [row for method in METHODS for row in table_rows(method, found[method])]
    folder.save_table("pilot", rows)
    folder.show(f"Accuracy in % of {len(splits.test[1])} test images, {size.seeds} seeds", rows, COLUMNS, "pilot")
    settings = len(size.rates) * size.strengths
    folder.console.print(NOTE.format(settings, size.held_out, 50 / len(splits.test[1]) ** 0.5), soft_wrap=True)
    folder.save_figure("accuracy", accuracy_figure(rows), ACCURACY_CAPTION)
    folder.save_figure("training", training_figure(found, size), TRAINING_CAPTION)
    _claim_accuracy(folder, rows)
    _claim_bias(folder, found, size)


def without_weights(dataset: Dataset) -> Dataset:
    """Drops the weights of all lanes, which are much larger than the measurements."""
    return dataset.drop_vars([name for name in dataset if str(name).startswith(KEPT)])


@dataclass(frozen=True)
class Outcome:
    """A method's training, by rate, strength, seed and time; and its last round of tuning, also by sparsity."""

    training: Dataset
    tuning: Dataset

    def setting(self, sparsity: float) -> dict[str, Any]:
        """The rate and strength of the highest accuracy on the images held out: at the end, in the mean over seeds."""
        held = self.tuning.held_out.sel(sparsity=sparsity).isel(time=-1).mean("seed")
        best = held.argmax(["rate", "strength"])
        return {name: held[name].values[int(place)] for name, place in best.items()}

    def curves(self, variable: str, sparsity: float = 0.0) -> tuple[OverSeeds, OverSeeds]:
        """Over training, and over the last round at a sparsity, at the setting of the curves."""
        setting = self.setting(SHOWN)
        training, tuning = self.training.sel(setting), self.tuning.sel(sparsity=sparsity, **setting)
        return OverSeeds(training, variable), OverSeeds(tuning, variable)

    @property
    def epochs(self) -> np.ndarray:
        """The times of both curves, one after the other."""
        return np.concatenate([self.training.time.values, self.tuning.time.values])


COLUMNS = {
    "method": "method",
    "sparsity": "pruned",
    "rate": "rate",
    "strength": "decay",
    "pruned": "just after",
    "tuned": "at the end",
}
NOTE = (
    "rate, decay (its strength, or the width): the best of {} settings by {} training images held out; just after: "
    "after the last round of pruning; ±: standard deviation over seeds, which all see the same test images (these "
    "alone are worth a standard error of up to {:.1f} %); pruned 0: trains on without pruning. ResNet-50 on ImageNet, "
    "as published, at 80, 90, 95 %: PILoT 75.62, 74.73, 71.30; spred 72.64, 71.84, 69.47."
)


def table_rows(method: Method, outcome: Outcome) -> list[dict[str, Any]]:
    """One mapping a sparsity, with the columns of pilot.csv."""
    rows = []
    for sparsity in outcome.tuning.sparsity.values:
        setting = outcome.setting(sparsity)
        training, tuning = outcome.training.sel(setting), outcome.tuning.sel(sparsity=sparsity, **setting)
        before, after = (OverSeeds(100 * dataset, "test") for dataset in (training[["test"]], tuning[["test"]]))
        statuses = [*training.status.values, *tuning.status.values]
        rows.append(
            {
                "method": method.name,
                "sparsity": round(100 * float(sparsity), 6),
                **{name: float(value) for name, value in setting.items()},
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
    """PILoT beside the others; more than a standard deviation of the difference counts as a difference."""
    table = {(row["method"], row["sparsity"]): row for row in rows}
    sparsities = sorted({row["sparsity"] for row in rows if row["sparsity"] > 0})
    for rival in (ONE_SHOT, ITERATIVE, CONSTANT):
        for sparsity in sparsities:
            ours, other = table[PUBLISHED.name, sparsity], table[rival.name, sparsity]
            paper = PUBLISHED_ACCURACY.get(sparsity) if rival is CONSTANT else None
            folder.claim(
                f"at {sparsity:g} % sparsity {PUBLISHED.name}, is more accurate in the end than {rival.name}",
                paper="{} beside {} %, ResNet-50 on ImageNet".format(*paper) if paper else "gains",
                ours=f"{ours['tuned']} beside {other['tuned']} %",
                holds=_gap(ours, other) > 1,
                key="rule-beats-rival",
                see=("accuracy", "pilot"),
            )
    gaps = [_gap(table[SCHEDULED.name, sparsity], table[PUBLISHED.name, sparsity]) for sparsity in sparsities]
    folder.claim(
        f"a width given before training is as accurate as the published rule at {_listed(sparsities)} %",
        paper="-",
        ours=f"{_listed(gaps)} standard deviations apart",
        holds=bool(np.all(np.abs(gaps) <= 1)),
        key="width-as-rule",
        see=("accuracy", "pilot"),
    )
    lost = {
        method: np.array([_lost(table[method.name, sparsity]) for sparsity in sparsities])
        for method in (PUBLISHED, SCHEDULED, ONE_SHOT)
    }
    for method in (PUBLISHED, SCHEDULED):
        folder.claim(
            f"pruning at once to {_listed(sparsities)} % costs {method.name}, less accuracy before tuning than "
            "it costs networks of x itself",
            paper="-",
            ours=f"{_listed(lost[method])} beside {_listed(lost[ONE_SHOT])} %",
            holds=bool(np.all(lost[method] < lost[ONE_SHOT])),
            key="pruning-costs-less",
            see=("accuracy", "pilot"),
        )


def _gap(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How much more accurate a row is in the end, in standard deviations of the difference."""
    return (row["tuned_mean"] - other["tuned_mean"]) / max(math.hypot(row["tuned_std"], other["tuned_std"]), 1e-9)


def _lost(row: Mapping[str, Any]) -> float:
    return row["trained_mean"] - row["pruned_mean"]


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def _claim_bias(folder: RunFolder, found: Mapping[Method, Outcome], size: Size) -> None:
    """Records the claims on the weights before anything is pruned."""
    outcome = found[SCHEDULED]
    small = 100 * outcome.training.small.sel(rate=outcome.setting(SHOWN)["rate"]).isel(time=-1).mean("seed").values
    folder.claim(
        "the narrower the width that decay ends with, the more entries of x = m w are small without pruning",
        paper="sparsity grows",
        ours=f"{_listed(small)} %",
        holds=bool(np.all(np.diff(small) > 0)),
        key="narrower-sparser",
        see=("training",),
    )
    free = found[CONSTANT].training.sel(strength=SPRED.strengths[-size.strengths]).ratio.isel(time=-1).mean("seed")
    for method in (PUBLISHED, SCHEDULED):
        before, after = found[method].curves("ratio")
        without = float(free.sel(rate=found[method].setting(SHOWN)["rate"]))
        off, end = before.mean[-1], after.mean[-1]
        folder.claim(
            f"|x|_1 / |x|_2 of {method.name}, falls while decay is on",
            paper="L2 to L1",
            ours=f"from {before.mean[0]:.0f} to {off:.0f}",
            holds=bool(off < before.mean[0]),
            key="ratio-falls",
            see=("training",),
        )
        folder.claim(
            f"|x|_1 / |x|_2 of {method.name}, stays low without decay: nearer to its value when decay ends than to "
            f"{'x = m w without decay' if size.strengths == len(SPRED.strengths) else 'x = m w under the least decay'}",
            paper="stays",
            ours=f"{end:.0f} in the end, {off:.0f} before, {without:.0f} without decay",
            holds=bool(abs(end - off) < abs(end - without)),
            key="stays",
            see=("training",),
        )


ACCURACY_CAPTION = (
    "Left: the accuracy just after the last round of pruning, before tuning. Right: the accuracy after tuning. Bands "
    "are one standard deviation over seeds."
)
TRAINING_CAPTION = (
    "Under decay |x|_1 / |x|_2 of x = m w falls and small entries appear (up to "
    f"{SMALL:g} of their kernel's largest); both stay after decay ends. Decay of x itself does so less. Curves of "
    "methods with several rounds show the last."
)


def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Accuracy against sparsity, just after pruning and at the end; dashed: dense training."""
    sparse = [row for row in rows if row["sparsity"] > 0]
    sparsities = sorted({row["sparsity"] for row in sparse})
    dense = next(row["tuned_mean"] for row in rows if row["method"] == ONE_SHOT.name and row["sparsity"] == 0)

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
        plot.Panel(lines(name), title, "entries pruned, %", "test accuracy, %", level=dense, marks=sparsities)
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
    return plot.line_panels(panels, "Dotted: the end of the given schedule, and the epoch of pruning")
