"""On which texts does weight decay of LoRA's factors pay? Four variants of the task of `lora`, in one table.

On the second half of the plays the run without decay has the lowest validation loss (`lora`): 500 steps see each
character once or twice, and nothing is overfitted. Here the same small GPT is adapted to a small part of the text, to
the same part for three times as long, and to labels of which a third are wrong. Each asks two questions: whether some
decay ends, or is at its best, below no decay; and whether at equal ratio decay off is better than decay on.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ... import plot
from ...nn.tasks import Decay
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, crossing_columns, interval_columns
from .adapters import Adapter, Corpus, adapt, corpus, run_name, run_styles, trained
from .gpt_start import Halves, Pretraining, pretrained_gpt, read_halves
from .lora import PRETRAINING, SMALL, TINY


@dataclass(frozen=True)
class Task:
    """A variant: the share of the text that is used, how many times as long, and the share of labels that are wrong."""

    name: str
    share: float = 1.0
    longer: int = 1
    wrong: float = 0.0


TASKS = (
    Task("all of the text"),
    Task("2 % of the text", share=0.02),
    Task("2 %, three times as long", share=0.02, longer=3),
    Task("a third of the labels wrong", wrong=1 / 3),
)


@dataclass(frozen=True)
class Size:
    """The size of a preset: constant decays, the first 0, and the shares of the steps after which the last ends."""

    adapter: Adapter
    pretraining: Pretraining
    decays: tuple[float, ...]
    ends: tuple[float, ...]

    def runs(self, steps: int) -> list[Decay]:
        constant = [Decay(strength) for strength in self.decays]
        return constant + [Decay(self.decays[-1], round(end * steps)) for end in self.ends]


# The models of `lora`, from the same pretrained starts.
SIZES = {
    "paper": Size(
        Adapter(SMALL, steps=500, records=25, length=32, batch=16, seeds=5),
        PRETRAINING["paper"],
        (0.0, 0.003, 0.007, 0.015, 0.03),
        (0.1, 0.2, 0.4),
    ),
    "quick": Size(
        Adapter(TINY, steps=120, records=12, length=32, batch=16, seeds=2),
        PRETRAINING["quick"],
        (0.0, 0.015, 0.03),
        (0.3,),
    ),
}


def run(folder: RunFolder, setting: Setting) -> None:
    """Each task in one training of all decays and seeds; the table grows with each."""
    size, text = SIZES[setting.preset], read_halves()
    graph, params = pretrained_gpt(folder, size.adapter.model, size.pretraining, text)
    ends, crossings = [], []
    for number, task in enumerate(TASKS):
        dataset = solve(folder, size, task, text, graph, params, setting.seed)
        folder.save_dataset(f"task{number}", dataset)
        curves = trained(dataset)
        runs = size.runs(size.adapter.steps * task.longer)
        ends.append(end_row(task, runs, curves))
        crossings += crossing_rows(task, runs, curves)
        folder.save_table("tasks", ends)
        folder.save_table("crossings", crossings)
        folder.save_figure(f"task{number}", _figure(task, runs, curves), CAPTION.format(task=task.name))
    for columns in (END_COLUMNS, LOWEST_COLUMNS):
        folder.show("Validation losses, mean over seeds", ends, columns, "tasks")
    for columns in (CROSSING_COLUMNS, LOSS_COLUMNS):
        folder.show("At equal ratio, decay off and decay on", crossings, columns, "crossings")
    for number, row in enumerate(ends):
        _claim_ends(folder, row, f"task{number}")
    for number, task in enumerate(TASKS):
        mine = [row for row in crossings if row["task"] == task.name]
        _claim_crossings(folder, task, size, mine, f"task{number}")


def solve(folder: RunFolder, size: Size, task: Task, text: Halves, graph: Any, params: PyTree, seed: int) -> Dataset:
    """All decays and seeds on one task."""
    adapter = dataclasses.replace(
        size.adapter, steps=size.adapter.steps * task.longer, records=size.adapter.records * task.longer
    )
    store = folder.checkpoints(task.name.replace(" ", "-").replace("%", "percent").replace(",", ""))
    return adapt(adapter, texts_of(task, text, seed), graph, params, size.runs(adapter.steps), seed, **store)


def texts_of(task: Task, text: Halves, seed: int) -> Corpus:
    """The corpus of a task: its share of the text, from the start, and labels drawn anew where they are wrong.

    All tasks have arrays of the same shapes, so that they share one compiled program.
    """
    whole = corpus(text.adapted, text.held_out)
    rng = np.random.default_rng(seed)
    is_wrong = rng.random(whole.labels.shape) < task.wrong
    drawn = rng.integers(0, int(text.adapted.max()) + 1, whole.labels.shape)
    labels = jnp.where(is_wrong, drawn, whole.labels).astype(whole.labels.dtype)
    return dataclasses.replace(whole, labels=labels, end=jnp.asarray(round(task.share * len(text.adapted)) - 1))


# Pairs of tables: one would be wider than a terminal, which cuts it.
END_COLUMNS = {"task": "task", "best": "best decay", "none": "none, end", "best_loss": "best, end"}
LOWEST_COLUMNS = {
    "task": "task",
    "interval": "best - none, 95 %",
    "none_lowest": "none, lowest",
    "best_lowest": "any, lowest",
}
_PAIR = {"task": "task", "run": "switched off", "constant": "constant"}
CROSSING_COLUMNS = _PAIR | {"seeds": "seeds", "at": "at step"}
LOSS_COLUMNS = _PAIR | {"interval": "off - on, 95 %"}
CAPTION = "{task}: ratio and held-out loss; broken: decay switched off. Bands are one standard deviation over seeds."


def end_row(task: Task, runs: list[Decay], curves: Dataset) -> dict[str, Any]:
    """Compares the run without decay with the one of decay whose loss at the end is the lowest, in the mean."""
    losses = OverSeeds(curves, "validation").each
    ends, lowest = losses[..., -1], losses.min(axis=-1)
    best = int(np.argmin(ends[1:].mean(axis=1))) + 1
    return {
        "task": task.name,
        "none": float(ends[0].mean()),
        "best": run_name(runs[best]),
        "best_loss": float(ends[best].mean()),
        **interval_columns("difference", ends[best] - ends[0]),
        "none_lowest": float(lowest[0].mean()),
        "best_lowest": float(lowest[1:].mean(axis=1).min()),
    }


def crossing_rows(task: Task, runs: list[Decay], curves: Dataset) -> list[dict[str, Any]]:
    """Each switched-off run with each smaller constant decay, where they cross."""
    pairs = [
        (i, j)
        for i, run in enumerate(runs)
        for j, smaller in enumerate(runs)
        if not run.is_constant and smaller.is_constant and 0 < smaller.strength < run.strength
    ]
    rows = []
    for i, j in pairs:
        row = {"task": task.name, "run": run_name(runs[i]), "constant": run_name(runs[j])}
        rows.append(row | crossing_columns(curves.isel(decay=i), curves.isel(decay=j), runs[i].off_at, "validation"))
    return rows


def _figure(task: Task, runs: list[Decay], curves: Dataset) -> plot.Figure:
    ts = curves["time"].values
    strengths = sorted({run.strength for run in runs})
    colors = dict(zip(strengths, plot.colors(len(strengths)), strict=True))
    panels = [
        plot.Panel(
            [
                mean_curve(
                    ts,
                    OverSeeds(curves, name),
                    i,
                    run_name(run),
                    style,
                    colors[run.strength],
                )
                for i, (run, style) in enumerate(zip(runs, run_styles(runs), strict=True))
            ],
            title,
            "step",
            label,
        )
        for name, title, label in (
            ("ratio", "LoRA products", "nuclear / Frobenius norm"),
            ("validation", "Held-out text", "cross-entropy"),
        )
    ]
    return plot.line_panels(panels, task.name, "weight decay")


def _claim_ends(folder: RunFolder, row: dict[str, Any], figure: str) -> None:
    folder.claim(
        f"Some weight decay ends with a lower validation loss than none on the task: {row['task']}",
        paper="regularization improves generalization",
        ours=f"{row['best']} ends at {row['best_loss']:.4f}, none at {row['none']:.4f}; best - none {row['interval']}",
        holds=row["difference_high"] < 0,
        key="some-decay-pays",
        see=(figure, "tasks"),
    )


def _claim_crossings(folder: RunFolder, task: Task, size: Size, rows: list[dict[str, Any]], figure: str) -> None:
    crossed = [row for row in rows if row["crossed"] == size.adapter.seeds]
    folder.claim(
        "At equal ratio the run whose decay is off has the lower validation loss: the 95 % interval is below 0, "
        f"on the task: {task.name}",
        paper="a window of opportunity",
        ours=f"{len(crossed)} of {len(rows)} pairs cross on every seed; off - on: "
        f"{', '.join(row['interval'] for row in crossed) or '-'}",
        holds=bool(crossed) and all(row["difference_high"] < 0 for row in crossed),
        key="window",
        see=(figure, "crossings"),
    )
