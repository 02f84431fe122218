"""A ViT on images, in lanes: the network, its start, batches and records of `vit`, `vit-scratch` and `lr-schedule`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, PyTree, UInt8

from ...data import Images, cifar10
from ...nn import reparameterize
from ...nn.layers import attention_products
from ...nn.tasks import CrossEntropy, Labelled, Network, Rows, accuracy
from ...nn.training import train
from ...nn.vit import ViT, ViTConfig, with_head
from ...nn.weights import load_vit
from ...runs.dataset import Dataset
from ..core.run import RunFolder
from ..core.statistics import OverSeeds
from .imagenet import DrawnFiles, Reader, list_images
from .spectra import RATIOS, measures

SMALL = ViTConfig(image=32, patch=8, layers=2, width=32, heads=2, classes=10)
COARSE = dataclasses.replace(SMALL, patch=16)  # 5 tokens an image instead of 17: the same products, at half the cost
TINY = dataclasses.replace(ViTConfig.named("cifar"), dtype=jnp.bfloat16)
PUBLISHED = dataclasses.replace(ViTConfig.named("tiny/16"), dtype=jnp.bfloat16)
KERNELS = "*/kernel"  # every matrix decays; biases, scales, positions and the class token do not
TOGETHER = 1024  # images of a validation that the network has at once
VALIDATED = 2000  # images of ImageNet's 50,000
PUBLISHED_CLASSES = 1000

Lane = Callable[..., tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]]


@dataclass(frozen=True)
class Training:
    """The size of a preset.

    `records`: records an epoch; `padding`: of random crops, 0 for none; `chunk`: lanes at a time, None for all.
    """

    config: ViTConfig
    epochs: int
    batch: int
    seeds: int
    records: int = 1
    padding: int = 0
    chunk: int | None = None


@dataclass(frozen=True)
class Scaling:
    """`(x / 255 - mean) / deviation` of the values 0 .. 255."""

    mean: float
    deviation: float

    def __call__(self, images: UInt8[Array, "n h w c"]) -> Float32[Array, "n h w c"]:
        return (images.astype(jnp.float32) / 255 - self.mean) / self.deviation


OF_CIFAR10 = Scaling(0.4734, 0.2516)  # moments of the whole training set
OF_AUGREG = Scaling(0.5, 0.5)  # what the published weights were trained with


class Augmented(eqx.Module):
    """Random labelled images, each mirrored with probability 1/2 and moved by up to `padding` pixels."""

    draw: Rows | DrawnFiles
    scaling: Scaling = eqx.field(static=True)  # static: constants of a data set
    padding: int = eqx.field(static=True)  # static: a shape

    def __call__(self, key: PRNGKeyArray) -> Labelled:
        of_rows, of_flips, of_moves = jax.random.split(key, 3)
        images, labels = self.draw(of_rows)
        is_mirrored = jax.random.bernoulli(of_flips, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(is_mirrored, images[:, :, ::-1], images)
        return self.scaling(_moved(images, self.padding, of_moves)), labels


def _moved(images: UInt8[Array, "n h w c"], padding: int, key: PRNGKeyArray) -> UInt8[Array, "n h w c"]:
    """Each image moved by -padding .. padding pixels along both sides, with black where nothing is left."""
    if padding == 0:
        return images
    wide = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))(wide, corners)


class Recorder(eqx.Module):
    """Records the `measures` of W_K^T W_Q, and the `accuracy` on the validation set."""

    network: Network
    images: Float32[Array, "n h w c"]
    labels: Int[Array, " n"]
    heads: int = eqx.field(static=True)  # static: a shape

    def __call__(self, weights: PyTree) -> dict[str, Array]:
        key, query = (factor[:, 0] for factor in attention_products(weights, 1))
        return measures((key, query), attention_products(weights, self.heads)) | {"accuracy": self._accuracy(weights)}

    def _accuracy(self, weights: PyTree) -> Float[Array, ""]:
        def of_one(example: tuple[Array, Array]) -> Float[Array, ""]:
            return accuracy(self.network, weights, jax.tree.map(lambda x: x[None], example))

        together = min(TOGETHER, self.labels.shape[0])
        return jnp.mean(jax.lax.map(of_one, (self.images, self.labels), batch_size=together))


class Vision(eqx.Module):
    """A data set and a network for `train`: `vision(images, training)` makes it, or `on_imagenet`."""

    network: Network
    batches: Augmented
    recorder: Recorder
    pretrained: PyTree | None  # weights to start from; None for new ones
    training: Training = eqx.field(static=True)  # static: sizes
    images: int = eqx.field(static=True)  # static: how many an epoch has

    @property
    def steps_of_epoch(self) -> int:
        """Steps after which as many images were drawn as there are, rounded down to whole intervals of records."""
        records = self.training.records
        return max(self.images // (self.training.batch * records), 1) * records

    @property
    def steps(self) -> int:
        return self.training.epochs * self.steps_of_epoch

    def start(self, seed: Int[Array, ""]) -> tuple[PyTree, PRNGKeyArray]:
        """The weights that training starts from, and the key of its batches."""
        of_weights, of_batches = jax.random.split(jax.random.key(seed))
        if self.pretrained is not None:
            return self.pretrained, of_batches
        return nnx.state(ViT(self.training.config, rngs=nnx.Rngs(of_weights)), nnx.Param), of_batches

    def train(self, lane: Lane, grid: Mapping[str, Any], *, keep: bool = False, **store: Any) -> Dataset:
        """`mirrorjax.nn.train` of these lanes; time is counted in epochs.

        **Arguments:** `keep`: store the trained weights; `store`: the arguments that `RunFolder.checkpoints` gives.

        **Raises:** `ValueError` for an image that cannot be read.
        """
        try:
            dataset = train(
                lane,
                grid,
                loss=CrossEntropy(self.network),
                batch=self.batches,
                steps=self.steps,
                every=self.steps_of_epoch // self.training.records,
                metrics=self.recorder,
                chunk=self.training.chunk,
                keep=keep,
                **store,
            )
        except jax.errors.JaxRuntimeError:  # in whose message the one below is a line among many
            draw = self.batches.draw
            if isinstance(draw, DrawnFiles) and draw.reader.refused is not None:
                raise draw.reader.refused from None
            raise
        dataset = dataset.assign_coords(time=dataset["time"] / self.steps_of_epoch)
        dataset["time"].attrs.update(long_name="epochs", units="1", steps_of_epoch=self.steps_of_epoch)
        return dataset


def on_cifar10(folder: RunFolder, training: Training) -> Vision:
    """The network of a preset, on as much of CIFAR-10 as there is; prints how much that is, and where."""
    images = cifar10()
    _say(folder, len(images.x_train), len(images.x_test), images.origin)
    return vision(images, training)


def on_imagenet(folder: RunFolder, training: Training, path: Path, weights: Path) -> Vision:
    """The published ViT on a folder of ImageNet; validated on as many images as `VALIDATED`, at equal distances.

    **Raises:** `ValueError` for a folder or a file of weights that is not what it must be.
    """
    images = list_images(path)
    _say(folder, len(images.train.paths), len(images.validation.paths), images.origin)
    model = load_vit(weights, dataclasses.replace(training.config, classes=PUBLISHED_CLASSES))
    if len(images.classes) != PUBLISHED_CLASSES:
        model = with_head(model, len(images.classes), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    network = Network(graph, eqx.filter_eval_shape(lambda: reparameterize(params, {})[0]))
    side = training.config.image
    chosen = np.unique(np.linspace(0, len(images.validation.paths) - 1, VALIDATED).astype(int))
    shown = jnp.asarray(Reader(images.validation.paths, side)(chosen))
    return Vision(
        network,
        Augmented(
            DrawnFiles(jnp.asarray(images.train.labels), Reader(images.train.paths, side), training.batch),
            OF_AUGREG,
            training.padding,
        ),
        Recorder(network, OF_AUGREG(shown), jnp.asarray(images.validation.labels[chosen]), training.config.heads),
        params,
        training,
        len(images.train.paths),
    )


def _say(folder: RunFolder, train: int, test: int, origin: str) -> None:
    folder.console.print(f"{train} + {test} images from {origin}", highlight=False, soft_wrap=True)


def vision(images: Images, training: Training, pretrained: PyTree | None = None) -> Vision:
    """The network of a preset, on these images; from new weights, or from pretrained ones."""
    config = training.config
    network = eqx.filter_eval_shape(_network, config)  # there are no tensors in it
    rows = Rows((jnp.asarray(images.x_train), _labels(images.y_train)), training.batch)
    return Vision(
        network,
        Augmented(rows, OF_CIFAR10, training.padding),
        Recorder(network, OF_CIFAR10(jnp.asarray(images.x_test)), _labels(images.y_test), config.heads),
        pretrained,
        training,
        len(images.y_train),
    )


def _network(config: ViTConfig) -> Network:
    graph, params = nnx.split(ViT(config, rngs=nnx.Rngs(0)), nnx.Param)
    return Network(graph, reparameterize(params, {})[0])


def _labels(classes: UInt8[np.ndarray, " n"]) -> Int[Array, " n"]:
    return jnp.asarray(classes, jnp.int32)


def constant_rate(rate: float, steps: int) -> optax.Schedule:
    """The same rate in all steps."""
    return optax.constant_schedule(rate)


def warm_up_cosine(rate: float, steps: int) -> optax.Schedule:
    """Up to the rate in a tenth of the steps, and from there to 0 by half a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps)


def seeds_from(first: int, count: int) -> list[int]:
    """`count` seeds, the first of which was chosen."""
    return list(range(first, first + count))


# Two tables: one would be wider than a terminal, which cuts it.
END_COLUMNS = (
    {"decay": "decay"} | RATIOS,
    {"decay": "decay", "alignment": "alignment", "accuracy": "accuracy", "loss": "loss"},
)


def end_columns(one: Dataset) -> dict[str, Any]:
    """The entries of a table's row for one decay at the end, over seeds: those of `END_COLUMNS`, and `failed`.

    **Arguments:** `one`: a dataset with the dimensions seed and time.
    """
    last = one.isel(time=-1)
    columns: dict[str, Any] = {}
    for name in (*RATIOS, "alignment", "accuracy", "loss"):
        columns |= OverSeeds(last, name).columns(name, ())
    return columns | {"failed": int(np.sum(one.status.values != "successful"))}


def falls_with_decay(
    folder: RunFolder, constant: Dataset, strengths: Sequence[float], where: str, see: Sequence[str]
) -> None:
    """Records the claim that the ratio at the end falls with the strength of a constant decay.

    **Arguments:** `constant`: a dataset with the dimensions decay, in the order of the increasing strengths, seed and
    time; `where`: what else was fixed, for the sentence; `see`: the figures and tables that show it.
    """
    means, rising = _ends(constant, "ratio")
    falling = np.all(rising < 0, axis=0)
    folder.claim(
        f"The ratio at the end falls with weight decay, in the mean over seeds{where}",
        paper="falls",
        ours=f"{_listed(means, strengths)}; on {int(falling.sum())} of {falling.size} seeds alone",
        holds=bool(np.all(np.diff(means) < 0)),
        key="ratio-falls",
        see=see,
    )


def aligned_by_decay(
    folder: RunFolder, constant: Dataset, strengths: Sequence[float], where: str, see: Sequence[str]
) -> None:
    """Records the claim that keys and queries are the better aligned, the stronger the decay.

    **Arguments:** as in `falls_with_decay`.
    """
    means, rising = _ends(constant, "alignment")
    rising = np.all(rising > 0, axis=0)
    folder.claim(
        f"The alignment of keys and queries at the end rises with weight decay, in the mean over seeds{where}",
        paper="alignment is measured in Table 6, whose numbers are not in the text at hand",
        ours=f"{_listed(means, strengths)}; on {int(rising.sum())} of {rising.size} seeds alone",
        holds=bool(np.all(np.diff(means) > 0)),
        key="alignment-rises",
        see=see,
    )


def _ends(constant: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A measure at the end: its mean over seeds for each strength, and its differences from one to the next."""
    ends = constant[name].isel(time=-1).transpose("decay", "seed").values
    return ends.mean(axis=1), np.diff(ends, axis=0)


def _listed(means: np.ndarray, strengths: Sequence[float]) -> str:
    return ", ".join(f"{mean:.3f} at {strength:g}" for mean, strength in zip(means, strengths, strict=True))
