"""What the tests of experiments share: a run in a folder of its own."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mirrorjax.experiments import EXPERIMENTS, RunFolder, Setting


@pytest.fixture
def run_quick(tmp_path: Path) -> Callable[..., RunFolder]:
    """Run an experiment by name, at its quick preset and usual seed."""

    def run(name: str, bits: int = 64) -> RunFolder:
        experiment = EXPERIMENTS[name]
        setting = Setting("quick", experiment.seed, bits)
        folder = RunFolder(tmp_path / name, name, setting, Console(file=io.StringIO()))
        experiment.run(folder, setting)
        return folder

    return run
