"""What the experiments with networks share: weight decay that ends, batches, losses, and curves over seeds.

The modules are what `mirrorjax.nn.train` takes: they hold their data as leaves, so that a compiled step gets it as an
argument.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray, PyTree, Real, Shaped

from ... import plot
from ...nn import Reparameterization
from ...runs import Zip
from ...runs.dataset import Dataset

NEVER = math.inf
Labelled = tuple[Shaped[Array, "..."], Integer[Array, "..."]]  # inputs (batch, ...) and labels (batch, *length)


@dataclass(frozen=True)
class Decay:
    """Weight decay, as optax counts it (twice the theory's alpha), for the first `off_at` steps."""

    strength: float
    off_at: int | float = NEVER

    @property
    def is_constant(self) -> bool:
        """Whether it is never switched off."""
        return self.off_at == NEVER


def decay_grid(decays: Sequence[Decay], seeds: Sequence[int]) -> dict[str, Any]:
    """The grid of `train`: the dimensions `decay`, with a `weight_decay` and an `off_at`, and `seed`."""
    pairs = Zip(
        weight_decay=np.asarray([decay.strength for decay in decays], np.float32),
        off_at=np.asarray([decay.off_at for decay in decays], np.float32),
    )
    return {"decay": pairs, "seed": np.asarray(seeds)}


class Rows(eqx.Module):
    """So many rows of a data set, drawn with replacement."""

    rows: PyTree
    size: int = eqx.field(static=True)  # static: a shape

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        count = jax.tree.leaves(self.rows)[0].shape[0]
        chosen = jax.random.randint(key, (self.size,), 0, count)
        return jax.tree.map(lambda x: x[chosen], self.rows)


class Windows(eqx.Module):
    """Texts of so many tokens from random places of a long one, and at each place the token that follows."""

    tokens: Integer[Array, " n"]
    length: int = eqx.field(static=True)  # static: shapes
    size: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Labelled:
        starts = jax.random.randint(key, (self.size, 1), 0, self.tokens.shape[0] - self.length)
        texts = self.tokens[starts + jnp.arange(self.length + 1)[None]].astype(int)
        return texts[:, :-1], texts[:, 1:]


class Network(eqx.Module):
    """A Flax NNX model as a function of its parameters and an input."""

    graph: Any = eqx.field(static=True)  # static: what the model is made of, without its tensors
    split: Reparameterization

    def __call__(self, weights: PyTree, inputs: Shaped[Array, "batch ..."]) -> Float[Array, "batch *length classes"]:
        """Logits, from the weights that train."""
        return nnx.merge(self.graph, self.split.merge(weights))(inputs)


class CrossEntropy(eqx.Module):
    """`mean of -log p(label)` of a network: a loss for `train`."""

    network: Network

    def __call__(self, weights: PyTree, batch: Labelled) -> Float[Array, ""]:
        inputs, labels = batch
        logits = self.network(weights, inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def accuracy(network: Network, weights: PyTree, examples: Labelled) -> Float[Array, ""]:
    """The share of examples whose largest logit is that of their label."""
    inputs, labels = examples
    return jnp.mean(jnp.argmax(network(weights, inputs), axis=-1) == labels, dtype=jnp.float32)


class OverSeeds:
    """A variable of a training's dataset over seeds: mean, standard deviation (n - 1), and a text of both.

    **Arguments:** `dataset`: with the dimension `seed`, and others that stay.
    """

    def __init__(self, dataset: Dataset, variable: str):
        values = dataset[variable]
        self.each = values.values
        self.mean = values.mean("seed").values
        self.deviation = values.std("seed", ddof=1).values

    def columns(self, name: str, at: Any) -> dict[str, Any]:
        """The entries of a table's row: the text under the name, and both numbers for the file."""
        return _entries(name, float(self.mean[at]), float(self.deviation[at]))


def mean_text(mean: float, deviation: float) -> str:
    """`1.23 ± 0.04`, `1.234 ± 0.012`: the deviation with one digit, or two behind a leading 1, and the mean to the same
    place; "-" where the mean is missing.
    """
    if math.isnan(mean):
        return "-"
    if not (math.isfinite(deviation) and deviation > 0):
        return f"{mean:.4g}"
    exponent = math.floor(math.log10(deviation))
    places = max(0, -exponent + (deviation < 2 * 10.0**exponent))
    return f"{round(mean, places) + 0.0:.{places}f} ± {deviation:.{places}f}"  # + 0.0: no minus before zero


def crossing(
    ts: Real[np.ndarray, " time"],
    rising: Float[np.ndarray, " time"],
    other: Float[np.ndarray, " time"],
    since: int | float,
) -> float:
    """The first time after `since` at which the curve that was below the other is above it; NaN where there is none.

    Between two records both curves are straight lines.
    """
    gap = rising - other
    for i in range(1, len(ts)):
        if ts[i] > since and gap[i - 1] < 0 <= gap[i]:
            return float(ts[i - 1] + (ts[i] - ts[i - 1]) * gap[i - 1] / (gap[i - 1] - gap[i]))
    return math.nan


class Meeting(NamedTuple):
    """Where two runs have one ratio: the time, the ratio, and what is measured of both there; NaN where nowhere."""

    at: float
    ratio: float
    off: float  # of the run whose decay is off
    on: float  # of the one whose decay is on

    @property
    def difference(self) -> float:
        return self.off - self.on


def meeting(off: Dataset, on: Dataset, since: int | float, measure: str) -> Meeting:
    """Where the ratio of a run, switched off at the time `since`, comes to lie above that of one that still decays.

    **Arguments:** `off`, `on`: datasets over time, with `ratio` and the variable `measure`.
    """
    ts = off["time"].values
    at = crossing(ts, off["ratio"].values, on["ratio"].values, since)
    return Meeting(at, *(float(np.interp(at, ts, each.values)) for each in (off["ratio"], off[measure], on[measure])))


def meeting_columns(off: Dataset, on: Dataset, since: int | float, measure: str) -> dict[str, Any]:
    """The entries of Table 3's rows: how many seeds meet (`seeds`, `meeting`), and over those seeds `at`, `ratio`,
    `off`, `on` and `difference`, as `summary` gives them.

    **Arguments:** as in `meeting`, with the dimension `seed`.
    """
    count = off.sizes["seed"]
    found = [meeting(off.isel(seed=i), on.isel(seed=i), since, measure) for i in range(count)]
    met = [each for each in found if not math.isnan(each.at)]
    columns: dict[str, Any] = {"seeds": f"{len(met)} of {count}", "meeting": len(met)}
    for name in ("at", "ratio", "off", "on", "difference"):
        columns |= summary(name, np.asarray([getattr(each, name) for each in met]))
    return columns


def summary(name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """The entries of a table's row for some numbers: a text, their mean, and their deviation (n - 1)."""
    mean = float(np.mean(values)) if values.size else math.nan
    deviation = float(np.std(values, ddof=1)) if values.size > 1 else math.nan
    return _entries(name, mean, deviation)


def _entries(name: str, mean: float, deviation: float) -> dict[str, Any]:
    return {name: mean_text(mean, deviation), f"{name}_mean": mean, f"{name}_std": deviation}


def curve(
    ts: Real[np.ndarray, " time"], over_seeds: OverSeeds, at: Any, label: str, style: str = "-", color: Any = None
) -> plot.Line:
    """The mean over seeds with a band of one standard deviation; `at`: which curve, over the axes before time."""
    return plot.Line(ts, over_seeds.mean[at], label, style, color, spread=over_seeds.deviation[at])
