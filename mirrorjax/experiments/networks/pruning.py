"""Training, pruning and tuning of networks whose kernels are x or m w, under weight decay that is switched off.

All lanes of one parameterization, over widths, learning rates, sparsities and seeds, are two calls of
`mirrorjax.nn.train` with `mirrorjax.nn.prune` between them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from ... import data
from ...nn import Factored, prune, reparameterize, sparsity
from ...nn.tasks import CrossEntropy, Labelled, Network, Rows, accuracy
from ...nn.train import train, weights_of
from ...optim import keep_zeros, path_mask, pilot
from ...problem import Hadamard
from ...runs import Zip
from ...runs.dataset import Dataset

KERNELS = "*/kernel"
BALANCE = 1.0  # m^2 - w^2 at the start, far above any kernel's x^2: there the bias is L2
SMALL = 1e-3  # |x| up to this share of the largest of its tensor is zero in all but name

Lane = tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]


@dataclass(frozen=True)
class Method:
    """Training before pruning: of x or of m w, under the decay that narrows the width of m w from 1/2 to `width`."""

    name: str
    is_factored: bool
    width: float = BALANCE / 2  # no decay


@dataclass(frozen=True)
class Size:
    """The size of a preset.

    The network and its images' side in pixels; epochs before pruning, the first `decaying` of them with decay, and
    `tuning` epochs after; learning rates; seeds; epochs between two records; images a batch and held out; and lanes at
    a time, few enough for their weights to stay in a CPU's caches and their activations in a GPU's memory.
    """

    network: Callable[[nnx.Rngs], nnx.Module]
    side: int
    epochs: int
    decaying: int
    tuning: int
    rates: tuple[float, ...]
    seeds: int
    record: int
    sparsities: tuple[float, ...] = (0.0, 0.8, 0.9, 0.95)  # at 0 the network trains on as it is: dense training
    batch: int = 128
    held_out: int = 1000
    chunk: int = 4


class Perceptron(nnx.Module):
    """Logits of images by ReLU layers of these widths, from the count of an image's numbers to that of classes."""

    def __init__(self, widths: Sequence[int], *, rngs: nnx.Rngs):
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class Splits:
    """Images to train on, to choose learning rates by, and to test on."""

    train: Labelled
    held_out: Labelled
    test: Labelled


def load(size: Size, seed: int) -> Splits:
    """CIFAR-10 at the size's side, each channel of mean 0 and variance 1 over what is trained on."""
    images = data.cifar10()
    order = np.random.default_rng(seed).permutation(len(images.y_train))
    held, kept = order[: size.held_out], order[size.held_out :]
    x_train, x_test = _pooled(images.x_train, size.side), _pooled(images.x_test, size.side)
    mean, deviation = (moment(x_train[kept], axis=(0, 1, 2), keepdims=True) for moment in (np.mean, np.std))

    def labelled(x: Float[np.ndarray, "n h w c"], y: Shaped[np.ndarray, " n"]) -> Labelled:
        return jnp.asarray((x - mean) / deviation, jnp.float32), jnp.asarray(y, jnp.int32)

    return Splits(
        train=labelled(x_train[kept], images.y_train[kept]),
        held_out=labelled(x_train[held], images.y_train[held]),
        test=labelled(x_test, images.y_test),
    )


def _pooled(x: Shaped[np.ndarray, "n height width c"], side: int) -> Float[np.ndarray, "n side side c"]:
    """The means over squares of pixels."""
    pixels = x.shape[1] // side
    return x.reshape(len(x), side, pixels, side, pixels, -1).mean((2, 4))


def solve(size: Size, methods: Sequence[Method], splits: Splits, seed: int) -> tuple[Dataset, Dataset]:
    """Training and tuning of methods that are all factored, or none of them; times are epochs since the start.

    **Returns:** training, by method, rate, seed and time; and tuning, by method, rate, sparsity, seed and time, which
    begins with what was just pruned. Both with their trained weights.
    """
    network, starts = begin(size, methods[0].is_factored, seed)
    per_epoch = len(splits.train[1]) // size.batch
    rates, seeds = np.asarray(size.rates, np.float32), seed + np.arange(size.seeds)
    options: dict[str, Any] = {
        "loss": CrossEntropy(network),
        "batch": Rows(splits.train, size.batch),
        "metrics": Recorder(network, splits.held_out, splits.test),
        "every": size.record * per_epoch,
        "keep": True,
        "chunk": size.chunk,
        "progress": False,
    }
    training = train(
        Training(starts, jnp.asarray(size.decaying * per_epoch, jnp.float32)),
        {
            "method": Zip(width=np.asarray([method.width for method in methods], np.float32)),
            "rate": rates,
            "seed": Zip(seed=seeds, start=np.arange(len(seeds))),
        },
        steps=size.epochs * per_epoch,
        **options,
    )
    ends = weights_of(training, _stacked(starts, len(methods), len(rates)))
    pruned = [prune_weights(network, ends, share) for share in size.sparsities]
    tuning = train(
        Tuning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *pruned), size.tuning * per_epoch),
        {
            "method": np.arange(len(methods)),
            "rate": Zip(rate=rates, row=np.arange(len(rates))),
            "sparsity": Zip(sparsity=np.asarray(size.sparsities), share=np.arange(len(size.sparsities))),
            "seed": Zip(seed=seeds, start=np.arange(len(seeds))),
        },
        steps=size.tuning * per_epoch,
        **options,
    )
    return _labelled(training, size, per_epoch, 0), _labelled(tuning, size, per_epoch, size.epochs)


def begin(size: Size, is_factored: bool, seed: int) -> tuple[Network, PyTree]:
    """The network as a function of its weights, and the weights it starts from, stacked over seeds."""
    rules = {KERNELS: Factored(Hadamard(), BALANCE)} if is_factored else {}
    networks, starts = [], []
    for i in range(size.seeds):
        graph, params = nnx.split(size.network(nnx.Rngs(seed + i)))
        split, weights = reparameterize(params, rules)
        networks.append(Network(graph, split))
        starts.append(weights)
    return networks[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)


def _stacked(starts: PyTree, methods: int, rates: int) -> PyTree:
    """The shapes of weights by method and rate, whose own are those of the starts, by seed."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((methods, rates, *x.shape), x.dtype), starts)


def _labelled(dataset: Dataset, size: Size, per_epoch: int, first: int) -> Dataset:
    """The dataset with times in epochs, and rates and sparsities as they are written, whatever the precision was."""
    labelled = dataset.assign_coords({"time": first + dataset.time / per_epoch})
    for name, values in (("rate", size.rates), ("sparsity", size.sparsities)):
        if name in labelled.dims:
            labelled = labelled.assign_coords({name: np.asarray(values)})
    labelled["time"].attrs.update(long_name="epochs since the start", units="1")
    return labelled


class Training(eqx.Module):
    """A lane before pruning: decay of the kernels, or of their factors, and a constant learning rate."""

    starts: PyTree  # by seed
    decaying: Float[Array, ""]  # steps

    def __call__(
        self, width: Float[Array, ""], rate: Float[Array, ""], seed: Int[Array, ""], start: Int[Array, ""]
    ) -> Lane:
        t_off = rate * self.decaying
        optimizer = pilot(optax.adam(rate), balance=BALANCE, width=width, t_off=t_off, step_size=rate, mask=KERNELS)
        return optimizer, jax.tree.map(lambda x: x[start], self.starts), jax.random.key(seed)


class Tuning(eqx.Module):
    """A lane after pruning: what is zero stays zero, and the learning rate falls to 0 along a cosine."""

    starts: PyTree  # by sparsity, method, rate and seed
    steps: int = eqx.field(static=True)  # static: optax refuses a traced one

    def __call__(
        self,
        method: Int[Array, ""],
        rate: Float[Array, ""],
        row: Int[Array, ""],
        sparsity: Float[Array, ""],
        share: Int[Array, ""],
        seed: Int[Array, ""],
        start: Int[Array, ""],
    ) -> Lane:
        falling = optax.cosine_decay_schedule(rate, self.steps)  # type: ignore[arg-type]
        optimizer = optax.chain(optax.adam(falling), keep_zeros(KERNELS))
        weights = jax.tree.map(lambda x: x[share, method, row, start], self.starts)
        return optimizer, weights, jax.random.fold_in(jax.random.key(seed), 1)  # not the batches of the training


class Recorder(eqx.Module):
    """Accuracies, and of all kernels together: |x|_1 / |x|_2, and the shares of entries that are small and zero."""

    network: Network
    held_out: Labelled
    test: Labelled

    def __call__(self, weights: PyTree) -> dict[str, Float[Array, ""]]:
        tensors = self.network.split.merge(weights)
        chosen = jax.tree.leaves(path_mask(KERNELS)(tensors))
        kernels = [jnp.abs(x) for x, is_kernel in zip(jax.tree.leaves(tensors), chosen, strict=True) if is_kernel]
        entries = jnp.concatenate([x.ravel() for x in kernels])
        small = sum((jnp.sum(x <= SMALL * jnp.max(x)) for x in kernels), jnp.zeros((), int))
        return {
            "held_out": accuracy(self.network, weights, self.held_out),
            "test": accuracy(self.network, weights, self.test),
            "ratio": jnp.sum(entries) / jnp.linalg.norm(entries),
            "small": small / entries.size,
            "zero": sparsity(tensors, 0.0, KERNELS),
        }


def prune_weights(network: Network, weights: PyTree, share: float) -> PyTree:
    """Of every lane, the share of the kernels' entries that is smallest in magnitude set to 0, and so its factors.

    **Arguments:** `weights`: by method, rate and seed.
    """

    def cut(x: Float[Array, "..."], part: PyTree) -> PyTree:
        return jax.tree.map(lambda factor: jnp.where(x == 0, jnp.zeros_like(factor), factor), part)

    def lane(weights: PyTree) -> PyTree:
        tensors = network.split.merge(weights)
        return jax.tree.map(cut, prune(tensors, share, KERNELS), weights)

    return jax.jit(jax.vmap(jax.vmap(jax.vmap(lane))))(weights)
