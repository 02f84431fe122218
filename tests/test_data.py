"""Data sets are found in their folders, refused where damaged, and never half-written; without a network."""

import dataclasses
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import requests
import scipy.io
import sklearn.datasets

from mirrorjax import data

GIVEN = os.environ.get("MIRRORJAX_DATA")  # before the fixture below hides it
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No folder, an empty cache, and a network that refuses."""
    monkeypatch.delenv("MIRRORJAX_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    serve(monkeypatch, requests.ConnectionError("no route"))


def serve(monkeypatch, content: bytes | Exception, part: int | None = None) -> list[str]:
    """Let every download give this content, or fail after its first `part` bytes; returns the list of addresses."""
    asked = []

    def download(url, output_file, pooch):
        asked.append(url)
        if isinstance(content, Exception):
            raise content
        Path(output_file).write_bytes(content[:part])
        if part is not None:
            raise requests.ConnectionError("cut")

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar: download)
    return asked


def expect(monkeypatch, name: str, content: bytes) -> data.Source:
    """Make this content the right one."""
    source = dataclasses.replace(getattr(data, name), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(data, name, source)
    return source


def cached(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def refusal(load) -> str:
    """The message of the ValueError, which is one line."""
    with pytest.raises(ValueError, match=r"MIRRORJAX_DATA|get it again") as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder(tmp_path, monkeypatch, source: data.Source) -> Path:
    """The path in a folder, named by the variable, where the file of this source belongs."""
    path = tmp_path / "data" / source.local
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("MIRRORJAX_DATA", str(tmp_path / "data"))
    return path


def test_the_folder_comes_first_and_is_named(tmp_path, monkeypatch):
    content = b"First Citizen:\nBefore we proceed any further"
    path = folder(tmp_path, monkeypatch, expect(monkeypatch, "TINY_SHAKESPEARE", content))
    path.write_bytes(content)
    text = data.tiny_shakespeare()
    assert text.characters.tobytes() == content
    assert text.origin == str(path)
    assert cached(tmp_path) == []


def test_a_download_is_kept_and_used_again(tmp_path, monkeypatch):
    content = b"speak, speak"
    source = expect(monkeypatch, "TINY_SHAKESPEARE", content)
    asked = serve(monkeypatch, content)
    first, second = data.tiny_shakespeare(), data.tiny_shakespeare()
    assert asked == [source.url]
    assert first.origin == second.origin == str(tmp_path / "cache" / "mirrorjax" / "tinyshakespeare.txt")
    assert first.characters.tobytes() == content
    assert cached(tmp_path) == ["tinyshakespeare.txt"]


def test_a_download_with_a_wrong_hash_is_refused_and_not_kept(tmp_path, monkeypatch):
    serve(monkeypatch, b"something else")
    message = refusal(data.olivetti_faces)
    assert "gave a file with a wrong SHA-256" in message
    assert "https://ndownloader.figshare.com/files/5976027" in message
    assert cached(tmp_path) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    content = b"0123456789"
    expect(monkeypatch, "TINY_SHAKESPEARE", content)
    serve(monkeypatch, content, part=5)
    assert "failed (ConnectionError)" in refusal(data.tiny_shakespeare)
    assert cached(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_replaced_or_refused(tmp_path, monkeypatch):
    content = b"whole"
    source = expect(monkeypatch, "TINY_SHAKESPEARE", content)
    path = tmp_path / "cache" / "mirrorjax" / source.cached
    path.parent.mkdir(parents=True)
    path.write_bytes(b"who")
    assert f"nor whole in the cache as {path}" in refusal(data.tiny_shakespeare)
    serve(monkeypatch, content)
    assert data.tiny_shakespeare().characters.tobytes() == content


@pytest.mark.parametrize(
    ("load", "source"),
    [
        (data.tiny_shakespeare, data.TINY_SHAKESPEARE),
        (data.olivetti_faces, data.OLIVETTI),
        (data.cifar10, data.CIFAR10),
    ],
    ids=["text", "faces", "images"],
)
def test_no_folder_and_no_network_names_file_and_remedy(load, source, tmp_path, monkeypatch):
    for words in (source.local, source.url, source.cached, "the variable MIRRORJAX_DATA is not set", "set MIRRORJAX_"):
        assert words in refusal(load)
    monkeypatch.setenv("MIRRORJAX_DATA", str(tmp_path))
    assert f"neither in the folder {tmp_path}" in refusal(load)
    monkeypatch.setenv("MIRRORJAX_DATA", str(tmp_path / "missing"))
    assert "which is not a folder; correct it or unset it" in refusal(load)


def test_a_text_cut_short_is_refused(tmp_path, monkeypatch):
    path = folder(tmp_path, monkeypatch, expect(monkeypatch, "TINY_SHAKESPEARE", b"to be or not to be"))
    path.write_bytes(b"to be")
    message = refusal(data.tiny_shakespeare)
    assert f"{path} is not the whole file" in message
    assert "it has 5 bytes" in message


def arrays(**changed) -> bytes:
    """The folder's form of the faces, as a file."""
    images = rng.integers(0, 243, (400, 64, 64), dtype=np.uint8)
    images[0, 0, :2] = 0, 242
    content = {"images": images, "target": np.repeat(np.arange(40, dtype=np.uint8), 10)} | changed
    file = io.BytesIO()
    np.savez_compressed(file, **{name: value for name, value in content.items() if value is not None})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (arrays()[:100_000], "it is truncated or damaged"),
        (arrays()[:300_000] + b"\0" * 1000 + arrays()[301_000:], "it is truncated or damaged"),
        (b"", "it is truncated or damaged"),
        (arrays(target=None), "it is truncated or damaged (KeyError"),
        (arrays(images=np.zeros((400, 32, 32), np.uint8)), "images must be uint8 of shape (400, 64, 64)"),
        (arrays(target=np.zeros(400)), "target must be uint8 of shape (400,), got float64"),
    ],
    ids=["cut", "overwritten", "empty", "incomplete", "shape", "dtype"],
)
def test_damaged_faces_are_refused_by_name(content, words, tmp_path, monkeypatch):
    path = folder(tmp_path, monkeypatch, data.OLIVETTI)
    path.write_bytes(content)
    message = refusal(data.olivetti_faces)
    assert message.startswith(str(path))
    assert words in message


def test_both_forms_of_the_faces_are_those_of_scikit_learn(tmp_path, monkeypatch):
    """The upstream file is stored by columns; scikit-learn's own reader of it is the oracle."""
    content = arrays()
    images = np.load(io.BytesIO(content))["images"]
    file = io.BytesIO()
    scipy.io.savemat(file, {"faces": images.transpose(0, 2, 1).reshape(400, -1).T})
    expect(monkeypatch, "OLIVETTI", file.getvalue())
    serve(monkeypatch, file.getvalue())
    downloaded = data.olivetti_faces()

    def fetch(remote, dirname, **options):
        path = Path(dirname) / "olivettifaces.mat"
        path.write_bytes(file.getvalue())
        return path

    monkeypatch.setattr("sklearn.datasets._olivetti_faces._fetch_remote", fetch)
    reference: Any = sklearn.datasets.fetch_olivetti_faces(data_home=str(tmp_path / "sklearn"))
    folder(tmp_path, monkeypatch, data.OLIVETTI).write_bytes(content)
    local = data.olivetti_faces()
    np.testing.assert_array_equal(local.images, downloaded.images)
    np.testing.assert_array_equal(local.target, downloaded.target)
    # One division, rounded to float32 once here and in float32 there.
    np.testing.assert_allclose(downloaded.images, reference["images"], rtol=2e-7)
    np.testing.assert_array_equal(downloaded.target, reference["target"])
    assert local.origin.endswith(".npz")
    assert downloaded.origin.endswith(".mat")


def test_the_whole_of_cifar10_and_its_subset(tmp_path, monkeypatch):
    rows = rng.integers(0, 256, (6, 4, 3 * 32 * 32), dtype=np.uint8)
    labels = rng.integers(0, 10, (6, 4))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
            content = pickle.dumps({b"data": rows[i], b"labels": labels[i].tolist()})
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    expect(monkeypatch, "CIFAR10", file.getvalue())
    serve(monkeypatch, file.getvalue())
    whole = data.cifar10()
    assert whole.x_train.shape == (20, 32, 32, 3)
    # A row holds the red, then the green, then the blue picture, each by lines.
    assert whole.x_train[5, 2, 7, 1] == rows[1, 1, 1024 + 2 * 32 + 7]
    np.testing.assert_array_equal(whole.y_test, labels[5])
    path = folder(tmp_path, monkeypatch, data.CIFAR10)
    np.savez(path, **{name: getattr(whole, name)[:3] for name in ("x_train", "y_train", "x_test", "y_test")})
    subset = data.cifar10()
    np.testing.assert_array_equal(subset.x_test, whole.x_test[:3])
    assert subset.origin == str(path)
    np.savez(path, x_train=whole.x_train, y_train=whole.y_train[:3], x_test=whole.x_test, y_test=whole.y_test)
    assert "its x_train must be uint8 of shape (3, 32, 32, 3)" in refusal(data.cifar10)


@pytest.mark.skipif(GIVEN is None, reason="MIRRORJAX_DATA names no folder")
def test_the_real_files(monkeypatch):
    monkeypatch.setenv("MIRRORJAX_DATA", str(GIVEN))
    text = data.tiny_shakespeare().characters
    assert (text.size, np.unique(text).size) == (1_115_394, 65)
    faces = data.olivetti_faces()
    assert (faces.images.min(), faces.images.max()) == (0.0, 1.0)
    assert np.all(np.bincount(faces.target) == 10)
    images = data.cifar10()
    assert images.x_train.shape[1:] == images.x_test.shape[1:] == (32, 32, 3)
    assert set(np.unique(images.y_train)) == set(range(10))


def test_weights_and_ranks_are_files_of_the_right_hash(tmp_path, monkeypatch):
    for name, find in (("GPT2_RANKS", data.gpt2_ranks), ("GPT2_WEIGHTS", data.gpt2_weights)):
        path = tmp_path / "data" / getattr(data, name).local
        path.parent.mkdir(parents=True)
        monkeypatch.setenv("MIRRORJAX_DATA", str(tmp_path / "data"))
        path.write_bytes(b"cut")
        message = refusal(find)
        assert f"{path} is not the whole file of {getattr(data, name).name}: it has 3 bytes" in message
        expect(monkeypatch, name, b"cut")
        assert find() == path


def test_a_hash_not_known_beforehand_is_that_of_the_first_download(tmp_path, monkeypatch):
    serve(monkeypatch, b"weights")
    path = data.vit_weights()
    assert path.read_bytes() == b"weights"
    assert cached(tmp_path) == ["vit-tiny-16-augreg.npz", "vit-tiny-16-augreg.npz.sha256"]
    assert data.vit_weights() == path
    path.write_bytes(b"other weights")
    assert "another SHA-256" in refusal(data.vit_weights)
    path.unlink()
    serve(monkeypatch, b"replaced upstream")
    assert "another SHA-256" in refusal(data.vit_weights)
    mine = folder(tmp_path, monkeypatch, data.VIT_WEIGHTS)
    mine.write_bytes(b"fine-tuned")
    assert data.vit_weights() == mine
    assert [file.name for file in mine.parent.iterdir()] == [mine.name]


def test_the_sorter_is_in_the_folder_only(tmp_path, monkeypatch):
    assert "https://github.com/bbycroft/llm-viz has it in another form only; set" in refusal(data.gpt_nano_sort)
    folder(tmp_path, monkeypatch, data.GPT_NANO_SORT).write_bytes(b"")
    assert "it has 0 bytes" in refusal(data.gpt_nano_sort)
