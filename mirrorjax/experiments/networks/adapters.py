"""LoRA adapters of a GPT in lanes: texts, the lane of a decay and a seed, what is recorded, and the training of all.

`lora` and `lora-tasks` share it. SGD with momentum 0.9, a constant learning rate, no dropout. Decay acts on the
factors A and B of the attention projections; everything else is frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, PyTree

from ... import optim
from ...nn import Frozen, LowRank, Reparameterization, reparameterize
from ...nn.gpt2 import GPT2Config
from ...nn.spectral import Factors
from ...nn.tasks import CrossEntropy, Decay, Labelled, Network, decay_grid
from ...nn.training import train
from ...runs.dataset import Dataset
from .spectra import measures

OFF_STYLES = ("--", "-.", ":")  # of the curves of decays that were switched off

PROJECTIONS = ("*/attn/query/kernel", "*/attn/key/kernel", "*/attn/value/kernel")
MOMENTUM = 0.9


@dataclass(frozen=True)
class Adapter:
    """The size of an adaptation.

    `steps`, `records`: of the training; `length`, `batch`: of texts; `validation`: batches of the held-out part;
    `rank`, `alpha`: of LoRA, which adds `alpha / rank` times A B; `step_size`: the learning rate; `seeds`: how many.
    """

    model: GPT2Config
    steps: int
    records: int
    length: int
    batch: int
    validation: int = 8
    rank: int = 8
    alpha: float = 8.0
    step_size: float = 0.1
    seeds: int = 3


@dataclass(frozen=True)
class Corpus:
    """Texts to adapt to and texts to be validated on, as tokens.

    `labels`: the token that should follow each one, the text itself moved by one unless labels are noisy; `end`: how
    many tokens of the text are used.
    """

    tokens: Integer[Array, " m"]
    labels: Integer[Array, " m"]
    end: Integer[Array, ""]
    held_out: Integer[Array, " k"]


def corpus(tokens: Integer[np.ndarray, " m"], held_out: Integer[np.ndarray, " k"]) -> Corpus:
    """All of a text, with the labels that it has."""
    return Corpus(
        jnp.asarray(tokens[:-1]), jnp.asarray(tokens[1:]), jnp.asarray(len(tokens) - 1), jnp.asarray(held_out)
    )


class Texts(eqx.Module):
    """Draws `size` texts of `length` tokens from random places of a corpus, with a label for each token."""

    tokens: Integer[Array, " m"]
    labels: Integer[Array, " m"]
    end: Integer[Array, ""]
    length: int = eqx.field(static=True)  # static: shapes
    size: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Labelled:
        starts = jax.random.randint(key, (self.size, 1), 0, self.end - self.length + 1)
        places = starts + jnp.arange(self.length)[None]
        return self.tokens[places].astype(int), self.labels[places].astype(int)


class Adaptation(eqx.Module):
    """A lane: A drawn anew for each seed, B zero; SGD with momentum whose decay is switched off."""

    params: PyTree
    rank: int = eqx.field(static=True)  # static: a shape
    scale: Float[Array, ""]
    step_size: Float[Array, ""]

    def __call__(self, weight_decay, off_at, seed):
        key = jax.random.key(seed)
        optimizer = optim.switch_off_sgd(self.step_size, MOMENTUM, weight_decay=weight_decay, off_at=off_at)
        return optimizer, self.split(key)[1], key

    def split(self, key: PRNGKeyArray) -> tuple[Reparameterization, PyTree]:
        """The attention projections with A B added; everything else as it is."""
        rules = {pattern: LowRank(self.rank, self.scale) for pattern in PROJECTIONS}
        return reparameterize(self.params, rules | {"*": Frozen()}, key=key)


class Recorder(eqx.Module):
    """Records the `measures` of all products A B, and the loss of the held-out texts as `validation`."""

    loss: CrossEntropy
    texts: Labelled  # (parts, batch, length): the logits of all parts at once would be gigabytes at GPT-2's size
    heads: int = eqx.field(static=True)  # static: a shape

    def __call__(self, weights: PyTree) -> dict[str, Array]:
        pairs = self.loss.network.split.factors(weights).values()
        first, second = (jnp.stack(parts) for parts in zip(*pairs, strict=True))
        losses = jax.lax.map(lambda texts: self.loss(weights, texts), self.texts)
        return measures((first, second), _of_heads(first, second, self.heads)) | {"validation": jnp.mean(losses)}


def _of_heads(first: Float[Array, "n d r"], second: Float[Array, "n r w"], heads: int) -> Factors:
    """The factors of each head's columns of A B."""
    count, rank, width = second.shape
    split = jnp.moveaxis(second.reshape(count, rank, heads, width // heads), 2, 1)
    return jnp.broadcast_to(first[:, None], (count, heads, *first.shape[1:])), split


class Parts(NamedTuple):
    """The arguments of `train`: lane, loss, batch and metrics."""

    lane: Adaptation
    loss: CrossEntropy
    batch: Texts
    metrics: Recorder


def assemble(size: Adapter, texts: Corpus, graph: Any, params: PyTree) -> Parts:
    """The adaptation of a model to the text; pure, so that its shapes can be known without the model's numbers."""
    scale, step_size = (jnp.asarray(value, jnp.float32) for value in (size.alpha / size.rank, size.step_size))
    lane = Adaptation(params, size.rank, scale, step_size)
    loss = CrossEntropy(Network(graph, lane.split(jax.random.key(0))[0]))
    batch = Texts(texts.tokens, texts.labels, texts.end, size.length, size.batch)
    recorder = Recorder(loss, held_out_texts(texts.held_out, size), size.model.heads)
    return Parts(lane, loss, batch, recorder)


def held_out_texts(tokens: Integer[Array, " k"], size: Adapter) -> Labelled:
    """Texts at equal distances, the same for every lane and record, in parts as large as a batch."""
    starts = np.linspace(0, tokens.shape[0] - size.length - 1, size.validation * size.batch).astype(int)
    places = starts.reshape(size.validation, size.batch, 1) + np.arange(size.length + 1)
    texts = tokens[places].astype(int)
    return texts[..., :-1], texts[..., 1:]


def adapt(
    size: Adapter, texts: Corpus, graph: Any, params: PyTree, runs: Sequence[Decay], seed: int, **store: Any
) -> Dataset:
    """All decays and seeds, with `measures` and `validation` (decay, seed, time); `layer_ratio` has the axis tensor."""
    parts = assemble(size, texts, graph, params)
    dataset = train(
        grid=decay_grid(runs, range(seed, seed + size.seeds)),
        steps=size.steps,
        every=size.steps // size.records,
        chunk=1,  # one lane's step fills a CPU's cores, and at GPT-2's size a GPU
        **parts._asdict(),
        **store,
    )
    names = [tensor.name for tensor in parts.loss.network.split.tensors if tensor.rule == "LowRank"]
    return dataset.rename(layer_ratio_0="tensor").assign_coords(tensor=names)


def trained(dataset: Dataset) -> Dataset:
    """The dataset without its first record, where A B = 0 has no ratio."""
    return dataset.isel(time=slice(1, None))


def run_name(run: Decay) -> str:
    """A decay in tables and legends."""
    return f"{run.strength:g}" if run.is_constant else f"{run.strength:g}, off at {run.off_at:g}"


def run_styles(runs: Sequence[Decay]) -> list[str]:
    """The line style of each run: solid for constant decay, and another for each switch-off of one strength."""
    styles = []
    for k, run in enumerate(runs):
        before = sum(run.strength == other.strength and not other.is_constant for other in runs[:k])
        styles.append("-" if run.is_constant else OFF_STYLES[before % len(OFF_STYLES)])
    return styles
