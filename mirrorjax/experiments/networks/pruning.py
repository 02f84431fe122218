"""Training, pruning and tuning of networks whose kernels are x or m w, under decay of several kinds.

All lanes of one program, over learning rates, strengths and seeds, are one call of `mirrorjax.nn.train`; each round of
pruning is another, with `mirrorjax.nn.prune` before it.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree, Shaped

from ... import data
from ...nn import Factored, reparameterize, sparsity
from ...nn.sparsity import prune_count
from ...nn.tasks import CrossEntropy, Labelled, Network, Rows, accuracy
from ...nn.training import train, weights_of
from ...optim import decoupled_weight_decay, keep_zeros, path_mask, pilot, pilot_decay
from ...problem import Hadamard
from ...runs import Zip
from ...runs.dataset import Dataset

KERNELS = "*/kernel"
BALANCE = 1.0  # m^2 - w^2 at the start, far above any kernel's x^2: there the bias is L2
SMALL = 1e-3  # |x| up to this share of the largest of its tensor is zero in all but name
SEEN = 512  # training images that PILoT's rule measures its accuracy on
DELTA = 1.2  # the factor of PILoT's rule
LEAST = 0.05  # K of PILoT's rule, as a share of |x|_1 at the start

Lane = tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]
Build = Callable[[nnx.Rngs], nnx.Module]


@dataclass(frozen=True)
class Size:
    """The size of a preset.

    The images, and their side in pixels; the network; the direction of a step, such as momentum; epochs before pruning,
    the first `decaying` of them with decay where a schedule ends, and `tuning` epochs after; learning rates; of each
    program's four strengths, how many; seeds; epochs between two records; images a batch and held out; and lanes at a
    time, few enough for their weights to stay in a CPU's caches and their activations in a GPU's memory.
    """

    images: str
    side: int
    network: Build
    direction: Callable[[], optax.GradientTransformation]
    epochs: int
    decaying: int
    tuning: int
    rates: tuple[float, ...]
    seeds: int
    record: int
    strengths: int = 4
    sparsities: tuple[float, ...] = (0.0, 0.8, 0.9, 0.95, 0.98)  # at 0 the network trains on as it is: dense training
    batch: int = 64
    held_out: int = 300
    chunk: int = 20


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
    """Images to train on, to choose learning rates and strengths by, and to test on."""

    train: Labelled
    held_out: Labelled
    test: Labelled


def load(size: Size, seed: int) -> Splits:
    """The images of a preset, each channel of mean 0 and variance 1 over what is trained on."""
    x_train, y_train, x_test, y_test = IMAGES[size.images](size.side)
    order = np.random.default_rng(seed).permutation(len(y_train))
    held, kept = order[: size.held_out], order[size.held_out :]
    mean, deviation = (moment(x_train[kept], axis=(0, 1, 2), keepdims=True) for moment in (np.mean, np.std))

    def labelled(x: Float[np.ndarray, "n h w c"], y: Shaped[np.ndarray, " n"]) -> Labelled:
        return jnp.asarray((x - mean) / deviation, jnp.float32), jnp.asarray(y, jnp.int32)

    return Splits(
        train=labelled(x_train[kept], y_train[kept]),
        held_out=labelled(x_train[held], y_train[held]),
        test=labelled(x_test, y_test),
    )


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # images and classes to train on, and to test on


def _digits(side: int) -> Arrays:
    """1,797 digits of 8 x 8 pixels, a fifth of them to test on: the same ones for every seed."""
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    x, y = _pooled(raw.images[order][..., None], side), raw.target[order]
    count = len(y) // 5
    return x[count:], y[count:], x[:count], y[:count]


def _cifar10(side: int) -> Arrays:
    images = data.cifar10()
    return _pooled(images.x_train, side), images.y_train, _pooled(images.x_test, side), images.y_test


IMAGES: dict[str, Callable[[int], Arrays]] = {"digits": _digits, "CIFAR-10": _cifar10}


def _pooled(x: Shaped[np.ndarray, "n height width c"], side: int) -> Float[np.ndarray, "n side side c"]:
    """The means over squares of pixels."""
    pixels = x.shape[1] // side
    return x.reshape(len(x), side, pixels, side, pixels, -1).mean((2, 4))


class Training(eqx.Module):
    """A lane before pruning: decay of the kernels, or of their factors, and a constant learning rate."""

    starts: PyTree  # by seed
    network: Network
    seen: Labelled
    decay: Callable = eqx.field(static=True)  # static: a function
    direction: Callable = eqx.field(static=True)  # static: a function
    decaying: int = eqx.field(static=True)  # static: counts of epochs and steps, which lanes share
    epochs: int = eqx.field(static=True)
    per_epoch: int = eqx.field(static=True)

    def __call__(
        self, rate: Float[Array, ""], strength: Float[Array, ""], seed: Int[Array, ""], start: Int[Array, ""]
    ) -> Lane:
        weights = jax.tree.map(lambda x: x[start], self.starts)
        return self.decay(self, rate, strength, weights), weights, jax.random.key(seed)


def constant(training: Training, rate: Array, strength: Array, weights: PyTree) -> optax.GradientTransformation:
    """Decay of constant strength: of m and w, spred."""
    return decoupled_weight_decay(_plain(training, rate), strength, step_size=rate, mask=KERNELS)


def narrowing(training: Training, rate: Array, width: Array, weights: PyTree) -> optax.GradientTransformation:
    """PILoT with the schedule that ends with a width."""
    t_off = rate * (training.decaying * training.per_epoch)
    return pilot(_plain(training, rate), balance=BALANCE, width=width, t_off=t_off, step_size=rate, mask=KERNELS)


def adapting(training: Training, rate: Array, strength: Array, weights: PyTree) -> optax.GradientTransformation:
    """PILoT with the published rule, which starts with a strength."""
    network = training.network
    start = sum(jnp.sum(jnp.abs(m * w)) for m, w in network.split.factors(weights).values())
    rule = pilot_decay(
        strength,
        delta=DELTA,
        least_norm=LEAST * start,
        epochs=training.epochs,
        steps_per_epoch=training.per_epoch,
        accuracy=lambda weights: accuracy(network, weights, training.seen),
        pairs=network.split.factored,
    )
    return optax.chain(training.direction(), rule, optax.scale_by_learning_rate(rate))


def _plain(training: Training, rate: Array) -> optax.GradientTransformation:
    return optax.chain(training.direction(), optax.scale_by_learning_rate(rate))


@dataclass(frozen=True)
class Program:
    """Training before pruning: of x or of m w, under a decay, at each of these strengths (or widths)."""

    name: str
    is_factored: bool
    decay: Callable
    strengths: tuple[float, ...]


class Tuning(eqx.Module):
    """A lane after pruning: what is zero stays zero, and the learning rate falls to 0 along a cosine."""

    starts: PyTree  # by sparsity, rate, strength and seed
    direction: Callable = eqx.field(static=True)  # static: a function
    steps: Int[Array, ""]  # traced, so that rounds of any length share one compiled program

    def __call__(
        self,
        rate: Float[Array, ""],
        row: Int[Array, ""],
        strength: Float[Array, ""],
        column: Int[Array, ""],
        sparsity: Float[Array, ""],
        share: Int[Array, ""],
        seed: Int[Array, ""],
        start: Int[Array, ""],
    ) -> Lane:
        def falling(count: ArrayLike) -> Array:  # optax's own refuses a traced number of steps
            share = jnp.minimum(jnp.asarray(count) / self.steps, 1.0).astype(rate.dtype)
            return rate / 2 * (1 + jnp.cos(jnp.pi * share))

        optimizer = optax.chain(self.direction(), optax.scale_by_learning_rate(falling), keep_zeros(KERNELS))
        weights = jax.tree.map(lambda x: x[share, row, column, start], self.starts)
        return optimizer, weights, jax.random.fold_in(jax.random.key(seed), 1)  # not the batches of the training


class Runs:
    """The networks of one program: trained at every rate, strength and seed, then pruned in any number of rounds.

    **Arguments:** `checkpoints`: the name of a training -> the arguments `store` and `resume` of `train`.
    """

    def __init__(
        self, size: Size, program: Program, splits: Splits, seed: int, checkpoints: Callable[[str], dict[str, Any]]
    ):
        self.size, self.program, self.checkpoints = size, program, checkpoints
        self.network, self.starts = begin(size, program.is_factored, seed)
        self.per_epoch = len(splits.train[1]) // size.batch
        # How many strengths a preset has; the last ones are those that prune most.
        self.strengths = program.strengths[-size.strengths :]
        self.seeds = Zip(seed=seed + np.arange(size.seeds), start=np.arange(size.seeds))
        self.seen = (splits.train[0][:SEEN], splits.train[1][:SEEN])
        self.options: dict[str, Any] = {
            "loss": CrossEntropy(self.network),
            "batch": Rows(splits.train, size.batch),
            "metrics": Recorder(self.network, splits.held_out, splits.test),
            "every": size.record * self.per_epoch,
            "keep": True,
            "chunk": size.chunk,
            "progress": False,
        }
        lane = Training(
            self.starts,
            self.network,
            self.seen,
            program.decay,
            size.direction,
            size.decaying,
            size.epochs,
            self.per_epoch,
        )
        grid = {
            "rate": np.asarray(size.rates, np.float32),
            "strength": np.asarray(self.strengths, np.float32),
            "seed": self.seeds,
        }
        with warnings.catch_warnings(record=True) as caught:  # some settings of a search are bound to be too strong
            warnings.simplefilter("always")
            store = checkpoints(f"training_{program.name}")
            self.trained = train(lane, grid, steps=size.epochs * self.per_epoch, **self.options, **store)
        self.warnings = sorted({str(warning.message) for warning in caught})

    @property
    def training(self) -> Dataset:
        """The training before pruning, by rate, strength and seed."""
        return self.labelled(self.trained)

    def tuned(self, rounds: int) -> Dataset:
        """Prunes and tunes in so many rounds of equal length; returns the last, by sparsity, rate, strength and seed.

        After round k of n a share `(1 - s)^(k/n)` of the entries is left, so that one round is one-shot pruning.
        """
        size, lanes = self.size, (len(self.size.sparsities), len(self.size.rates), len(self.strengths))
        steps = size.tuning * self.per_epoch // rounds
        ends = weights_of(self.trained, stacked(self.starts, *lanes[1:]))
        ends = jax.tree.map(lambda x: np.broadcast_to(x, (lanes[0], *x.shape)), ends)
        for k in range(1, rounds + 1):
            pruned = prune_weights(self.network, ends, [1 - (1 - each) ** (k / rounds) for each in size.sparsities])
            dataset = train(
                Tuning(pruned, size.direction, jnp.asarray(steps)),
                {
                    "sparsity": Zip(sparsity=np.asarray(size.sparsities), share=np.arange(lanes[0])),
                    "rate": Zip(rate=np.asarray(size.rates, np.float32), row=np.arange(lanes[1])),
                    "strength": Zip(strength=np.asarray(self.strengths, np.float32), column=np.arange(lanes[2])),
                    "seed": self.seeds,
                },
                steps=steps,
                **self.options,
                **self.checkpoints(f"tuning_{self.program.name}_{k}_of_{rounds}"),
            )
            ends = weights_of(dataset, stacked(self.starts, *lanes)) if k < rounds else ends
        return self.labelled(dataset, size.epochs + size.tuning * (rounds - 1) / rounds)

    def labelled(self, dataset: Dataset, first: float = 0.0) -> Dataset:
        """The dataset with times in epochs, and rates, strengths and sparsities as they are written."""
        labelled = dataset.assign_coords({"time": first + dataset.time / self.per_epoch})
        names = {"rate": self.size.rates, "strength": self.strengths, "sparsity": self.size.sparsities}
        for name, values in names.items():
            if name in labelled.dims:
                labelled = labelled.assign_coords({name: np.asarray(values)})
        labelled["time"].attrs.update(long_name="epochs since the start", units="1")
        return labelled


def begin(size: Size, is_factored: bool, seed: int) -> tuple[Network, PyTree]:
    """The network as a function of its weights, and the weights it starts from, stacked over seeds."""
    network, _ = eqx.filter_eval_shape(_start, size.network, is_factored, jnp.asarray(seed))  # no tensors are in it
    return network, _starts(size.network, is_factored, seed + jnp.arange(size.seeds))


def _start(
    network: Callable[[nnx.Rngs], nnx.Module], is_factored: bool, seed: Int[Array, ""]
) -> tuple[Network, PyTree]:
    graph, params = nnx.split(network(nnx.Rngs(jax.random.key(seed))))
    split, weights = reparameterize(params, {KERNELS: Factored(Hadamard(), BALANCE)} if is_factored else {})
    return Network(graph, split), weights


@eqx.filter_jit
def _starts(network: Build, is_factored: bool, seeds: Int[Array, " seed"]) -> PyTree:
    # One program draws all seeds: drawn one by one, each operation would be compiled by itself.
    return jax.vmap(lambda seed: _start(network, is_factored, seed)[1])(seeds)


def stacked(starts: PyTree, *lanes: int) -> PyTree:
    """The shapes of the weights of all lanes, whose last axis of lanes, seeds, is that of the starts."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lanes, *x.shape), x.dtype), starts)


class Recorder(eqx.Module):
    """Accuracies, and of all kernels together: |x|_1 / |x|_2, and the shares of entries that are small and zero."""

    network: Network
    held_out: Labelled
    test: Labelled

    def __call__(self, weights: PyTree) -> dict[str, Float[Array, ""]]:
        tensors = self.network.split.merge(weights)
        kernels = [jnp.abs(x) for x in kernels_of(tensors)]
        entries = jnp.concatenate([x.ravel() for x in kernels])
        small = sum((jnp.sum(x <= SMALL * jnp.max(x)) for x in kernels), jnp.zeros((), int))
        return {
            "held_out": accuracy(self.network, weights, self.held_out),
            "test": accuracy(self.network, weights, self.test),
            "ratio": jnp.sum(entries) / jnp.linalg.norm(entries),
            "small": small / entries.size,
            "zero": sparsity(tensors, 0.0, KERNELS),
        }


def kernels_of(tensors: PyTree) -> list[Any]:
    """The kernels among the tensors of a network, or among their shapes."""
    chosen = jax.tree.leaves(path_mask(KERNELS)(tensors))
    return [x for x, is_kernel in zip(jax.tree.leaves(tensors), chosen, strict=True) if is_kernel]


def prune_weights(network: Network, weights: PyTree, shares: Sequence[float]) -> PyTree:
    """Of every lane, a share of the kernels' entries that is smallest in magnitude set to 0, and so its factors.

    **Arguments:** `weights`: by sparsity, rate, strength and seed; `shares`: one a sparsity.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[4:], x.dtype), weights)
    entries = sum(x.size for x in kernels_of(eqx.filter_eval_shape(network.split.merge, one)))
    return _prune(network, weights, jnp.asarray([round(share * entries) for share in shares]))


@eqx.filter_jit
def _prune(network: Network, weights: PyTree, counts: Int[Array, " sparsity"]) -> PyTree:
    def cut(x: Float[Array, "..."], part: PyTree) -> PyTree:
        return jax.tree.map(lambda factor: jnp.where(x == 0, jnp.zeros_like(factor), factor), part)

    def lane(weights: PyTree, count: Int[Array, ""]) -> PyTree:
        tensors = network.split.merge(weights)
        return jax.tree.map(cut, prune_count(tensors, count, KERNELS), weights)

    by_sparsity = jax.vmap(jax.vmap(jax.vmap(lane, (0, None)), (0, None)), (0, None))
    return jax.vmap(by_sparsity)(weights, counts)
