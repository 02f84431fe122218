"""The table of experiments, and experiments of one's own: by a function, by its place, by their name."""

import io
import sys

import pytest
from rich.console import Console

import mirrorjax as mj

WORDS = """
def run(folder, setting):
    folder.save_table("settings", [{"preset": setting.preset, "seed": setting.seed, "bits": setting.bits}])
    folder.claim("The run has a setting.", paper="-", ours=setting.preset, holds=True)
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An experiment in a module of its own, which is imported when the experiment runs."""
    (tmp_path / "outside_words.py").write_text(WORDS)
    monkeypatch.syspath_prepend(tmp_path)
    yield mj.experiments.Experiment("words", "It has words.", "outside_words:run", seed=4)
    sys.modules.pop("outside_words", None)


def test_an_experiment_of_one_s_own_runs_in_a_folder_and_has_a_report(outside, tmp_path):
    screen = io.StringIO()
    folder = mj.experiments.reproduce(outside, tmp_path / "run", console=Console(file=screen, width=120))
    assert [claim.holds for claim in folder.claims] == [True]
    assert (folder.path / "settings.csv").read_text() == "preset,seed,bits\npaper,4,64\n"
    assert "The run has a setting." in (folder.path / "report.html").read_text()
    assert "shown: The run has a setting." in screen.getvalue()


def test_a_registered_experiment_runs_by_its_name(outside, tmp_path):
    mj.experiments.register_experiment(outside)
    mj.experiments.register_experiment(outside)  # the same again changes nothing
    setting = mj.experiments.Setting("quick", 1, 64)
    assert mj.experiments.reproduce("words", tmp_path / "run", setting, Console(quiet=True)).claims
    with pytest.raises(ValueError, match="there is an experiment 'words' already"):
        mj.experiments.register_experiment(mj.experiments.Experiment("words", "Others.", "others:run"))
    del mj.experiments.EXPERIMENTS["words"]


def test_what_cannot_run_is_refused(outside, tmp_path):
    with pytest.raises(ValueError, match="must be a function or \"module:function\", got 'words'"):
        mj.experiments.Experiment("words", "No place.", "words")
    with pytest.raises(ValueError, match="needs at least one preset"):
        mj.experiments.Experiment("words", "No size.", "words:run", presets=())
    with pytest.raises(ValueError, match="words has no preset 'gpu'; it has: paper, quick"):
        mj.experiments.reproduce(outside, tmp_path / "run", mj.experiments.Setting("gpu", 0, 64))
    with pytest.raises(ValueError, match="there is no experiment 'nothing'; there are: matrix-sensing"):
        mj.experiments.reproduce("nothing", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_one_line_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)  # as if it were not installed
    (tmp_path / "outside_network.py").write_text("import flax")
    monkeypatch.syspath_prepend(tmp_path)
    network = mj.experiments.Experiment("network", "It needs flax.", "outside_network:run", extra="nn")
    with pytest.raises(ValueError, match=r"network needs flax, which is not installed; pip install 'mirrorjax\[nn\]'"):
        mj.experiments.reproduce(network, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["convergence", "deep", "lasso-path", "separable"])
def test_what_needs_float64_says_so(run_quick, name):
    with pytest.raises(ValueError, match="leave out --float32"):
        run_quick(name, bits=32)
