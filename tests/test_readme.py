"""The README's Python runs when pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.split("\n", 1)[0])
def test_block_runs(block: str, tmp_path: Path):
    """In a fresh interpreter, in an empty folder, with warnings as errors for our own package only."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:mirrorjax", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()


def test_there_is_a_block():
    assert len(blocks()) >= 1
