"""The dry run of benchmarks/gpu.sh: what it would run on a machine with a GPU exists."""

import re
import subprocess
from pathlib import Path

import pytest

from mirrorjax.experiments.table import EXPERIMENTS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def commands() -> list[str]:
    run = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


def test_every_step_has_a_limit_of_time(commands):
    assert len(commands) == 8
    for line in commands:
        assert re.match(r"== [a-z-]+, at most \d+ s: python3 -m ", line), line


def test_files_of_tests_and_benchmarks_exist(commands):
    files = [word for line in commands for word in line.split() if word.endswith(".py")]
    assert len(files) == 8
    for file in files:
        assert (ROOT / file).is_file(), file


def test_experiments_have_the_gpu_preset(commands):
    named = [line.split("reproduce ")[1].split()[0] for line in commands if "reproduce" in line]
    assert set(named) == {name for name, each in EXPERIMENTS.items() if "gpu" in each.presets}
