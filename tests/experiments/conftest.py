"""What the tests of experiments share: a run in a folder of its own, and its claims by statement."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mirrorjax.experiments import EXPERIMENTS, RunFolder, Setting


@pytest.fixture
def run_quick(tmp_path: Path) -> Callable[[str], RunFolder]:
    """Run an experiment by name, at its quick preset and usual seed, in float64."""

    def run(name: str) -> RunFolder:
        experiment = EXPERIMENTS[name]
        setting = Setting("quick", experiment.seed, 64)
        folder = RunFolder(tmp_path / name, name, setting, Console(file=io.StringIO()))
        experiment.run(folder, setting)
        return folder

    return run
