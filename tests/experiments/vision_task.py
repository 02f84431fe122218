"""A ViT and images as small as they get: what the tests of `vit` and `lr-schedule` share."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from rich.console import Console

from mirrorjax.data import Images
from mirrorjax.experiments import RunFolder, Setting
from mirrorjax.experiments.networks.vision import Training, Vision, vision
from mirrorjax.nn.tasks import CrossEntropy
from mirrorjax.nn.vit import ViTConfig

CONFIG = ViTConfig(image=32, patch=16, layers=2, width=8, heads=2, classes=10)
SEEDS = 2


def few_images(train: int = 24, test: int = 10) -> Images:
    rng = np.random.default_rng(0)
    draw = lambda *shape, top=256: rng.integers(0, top, shape, np.uint8)  # noqa: E731
    parts = (draw(train, 32, 32, 3), draw(train, top=10), draw(test, 32, 32, 3), draw(test, top=10))
    return Images(*parts, origin="drawn")


def small_training(epochs: int, layers: int = CONFIG.layers) -> Training:
    return Training(dataclasses.replace(CONFIG, layers=layers), epochs, 8, SEEDS)


def small_task(training: Training) -> Vision:
    return vision(few_images(), training)


def of_two_layers(training: Training) -> Training:
    """The training of a large network with two of its layers: the others are alike, and take as long to trace."""
    return dataclasses.replace(training, config=dataclasses.replace(training.config, layers=2))


def new_folder(path: Path, name: str) -> RunFolder:
    return RunFolder(path / name, name, Setting("quick", 0, 64), Console(file=io.StringIO()))


def shapes_of_a_step(task: Vision, optimizer: optax.GradientTransformation) -> tuple[Any, Any, Any]:
    """Weights before and after one step and what is recorded, as shapes: traced at full size, nothing computed."""

    def step(task: Vision) -> tuple[Any, Any, Any]:
        weights, key = task.start(jax.numpy.asarray(0))
        _, gradients = jax.value_and_grad(CrossEntropy(task.network))(weights, task.batches(key))
        updates, _ = optimizer.update(gradients, optimizer.init(weights), weights)
        return weights, optax.apply_updates(weights, updates), task.recorder(weights)

    return eqx.filter_eval_shape(step, task)
