"""A folder of images like ImageNet's: what is listed, what a compiled step reads of it, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from vision_task import CONFIG, SEEDS, new_folder

from mirrorjax.experiments.networks import switching, vision, vit
from mirrorjax.experiments.networks.imagenet import DrawnFiles, Reader, find_imagenet, list_images
from mirrorjax.nn.vit import ViT
from mirrorjax.nn.weights import save_vit

SIDE = 32


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def folder(tmp_path):
    """Two classes of photographs of 48 x 40 pixels, each of one colour: 6 and 3 to train on, 2 of each to validate."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (6, 3)), ("val", (2, 2))):
        for name, count in zip(("n01", "n02"), counts, strict=True):
            (tmp_path / "imagenet" / part / name).mkdir(parents=True)
            for i in range(count):
                colour = tuple(int(value) for value in rng.integers(0, 256, 3))
                Image.new("RGB", (48, 40), colour).save(tmp_path / "imagenet" / part / name / f"{i}.JPEG", quality=95)
    return tmp_path / "imagenet"


def colours(paths) -> np.ndarray:
    return np.array([np.asarray(Image.open(path)).mean((0, 1)) for path in paths])


def test_classes_are_numbered_by_name_and_images_read_by_number(folder):
    images = list_images(folder)
    assert images.classes == ("n01", "n02")
    np.testing.assert_array_equal(images.train.labels, [0] * 6 + [1] * 3)
    np.testing.assert_array_equal(images.validation.labels, [0, 0, 1, 1])
    numbers = np.array([[8, 0, 3], [2, 2, 7]])
    read = Reader(images.train.paths, SIDE)(numbers)
    assert (read.shape, read.dtype) == ((2, 3, SIDE, SIDE, 3), np.uint8)
    expected = colours(images.train.paths)[numbers]
    # Bicubic resizing of a constant gives the constant, but for the rounding to whole values.
    np.testing.assert_allclose(read.mean((2, 3)), expected, atol=1)


def test_what_is_not_square_is_cut_in_the_middle(tmp_path):
    wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    wide[:, SIDE : 2 * SIDE] = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    read = Reader((tmp_path / "wide.png",), SIDE)(np.zeros(1, int))
    np.testing.assert_array_equal(read[0], wide[:, SIDE : 2 * SIDE])


def test_a_compiled_step_draws_files_in_lanes(folder):
    images = list_images(folder)
    draw = DrawnFiles(jnp.asarray(images.train.labels), Reader(images.train.paths, SIDE), 5)
    keys = jax.random.split(jax.random.key(0), 4)
    pictures, labels = jax.jit(jax.vmap(draw))(keys)
    assert pictures.shape == (4, 5, SIDE, SIDE, 3)
    # Each lane has the images of its labels: the colour tells which file it is.
    found = np.asarray(pictures, float).mean((2, 3))
    known = colours(images.train.paths)
    nearest = np.argmin(np.abs(found[:, :, None] - known).sum(-1), axis=-1)
    np.testing.assert_array_equal(images.train.labels[nearest], labels)
    np.testing.assert_array_equal(pictures[1], draw(keys[1])[0])


@pytest.fixture
def tuning(folder, tmp_path, monkeypatch):
    """A small network as if published, on the folder: its run, its task and its size, equal for all tests."""
    config = dataclasses.replace(CONFIG, layers=1)
    weights = tmp_path / "vit.npz"
    monkeypatch.setattr(vision, "PUBLISHED_CLASSES", 3)  # which the head of the file has, and the folder 2
    save_vit(ViT(dataclasses.replace(config, classes=3), rngs=nnx.Rngs(4)), weights)
    training = vision.Training(config, 2, 4, SEEDS)
    run = new_folder(tmp_path, "vit")
    task = vision.on_imagenet(run, training, folder, weights)
    return run, task, switching.Size(training, 0.01, vision.constant_rate, (0.0, 1.0), (1.0,))


def test_the_published_network_is_tuned_on_a_folder(tuning):
    run, task, size = tuning
    started, _ = task.start(jnp.asarray(0))
    assert task.steps_of_epoch == 2  # nine images, four at a time
    assert started["head"]["kernel"].shape == (CONFIG.width, 2)
    switching.reproduce(run, size, task, 0, vit.ON_IMAGENET)
    assert (run.path / "imagenet_vit.nc").exists()
    assert {claim.statement[-10:] for claim in run.claims} == {"(ImageNet)"}
    assert len(json.loads((run.path / "config.json").read_text())["figures"]) == 2


def test_what_is_no_folder_of_images_is_refused(folder, monkeypatch):
    monkeypatch.delenv("MIRRORJAX_DATA", raising=False)
    assert find_imagenet() is None
    monkeypatch.setenv("MIRRORJAX_DATA", str(folder.parent))
    assert find_imagenet() == folder
    with pytest.raises(ValueError, match=r"there is no folder .*train: a folder of ImageNet has train/CLASS"):
        list_images(folder / "train")
    (folder / "val" / "n03").mkdir()
    with pytest.raises(ValueError, match=r"val has classes that .*train does not have: n03"):
        list_images(folder)
    (folder / "train" / "n03").mkdir()
    with pytest.raises(ValueError, match="n03 has no images"):
        list_images(folder)


def test_a_damaged_image_ends_training_with_its_path(folder, tuning):
    _, task, size = tuning
    for path in (folder / "train" / "n01").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"n01/\d.JPEG is not a whole image"):
        switching.solve(size, task, vision.seeds_from(0, SEEDS))
