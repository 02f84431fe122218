"""A pretrained GPT where GPT-2's weights are not at hand: trained once on the first half of Shakespeare's plays."""

import hashlib
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, UInt8

from ... import data
from ...nn import reparameterize
from ...nn.gpt2 import GPT2, GPT2Config
from ...nn.tasks import CrossEntropy, Network, Windows
from ...nn.training import train
from ...nn.weights import load_gpt2, save_gpt2
from ..core.run import RunFolder
from .pretrained import SEED, pretrained, trained_model
from .vision import warm_up_cosine

RATE = 3e-3
HELD_OUT = 0.1  # of the half that is adapted to, its end


@dataclass(frozen=True)
class Pretraining:
    """Steps of AdamW with a warm-up and a cosine, on batches of texts of this length."""

    steps: int
    length: int
    batch: int


@dataclass(frozen=True)
class Halves:
    """The characters of the plays as tokens: to pretrain on, to adapt to, and to be validated on."""

    before: UInt8[np.ndarray, " n"]
    adapted: UInt8[np.ndarray, " m"]
    held_out: UInt8[np.ndarray, " k"]


class Start(eqx.Module):
    """The one lane of the pretraining."""

    weights: PyTree
    steps: int = eqx.field(static=True)  # static: schedules of optax count in Python numbers

    def __call__(self, seed: Int[Array, ""]) -> tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]:
        return optax.adamw(warm_up_cosine(RATE, self.steps)), self.weights, jax.random.key(seed)


def read_halves() -> Halves:
    """The plays in two halves; the end of the second is held out."""
    tokens = np.unique(data.tiny_shakespeare().characters, return_inverse=True)[1].astype(np.uint8)
    before, rest = np.array_split(tokens, 2)
    end = round((1 - HELD_OUT) * rest.size)
    return Halves(before, rest[:end], rest[end:])


def pretrained_gpt(folder: RunFolder, config: GPT2Config, size: Pretraining, text: Halves) -> tuple[Any, PyTree]:
    """The GPT to adapt, as its graph and its parameters, from the cache or trained now."""
    recipe = {
        "text": hashlib.sha256(text.before.tobytes()).hexdigest(),
        "model": repr(config),
        "training": repr(size),
        "rate": RATE,
    }
    model = pretrained(
        folder,
        "gpt",
        f"a GPT, pretrained on {text.before.size} characters",
        recipe,
        train=lambda: _pretrained(folder, config, size, text),
        save=save_gpt2,
        load=lambda path, sha256: load_gpt2(path, config, sha256=sha256),
    )
    return nnx.split(model, nnx.Param)


def _pretrained(folder: RunFolder, config: GPT2Config, size: Pretraining, text: Halves) -> GPT2:
    graph, params = nnx.split(GPT2(config, rngs=nnx.Rngs(SEED)), nnx.Param)
    split, weights = reparameterize(params, {})
    network = Network(graph, split)
    dataset = train(
        Start(weights, size.steps),
        {"seed": [SEED]},
        loss=CrossEntropy(network),
        batch=Windows(jnp.asarray(text.before), size.length, size.batch),
        steps=size.steps,
        every=size.steps // 10,
        keep=True,
        **folder.checkpoints("pretraining"),
    )
    return trained_model(network, dataset, weights)
