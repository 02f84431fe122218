"""A pretrained ViT where no published one is at hand: trained once on half of CIFAR-10, to be tuned on the other."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ...data import Images, cifar10
from ...nn.vit import ViT
from ...nn.weights import load_vit, save_vit
from ..core.run import RunFolder
from .pretrained import SEED, pretrained, trained_model
from .vision import Training, Vision, vision, warm_up_cosine


def on_second_half(folder: RunFolder, training: Training, pretraining: Training, rate: float) -> Vision:
    """The ViT of a preset, pretrained on the first half of CIFAR-10, on the second.

    Halves are every second image, so that both have all classes. The weights are kept in the cache; `pretrained.csv`
    says which they were.

    **Arguments:** `pretraining`: the size of the pretraining, with the same network; `rate`: its largest learning rate,
    by Adam with warm-up and cosine, without decay.
    """
    images = cifar10()
    before, after = halves(images)
    recipe = {
        "images": hashlib.sha256(before.x_train.tobytes() + before.y_train.tobytes()).hexdigest(),
        "training": repr(pretraining),
        "rate": rate,
    }
    model = pretrained(
        folder,
        "vit",
        f"a ViT, pretrained on {len(before.y_train)} images from {images.origin}",
        recipe,
        train=lambda: _pretrained(folder, before, pretraining, rate),
        save=save_vit,
        load=lambda path, sha256: load_vit(path, pretraining.config, sha256=sha256),
    )
    return vision(after, training, nnx.state(model, nnx.Param))


def halves(images: Images) -> tuple[Images, Images]:
    """The training images with even and with odd numbers; both with all images to test on."""
    parts = ((images.x_train[first::2], images.y_train[first::2]) for first in (0, 1))
    first, second = (dataclasses.replace(images, x_train=x, y_train=y) for x, y in parts)
    return first, second


def _pretrained(folder: RunFolder, images: Images, training: Training, rate: float) -> ViT:
    task = vision(images, training)

    def lane(seed: Int[Array, ""]) -> tuple[optax.GradientTransformation, PyTree, PRNGKeyArray]:
        return optax.adam(warm_up_cosine(rate, task.steps)), *task.start(seed)

    dataset = task.train(lane, {"seed": np.array([SEED])}, keep=True, **folder.checkpoints("pretraining"))
    like, _ = task.start(jnp.asarray(SEED))
    return trained_model(task.network, dataset, like)
