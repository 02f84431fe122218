"""LoRA on a GPT-2 (Fig. 4, Table 5): weight decay lowers nuclear over Frobenius norm of the products A B for good.

`quick` and `paper` adapt a small GPT, pretrained on the characters of the first half of the plays, to the second.
`gpu` adapts the published GPT-2 to all of them, and so does `paper`, with GPT-2 xl as well, where the data folder has
their weights. SGD with momentum 0.9, a constant learning rate, no dropout, 500 steps. A run whose decay is switched off
keeps its ratio, and the ratio of a smaller constant decay, still falling, crosses it. There two schedules of decay have
led to one ratio, so the validation losses of the two runs can be compared.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, PyTree

from ... import data, plot
from ...nn.gpt2 import GPT2Config
from ...nn.tasks import Decay
from ...nn.tokens import gpt2_tokens
from ...nn.weights import load_gpt2
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, crossing_columns
from .adapters import Adapter, Corpus, adapt, corpus, run_name, run_styles, trained
from .gpt_start import HELD_OUT, Pretraining, pretrained_gpt, read_halves
from .spectra import RATIOS


@dataclass(frozen=True)
class Size:
    """The size of an adaptation.

    `pretraining`: of the small GPT, None for published ones; `decays`: constant strengths, as optax counts them;
    `switched`: strengths that end, and after which share of the steps.
    """

    adapter: Adapter
    pretraining: Pretraining | None = None
    decays: tuple[float, ...] = (0.0, 0.003, 0.007, 0.015)
    switched: tuple[tuple[float, float], ...] = ((0.007, 0.25), (0.015, 0.12))

    @property
    def runs(self) -> list[Decay]:
        """Constant decays by strength, then those that are switched off."""
        constant = [Decay(strength) for strength in self.decays]
        return constant + [Decay(strength, round(share * self.adapter.steps)) for strength, share in self.switched]


SMALL = GPT2Config(vocabulary=65, context=64, layers=3, width=48, heads=4)
TINY = GPT2Config(vocabulary=65, context=32, layers=2, width=32, heads=4)
PRETRAINING = {"paper": Pretraining(500, 64, 16), "quick": Pretraining(500, 32, 16)}
SIZES = {
    "paper": Size(Adapter(SMALL, steps=500, records=50, length=64, batch=16, seeds=5), PRETRAINING["paper"]),
    "gpu": Size(
        Adapter(GPT2Config(dtype=jnp.bfloat16), steps=500, records=25, length=256, batch=8, alpha=16.0),
    ),
    "quick": Size(
        Adapter(TINY, steps=400, records=20, length=32, batch=16),
        PRETRAINING["quick"],
        (0.0, 0.004, 0.009),
        ((0.009, 0.25),),
    ),
}
# Rank and alpha are those that most codes of LoRA begin with; the paper's are not in its text.
PUBLISHED = Size(Adapter(GPT2Config(), steps=500, records=50, length=512, batch=8, alpha=16.0, seeds=5))
GPT2, XL = "gpt2", "gpt2-xl"
CROSSING = "near step 400 of 500"  # as reviews of the paper report it


class Start(NamedTuple):
    """A model to adapt, by name: its size, its graph and parameters, the text, and what names of its files end with."""

    name: str
    size: Size
    graph: Any
    params: PyTree
    texts: Corpus
    suffix: str = ""


def run(folder: RunFolder, setting: Setting) -> None:
    """Adapt each model in every lane, report; Table 5 has a row a model and crossing."""
    table: list[dict[str, Any]] = []
    for start in starts(folder, setting.preset):
        size, suffix = start.size, start.suffix
        store = folder.checkpoints(f"lora{suffix}")
        dataset = adapt(size.adapter, start.texts, start.graph, start.params, size.runs, setting.seed, **store)
        folder.save_dataset(f"lora{suffix}", dataset)
        _report_runs(folder, start, dataset)
        table += crossing_rows(start, dataset)
        folder.save_table("table5", table)
        _report_crossings(folder, start, [row for row in table if row["model"] == start.name])
        folder.save_figure(f"lora{suffix}", _figure(size, dataset), CAPTION)


def starts(folder: RunFolder, preset: str) -> Iterator[Start]:
    """The models of a preset, each loaded or pretrained when the one before is done."""
    size = SIZES[preset]
    if size.pretraining is None:
        yield _published(GPT2, data.gpt2_weights(), size)
        return
    text = read_halves()
    graph, params = pretrained_gpt(folder, size.adapter.model, size.pretraining, text)
    yield Start("small GPT", size, graph, params, corpus(text.adapted, text.held_out))
    if preset == "paper":
        found = {name: find_weights(name) for name in (GPT2, XL)}
        yield from (_published(name, path, PUBLISHED, f"_{name}") for name, path in found.items() if path is not None)


def _published(name: str, path: Path, size: Size, suffix: str = "") -> Start:
    model = dataclasses.replace(GPT2Config.named(name), dtype=size.adapter.model.dtype)
    size = dataclasses.replace(size, adapter=dataclasses.replace(size.adapter, model=model))
    return Start(name, size, *nnx.split(load_gpt2(path, model), nnx.Param), _published_text(), suffix)


def find_weights(name: str) -> Path | None:
    """`NAME/model.safetensors` in the folder that `MIRRORJAX_DATA` names, or None: nobody downloads 6 GB unasked."""
    named = os.environ.get(data.FOLDER)
    path = Path(named) / name / "model.safetensors" if named else None
    return path if path is not None and path.is_file() else None


def _published_text() -> Corpus:
    """The plays in GPT-2's tokens; their end is held out."""
    text = data.tiny_shakespeare().characters.tobytes().decode()
    tokens = np.asarray(gpt2_tokens(data.gpt2_ranks()).encode_ordinary(text), np.uint16)
    end = round((1 - HELD_OUT) * tokens.size)
    return corpus(tokens[:end], tokens[end:])


def _report_runs(folder: RunFolder, start: Start, dataset: Dataset) -> None:
    """The ratios and the validation loss at the end, and the best of it, over seeds."""
    size, curves, table = start.size, trained(dataset), f"runs{start.suffix}"
    best = curves.assign(best=curves["validation"].min("time"))
    ends = {name: OverSeeds(curves, name) for name in (*RATIOS, "alignment", "validation")}
    lowest = OverSeeds(best, "best")
    rows = []
    for i, run in enumerate(size.runs):
        row = {"weight_decay": run.strength, "off_at": run.off_at if math.isfinite(run.off_at) else None}
        row |= {"run": run_name(run)}
        for name, over in ends.items():
            row |= over.columns(name, (i, -1))
        rows.append(row | lowest.columns("lowest_validation", i))
    folder.save_table(table, rows)
    adapter = size.adapter
    title = (
        f"{start.name}, rank {adapter.rank}, alpha {adapter.alpha:g}, at step {adapter.steps}, {adapter.seeds} seeds "
        "(mean ± standard deviation)"
    )
    losses = {"alignment": "alignment", "validation": "validation loss", "lowest_validation": "its lowest"}
    for columns in (RATIOS, losses):  # one table would be wider than a terminal, which cuts it
        folder.show(title, rows, {"run": "weight decay"} | columns, table)
    _claim_ratios(folder, start, ends["ratio"].each[..., -1])
    _claim_losses(folder, start, ends["validation"].each[..., -1])


def _claim_ratios(folder: RunFolder, start: Start, ratios: Float[np.ndarray, "decay seed"]) -> None:
    size, seeds = start.size, start.size.adapter.seeds
    count = len(size.decays)
    see = (f"lora{start.suffix}", f"runs{start.suffix}")
    falls = np.all(np.diff(ratios[:count], axis=0) < 0, axis=0)
    means = ratios.mean(1)
    folder.claim(
        f"The larger the constant weight decay, the lower the ratio of nuclear to Frobenius norm ({start.name})",
        paper="falls with weight decay",
        ours=" > ".join(f"{mean:.3f}" for mean in means[:count]) + f"; in {falls.sum()} of {seeds} seeds",
        holds=bool(np.all(np.diff(means[:count]) < 0)),
        key="ratio-falls",
        see=see,
    )
    stays = ratios[count:] < ratios[:1]
    folder.claim(
        "The ratio of a run whose decay was switched off is at the end below the ratio of a run without decay "
        f"({start.name})",
        paper="stays",
        ours=f"{', '.join(f'{mean:.3f}' for mean in means[count:])} against {means[0]:.3f}; in {stays.sum()} of "
        f"{stays.size} runs",
        holds=bool(np.all(stays)),
        key="stays",
        see=see,
    )


def _claim_losses(folder: RunFolder, start: Start, losses: Float[np.ndarray, "decay seed"]) -> None:
    """Claims that decay pays: some run with decay, constant or switched off, ends below the run without."""
    means = losses.mean(1)
    best = int(np.argmin(means[1:])) + 1
    folder.claim(
        f"Some run with weight decay ends with a lower validation loss than the run without ({start.name})",
        paper="regularization improves generalization",
        ours=f"the best, {run_name(start.size.runs[best])}, ends at {means[best]:.4f}, none at {means[0]:.4f}",
        holds=bool(means[best] < means[0]),
        key="some-decay-pays",
        see=(f"lora{start.suffix}", f"runs{start.suffix}"),
    )


def crossing_rows(start: Start, dataset: Dataset) -> list[dict[str, Any]]:
    """Table 5: each switched-off run with each smaller constant decay, one mapping a pair, with their crossing."""
    curves = trained(dataset)
    of = {run: curves.isel(decay=i) for i, run in enumerate(start.size.runs)}
    constant, switched = ([run for run in of if run.is_constant is wanted] for wanted in (True, False))
    return [
        {"model": start.name, "run": run_name(run), "constant": run_name(smaller)}
        | crossing_columns(of[run], of[smaller], run.off_at, "validation")
        for run in switched
        for smaller in constant
        if 0 < smaller.strength < run.strength
    ]


def _report_crossings(folder: RunFolder, start: Start, rows: list[dict[str, Any]]) -> None:
    """The window of opportunity: validation losses at one ratio, reached with decay off and with decay on."""
    pair = {"run": "switched off", "constant": "constant"}
    heads = pair | {"seeds": "seeds", "at": "at step", "ratio": "ratio"}
    folder.show(f"{start.name}: crossings of a switched-off run with a smaller constant decay", rows, heads, "table5")
    heads = pair | {"off": "off", "on": "on", "difference": "off - on", "interval": "95 %"}
    title = f"{start.name}: validation losses at these crossings, with decay off and with decay on"
    folder.show(title, rows, heads, "table5")
    see = (f"lora{start.suffix}", "table5")
    crossed = [row for row in rows if row["crossed"] == start.size.adapter.seeds]
    switched, crossing = ({row["run"] for row in chosen} for chosen in (rows, crossed))
    folder.claim(
        f"After its switch-off a run crosses the curve of a smaller constant decay, at the same ratio ({start.name})",
        paper=f"crosses, {CROSSING}",
        ours=f"{len(crossing)} of {len(switched)} runs cross one in every seed, at step "
        f"{', '.join(row['at'] for row in crossed) or '-'} of {start.size.adapter.steps}",
        holds=crossing == switched,
        key="crosses",
        see=see,
    )
    folder.claim(
        "Where the ratios cross, the run whose decay is off has the lower validation loss: the 95 % interval over "
        f"seeds is below 0 ({start.name})",
        paper="a window of opportunity",
        ours=f"off - on: {', '.join(row['interval'] for row in crossed) or 'no crossing'}",
        holds=bool(crossed) and all(row["difference_high"] < 0 for row in crossed),
        key="window",
        see=see,
    )


CAPTION = (
    "Left: nuclear over Frobenius norm, both averaged over the LoRA products; solid: constant weight decay, dashed: "
    "switched off at the dotted line. After it the ratio stays constant, while the ratios of smaller constant decays "
    "still fall and cross it. Right: the loss of the held-out texts. Bands are one standard deviation over seeds."
)


def _figure(size: Size, dataset: Dataset) -> plot.Figure:
    curves = trained(dataset)
    ts = curves["time"].values
    colors = plot.colors(len(size.decays))
    of = dict(zip(size.decays, colors, strict=True))
    panels = [
        plot.Panel(
            [
                mean_curve(ts, OverSeeds(curves, name), i, run_name(run), style, of[run.strength])
                for i, (run, style) in enumerate(zip(size.runs, run_styles(size.runs), strict=True))
            ],
            title,
            "step",
            label,
            events=[float(run.off_at) for run in size.runs if not run.is_constant],
        )
        for name, title, label in (
            ("ratio", "LoRA products", "nuclear / Frobenius norm"),
            ("validation", "Held-out text", "cross-entropy"),
        )
    ]
    return plot.line_panels(panels, "Weight decay moves the bias of LoRA to low rank, and it stays", "weight decay")
