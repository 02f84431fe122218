"""Runs that were interrupted: trainings of networks go on from their checkpoints, and pretrained weights are kept."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import run_main
from rich.console import Console
from vision_task import CONFIG, few_images, new_folder

import mirrorjax as mj
from mirrorjax.cli import commands
from mirrorjax.experiments import Experiment, Setting
from mirrorjax.experiments.networks import pretrained, vit_start
from mirrorjax.experiments.networks.vision import Training
from mirrorjax.nn.training import train

SETTING = Setting("quick", 0, 64)
CONSOLE = Console(file=io.StringIO())
calls = []


def lane(seed):
    return optax.sgd(0.1), jnp.ones(2), jax.random.key(seed)


def batch(key):
    return jax.random.normal(key, (3, 2))


def loss(weights, points):
    return jnp.mean((points - weights[None]) ** 2)


def after_records(report):
    """Interrupts the first run as if by Ctrl-C, after the first lane and two of three records of the second."""
    calls.append(report.ended)
    if len(calls) == 6:  # four of each lane: its records, and its end
        raise KeyboardInterrupt


def trained(folder, setting, callback=None):
    dataset = train(
        lane,
        {"seed": [0, 1, 2]},
        loss=loss,
        batch=batch,
        steps=6,
        every=2,
        chunk=1,
        checkpoint_every=0.0,
        callback=callback,
        **folder.checkpoints("training"),
    )
    folder.save_dataset("training", dataset)
    folder.claim("The training ended.", paper="-", ours="yes", holds=True)


def interrupted(folder, setting):
    trained(folder, setting, callback=after_records)


def loss_of(path):
    import xarray as xr

    with xr.open_dataset(path / "training.nc", engine="h5netcdf") as dataset:
        return dataset.loss.values


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that was interrupted in the middle of its training."""
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        mj.experiments.reproduce(Experiment("few", "", interrupted), tmp_path / "run", SETTING, CONSOLE)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["state"] == "interrupted"
    return tmp_path / "run"


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(stopped, tmp_path):
    few = Experiment("few", "", trained)
    reached = []
    again = Experiment(
        "few", "", lambda folder, setting: trained(folder, setting, lambda report: reached.append(report))
    )
    folder = mj.experiments.reproduce(again, stopped, SETTING, CONSOLE, resume=True)
    assert len(reached) == 12 - 6  # the rest of the second lane, and the third
    mj.experiments.reproduce(few, tmp_path / "whole", SETTING, CONSOLE)
    np.testing.assert_array_equal(loss_of(stopped), loss_of(tmp_path / "whole"))
    assert [claim.holds for claim in folder.claims] == [True]
    assert not (stopped / "checkpoints").exists()  # a finished run needs none
    with pytest.raises(ValueError, match="run holds a finished run; start another without --resume"):
        mj.experiments.reproduce(few, stopped, SETTING, CONSOLE, resume=True)


def test_another_run_is_not_resumed(stopped, tmp_path):
    few = Experiment("few", "", trained)
    with pytest.raises(
        ValueError, match="run holds another run: seed is 0 there; resume with the options it began with"
    ):
        mj.experiments.reproduce(few, stopped, dataclasses.replace(SETTING, seed=1), CONSOLE, resume=True)
    with pytest.raises(ValueError, match=r"nowhere holds no run to go on with: it has no readable config.json"):
        mj.experiments.reproduce(few, tmp_path / "nowhere", SETTING, CONSOLE, resume=True)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere of runs to go on with"):
        mj.experiments.reproduce_all([few], tmp_path / "nowhere", "quick", 0, 64, CONSOLE, resume=True)


def test_all_skips_what_is_finished(tmp_path):
    done = []
    first = Experiment("first", "", lambda folder, setting: done.append("first"))
    second = Experiment("second", "", lambda folder, setting: (done.append("second"), 1 / (len(done) - 2))[0])
    assert mj.experiments.reproduce_all([first, second], tmp_path / "all", "quick", 0, 64, CONSOLE) == ["second"]
    resumed = mj.experiments.reproduce_all([first, second], tmp_path / "all", "quick", 0, 64, CONSOLE, resume=True)
    assert (resumed, done) == ([], ["first", "second", "second"])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_weights_are_made_once_and_again_when_damaged(cache):
    made = []

    def kept(recipe):
        def save(model, path):
            path.write_bytes(model)

        def load(path, sha256):
            content = path.read_bytes()
            if pretrained._sum(content) != sha256:
                raise ValueError("damaged")
            return content

        return pretrained.kept_weights(
            "words",
            recipe,
            train=lambda: made.append(recipe) or b"weights",
            save=save,
            load=load,
        )

    first = kept({"steps": 1})
    assert (first.model, first.was_found, first.path.parent) == (b"weights", False, cache)
    assert kept({"steps": 1}) == first._replace(was_found=True)
    assert kept({"steps": 2}).path != first.path  # another recipe is another file
    assert len(made) == 2
    for damage in (
        lambda: first.path.write_bytes(b"weigh"),
        lambda: first.path.with_name(f"{first.path.name}.sha256").unlink(),
    ):
        damage()
        assert kept({"steps": 1}) == first
    assert len(made) == 4


def test_the_pretrained_vit_is_found_again_with_its_bits(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(vit_start, "cifar10", lambda: few_images())
    training = Training(dataclasses.replace(CONFIG, layers=1), 3, 8, 1)
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam divides a float by the count of steps
        first, second = (
            vit_start.on_second_half(new_folder(tmp_path, name), training, training, 0.01) for name in ("one", "two")
        )
    jax.tree.map(np.testing.assert_array_equal, first.pretrained, second.pretrained)
    made, found = (
        (tmp_path / name / "pretrained.csv").read_text().splitlines()[1].rsplit(",", 1) for name in ("one", "two")
    )
    assert (made[0], made[1], found[1]) == (found[0], "made", "found")
    assert first.images == 12  # every second one of 24
    weights, _ = first.start(jnp.asarray(0))
    assert np.any(np.asarray(weights["head"]["kernel"]))  # a fresh head is zero


def test_the_command_resumes_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []

    def twice(folder, setting):
        started.append(folder.path)
        if len(started) == 1:
            raise KeyboardInterrupt
        folder.claim("The second time it ended.", paper="-", ours="yes", holds=True)

    monkeypatch.setattr(commands, "EXPERIMENTS", {"few": Experiment("few", "", twice)})
    command = ("reproduce", "few", "--preset", "quick")
    done = run_main(monkeypatch, *command, "--resume")
    assert done.returncode == 2
    assert "there is no run in runs/few-quick-*" in " ".join(done.stderr.split())
    done = run_main(monkeypatch, *command)
    assert done.returncode == 130
    assert "--resume --out" in " ".join(done.stderr.split())
    (tmp_path / "runs" / "few-quick-00000000-000000").mkdir()  # an older one
    assert run_main(monkeypatch, *command, "--resume").returncode == 0
    assert started[0] == started[1]
