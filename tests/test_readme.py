"""The README's Python runs when it is pasted in order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_blocks_run_one_after_the_other(tmp_path: Path):
    """In one fresh interpreter, in an empty folder, with warnings as errors for our own package only."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:mirrorjax", "-c", "\n".join(blocks())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()
    assert (tmp_path / "runs" / "first").is_dir()


def test_every_block_of_python_is_run():
    """A block with a word after `python` would be left out."""
    assert len(blocks()) == README.read_text().count("```python") >= 3
