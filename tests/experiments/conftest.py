"""Fixtures of the tests of experiments: a run in a folder of its own."""

import io
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from command_line import Done, run_main
from jaxtyping import install_import_hook
from matplotlib.figure import Figure
from rich.console import Console
from typechecks import CHECKS

from mirrorjax.experiments import EXPERIMENTS, RunFolder, Setting
from mirrorjax.experiments.core import run as core_run

# The modules that import flax: other tests do without them. Their annotations are checked, too.
with install_import_hook("mirrorjax", CHECKS):
    import mirrorjax.experiments.networks.lora_tasks
    import mirrorjax.experiments.networks.lr_schedule
    import mirrorjax.experiments.networks.pilot
    import mirrorjax.experiments.networks.vit
    import mirrorjax.experiments.networks.vit_scratch  # noqa: F401


@pytest.fixture(autouse=True)
def keep_compiled_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`reproduce_all` drops what was compiled after each experiment: all later tests would compile it again."""
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


@pytest.fixture(name="mirrorjax")
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs `main` in this process, in an empty folder, on a terminal of 100 columns."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_main(monkeypatch, *arguments)


@pytest.fixture
def run_quick(tmp_path: Path) -> Callable[..., RunFolder]:
    """Run an experiment by name, at its quick preset and usual seed."""
    return lambda name, bits=64: run_in(tmp_path, name, bits)


@pytest.fixture(scope="session")
def quick_separable(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The cheapest experiment, which several tests look at."""
    return run_in(tmp_path_factory.mktemp("quick"), "separable")


def draw(figure: Figure, path: Path) -> None:
    """Draws all of a figure, its panels where they are."""
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=40)


def run_in(parent: Path, name: str, bits: int = 64) -> RunFolder:
    experiment = EXPERIMENTS[name]
    setting = Setting("quick", experiment.seed, bits)
    folder = RunFolder(parent / name, name, setting, Console(file=io.StringIO()), experiment.summary)
    with pytest.MonkeyPatch.context() as patch:
        # A figure of eight panels takes a second a file, most of it to lay out the panels. Whole figures, in both
        # formats, are looked at by the tests of reports and of plots.
        patch.setattr(core_run, "FIGURES", ("png",))
        patch.setattr(core_run.plot, "save", draw)
        experiment.load()(folder, setting)
    folder.require_shown()
    folder.finish("finished")
    return folder
