"""LoRA on a GPT-2 (Fig. 4, Table 5): weight decay lowers nuclear over Frobenius norm of the products A B for good.

`quick` trains a small GPT on the characters of the first half of the plays and adapts it to the second; `gpu` and
`paper` adapt the published GPT-2 to all of them. SGD with momentum 0.9, a constant learning rate, no dropout. A run
whose decay is switched off keeps its ratio, and the ratio of a smaller constant decay, still falling, crosses it. There
two schedules of decay have led to one ratio, so the validation losses of the two runs can be compared.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray, PyTree

from ... import data, optim, plot
from ...nn import Frozen, LowRank, Reparameterization, product_spectrum, reparameterize
from ...nn.gpt2 import GPT2, GPT2Config
from ...nn.tasks import CrossEntropy, Decay, Labelled, Network, Windows, decay_grid
from ...nn.tokens import gpt2_tokens
from ...nn.training import train, weights_of
from ...nn.weights import load_gpt2
from ...runs.dataset import Dataset
from ..core.curves import mean_curve
from ..core.experiment import Setting
from ..core.run import RunFolder
from ..core.statistics import OverSeeds, crossing_columns

PROJECTIONS = ("*/attn/query/kernel", "*/attn/key/kernel", "*/attn/value/kernel")
MOMENTUM = 0.9
HELD_OUT = 0.1  # of the text, its end


@dataclass(frozen=True)
class Size:
    """The size of a preset.

    `steps`, `records`: of the adaptation; `length`, `batch`: of texts; `pretraining`: steps before it, 0 for GPT-2's
    own weights; `validation`: batches of the held-out part; `decays`: constant strengths, as optax counts them;
    `switched`: strengths that end, and after which share of the steps.
    """

    model: GPT2Config
    steps: int
    records: int
    length: int
    batch: int
    pretraining: int = 0
    validation: int = 8
    rank: int = 8
    step_size: float = 0.1
    decays: tuple[float, ...] = (0.0, 0.003, 0.007, 0.015)
    switched: tuple[tuple[float, float], ...] = ((0.007, 0.25), (0.015, 0.12))
    seeds: int = 3

    @property
    def runs(self) -> list[Decay]:
        """Constant decays by strength, then those that are switched off."""
        constant = [Decay(strength) for strength in self.decays]
        return constant + [Decay(strength, round(share * self.steps)) for strength, share in self.switched]


SMALL = GPT2Config(vocabulary=65, context=64, layers=3, width=48, heads=4)
SIZES = {
    "paper": Size(GPT2Config(), steps=5000, records=50, length=512, batch=8),
    "gpu": Size(GPT2Config(dtype=jnp.bfloat16), steps=1000, records=25, length=256, batch=8),
    "quick": Size(SMALL, pretraining=500, steps=480, records=24, length=64, batch=16),
}


@dataclass(frozen=True)
class Corpus:
    """Tokens to pretrain on, to adapt to, and to be validated on: the end of what is adapted to."""

    before: Integer[Array, " n"]
    adapted: Integer[Array, " m"]
    held_out: Integer[Array, " k"]


class Pretraining(eqx.Module):
    """The one lane of the small GPT: AdamW, warm-up and cosine."""

    weights: PyTree
    steps: int = eqx.field(static=True)  # static: schedules of optax count in Python numbers

    def __call__(self, seed: Int[Array, ""]) -> tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]:
        step_size = optax.warmup_cosine_decay_schedule(0.0, 3e-3, self.steps // 10, self.steps)
        return optax.adamw(step_size), self.weights, jax.random.key(seed)


class Adaptation(eqx.Module):
    """A lane: A drawn anew for each seed, B zero; SGD with momentum whose decay is switched off."""

    params: PyTree
    rank: int = eqx.field(static=True)  # static: a shape
    step_size: Float[Array, ""]

    def __call__(self, weight_decay, off_at, seed):
        key = jax.random.key(seed)
        optimizer = optim.switch_off_sgd(self.step_size, MOMENTUM, weight_decay=weight_decay, off_at=off_at)
        return optimizer, self.split(key)[1], key

    def split(self, key: PRNGKeyArray) -> tuple[Reparameterization, PyTree]:
        """The attention projections with A B added; everything else as it is."""
        rules = {pattern: LowRank(self.rank) for pattern in PROJECTIONS}
        return reparameterize(self.params, rules | {"*": Frozen()}, key=key)


class Recorder(eqx.Module):
    """Records nuclear over Frobenius norm of every A B, and the loss of the held-out texts."""

    loss: CrossEntropy
    texts: (
        Labelled  # (parts, batch, length), one part after the other: logits of all would be gigabytes at GPT-2's size
    )

    def __call__(self, weights: PyTree) -> dict[str, Array]:
        factors = self.loss.network.split.factors(weights).values()
        ratios = [product_spectrum(*pair).ratio for pair in factors]
        losses = jax.lax.map(lambda texts: self.loss(weights, texts), self.texts)
        return {"ratio": jnp.stack(ratios), "validation": jnp.mean(losses)}


def run(folder: RunFolder, setting: Setting) -> None:
    """Pretrain or load, adapt every lane, report."""
    size = SIZES[setting.preset]
    corpus = read_corpus(size)
    graph, params = pretrained(folder, size, corpus, setting.seed)
    dataset = adapt(size, corpus, graph, params, setting.seed)
    folder.save_dataset("lora", dataset)
    _report_runs(folder, size, dataset)
    _report_crossings(folder, size, dataset)
    folder.save_figure("lora", _figure(size, dataset), CAPTION)


def read_corpus(size: Size) -> Corpus:
    """The plays: characters, and the first half to pretrain on, or GPT-2's tokens and all to adapt to."""
    characters = data.tiny_shakespeare().characters
    if size.pretraining:
        tokens = np.unique(characters, return_inverse=True)[1].astype(np.uint8)
        before, rest = np.array_split(tokens, 2)
    else:
        text = characters.tobytes().decode()
        rest = np.asarray(gpt2_tokens(data.gpt2_ranks()).encode_ordinary(text), np.uint16)
        before = rest[:0]
    end = round((1 - HELD_OUT) * rest.size)
    return Corpus(jnp.asarray(before), jnp.asarray(rest[:end]), jnp.asarray(rest[end:]))


def pretrained(folder: RunFolder, size: Size, corpus: Corpus, seed: int) -> tuple[Any, PyTree]:
    """The model to adapt, as its graph and its parameters."""
    if not size.pretraining:
        return nnx.split(load_gpt2(data.gpt2_weights(), size.model), nnx.Param)
    graph, params = nnx.split(GPT2(size.model, rngs=nnx.Rngs(seed)), nnx.Param)
    split, weights = reparameterize(params, {})
    dataset = train(
        Pretraining(weights, size.pretraining),
        {"seed": [seed]},
        loss=CrossEntropy(Network(graph, split)),
        batch=Windows(corpus.before, size.length, 2 * size.batch),
        steps=size.pretraining,
        every=size.pretraining // 10,
        keep=True,
    )
    before, after = (float(dataset["loss"].values[0, at]) for at in (1, -1))
    message = f"pretrained on {corpus.before.size} characters: loss {before:.3f} at a tenth, {after:.3f} at the end"
    folder.console.print(message, highlight=False)
    return graph, split.merge(weights_of(dataset, weights, seed=seed))


class Parts(NamedTuple):
    """The arguments of `train`: lane, loss, batch and metrics."""

    lane: Adaptation
    loss: CrossEntropy
    batch: Windows
    metrics: Recorder


def assemble(size: Size, corpus: Corpus, graph: Any, params: PyTree) -> Parts:
    """The adaptation of a model to the text; pure, so that its shapes can be known without the model's numbers."""
    lane = Adaptation(params, size.rank, jnp.asarray(size.step_size, jnp.float32))
    loss = CrossEntropy(Network(graph, lane.split(jax.random.key(0))[0]))
    batch = Windows(corpus.adapted, size.length, size.batch)
    return Parts(lane, loss, batch, Recorder(loss, held_out_texts(corpus.held_out, size)))


def adapt(size: Size, corpus: Corpus, graph: Any, params: PyTree, seed: int) -> Dataset:
    """All lanes, with `ratio` (decay, seed, time, tensor) and `validation` (decay, seed, time)."""
    parts = assemble(size, corpus, graph, params)
    dataset = train(
        grid=decay_grid(size.runs, range(seed, seed + size.seeds)),
        steps=size.steps,
        every=size.steps // size.records,
        chunk=1,  # one lane's step fills a CPU's cores, and at GPT-2's size a GPU
        **parts._asdict(),
    )
    names = [tensor.name for tensor in parts.loss.network.split.tensors if tensor.rule == "LowRank"]
    return dataset.rename(ratio_0="tensor").assign_coords(tensor=names)


def held_out_texts(tokens: Integer[Array, " k"], size: Size) -> Labelled:
    """Texts at equal distances, the same for every lane and record, in parts as large as a batch."""
    starts = np.linspace(0, tokens.shape[0] - size.length - 1, size.validation * size.batch).astype(int)
    places = starts.reshape(size.validation, size.batch, 1) + np.arange(size.length + 1)
    texts = tokens[places].astype(int)
    return texts[..., :-1], texts[..., 1:]


def _averaged(dataset: Dataset) -> Dataset:
    """The dataset with the mean of the ratio over tensors; without the first record, where A B = 0 has no ratio."""
    return dataset.assign(ratio=dataset["ratio"].mean("tensor")).isel(time=slice(1, None))


def _name(run: Decay) -> str:
    return f"{run.strength:g}" if run.is_constant else f"{run.strength:g}, off at {run.off_at:g}"


def _report_runs(folder: RunFolder, size: Size, dataset: Dataset) -> None:
    """Table 5: the ratio and the validation loss at the end, and the best of it, over seeds."""
    curves = _averaged(dataset)
    best = curves.assign(best=curves["validation"].min("time"))
    ratio, loss, lowest = OverSeeds(curves, "ratio"), OverSeeds(curves, "validation"), OverSeeds(best, "best")
    rows = [
        {"weight_decay": run.strength, "off_at": run.off_at if math.isfinite(run.off_at) else None}
        | {"run": _name(run)}
        | ratio.columns("ratio", (i, -1))
        | loss.columns("validation", (i, -1))
        | lowest.columns("lowest_validation", i)
        for i, run in enumerate(size.runs)
    ]
    folder.save_table("runs", rows)
    heads = {"run": "weight decay", "ratio": "ratio of A B", "validation": "validation loss"}
    title = f"At step {size.steps}, {size.seeds} seeds (mean ± standard deviation)"
    folder.show(title, rows, heads | {"lowest_validation": "its lowest"}, "runs")
    _claim_ratios(folder, size, ratio.each[..., -1])


def _claim_ratios(folder: RunFolder, size: Size, ratios: Float[np.ndarray, "decay seed"]) -> None:
    count = len(size.decays)
    falls = np.all(np.diff(ratios[:count], axis=0) < 0, axis=0)
    means = ratios.mean(1)
    folder.claim(
        "the larger the constant weight decay, the lower the ratio of nuclear to Frobenius norm",
        paper="falls with weight decay",
        ours=" > ".join(f"{mean:.3f}" for mean in means[:count]) + f"; in {falls.sum()} of {size.seeds} seeds",
        holds=bool(np.all(np.diff(means[:count]) < 0)),
    )
    stays = ratios[count:] < ratios[:1]
    folder.claim(
        "the ratio of a run whose decay was switched off is at the end below the ratio of a run without decay",
        paper="stays",
        ours=f"{', '.join(f'{mean:.3f}' for mean in means[count:])} against {means[0]:.3f}; in {stays.sum()} of "
        f"{stays.size} runs",
        holds=bool(np.all(stays)),
    )


def crossing_rows(size: Size, dataset: Dataset) -> list[dict[str, Any]]:
    """Each switched-off run with each smaller constant decay: one mapping a pair, with their crossing."""
    curves = _averaged(dataset)
    of = {run: curves.isel(decay=i) for i, run in enumerate(size.runs)}
    constant, switched = ([run for run in of if run.is_constant is wanted] for wanted in (True, False))
    return [
        {"run": _name(run), "constant": _name(smaller)}
        | crossing_columns(of[run], of[smaller], run.off_at, "validation")
        for run in switched
        for smaller in constant
        if 0 < smaller.strength < run.strength
    ]


def _report_crossings(folder: RunFolder, size: Size, dataset: Dataset) -> None:
    """The window of opportunity: validation losses at one ratio, reached with decay off and with decay on."""
    rows = crossing_rows(size, dataset)
    folder.save_table("crossings", rows)
    pair = {"run": "switched off", "constant": "constant"}
    heads = pair | {"seeds": "seeds", "at": "at step", "ratio": "ratio"}
    folder.show("Crossings of a switched-off run with a smaller constant decay", rows, heads, "crossings")
    heads = pair | {"off": "off", "on": "on", "difference": "off - on"}
    folder.show("Validation losses at these crossings, with decay off and with decay on", rows, heads, "crossings")
    crossed = [row for row in rows if row["crossed"] == size.seeds]
    switched, crossing = ({row["run"] for row in chosen} for chosen in (rows, crossed))
    folder.claim(
        "after its switch-off a run crosses the curve of a smaller constant decay, at the same ratio",
        paper="crosses",
        ours=f"{len(crossing)} of {len(switched)} runs cross one in every seed",
        holds=crossing == switched,
    )
    better = [row for row in crossed if row["difference_mean"] < 0]
    folder.claim(
        "where the ratios cross, the run whose decay is off has the lower validation loss",
        paper="a window of opportunity",
        ours=f"in {len(better)} of {len(crossed)} crossings: {', '.join(row['difference'] for row in crossed) or '-'}",
        holds=bool(crossed) and len(better) == len(crossed),
    )


CAPTION = (
    "Left: nuclear over Frobenius norm, averaged over the LoRA products; solid: constant weight decay, dashed: "
    "switched off at the dotted line. After it the ratio stays constant, while the ratios of smaller constant decays "
    "still fall and cross it. Right: the loss of the held-out texts. Bands are one standard deviation over seeds."
)


def _figure(size: Size, dataset: Dataset) -> plot.Figure:
    curves = _averaged(dataset)
    ts = curves["time"].values
    colors = plot.colors(len(size.decays))
    of = dict(zip(size.decays, colors, strict=True))
    panels = [
        plot.Panel(
            [
                mean_curve(
                    ts, OverSeeds(curves, name), i, _name(run), "-" if run.is_constant else "--", of[run.strength]
                )
                for i, run in enumerate(size.runs)
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
