"""The command line in this process, where jax is loaded: a process of its own takes seconds."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from mirrorjax.cli import ending, main


@dataclass(frozen=True)
class Done:
    """The exit status of a command and its printed texts."""

    returncode: int
    stdout: str
    stderr: str


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Done:
    """Runs `mirrorjax ARGUMENTS` on a terminal of 100 columns."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with redirect_stdout(out), redirect_stderr(err), monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        patch.setenv("MIRRORJAX_COMPILATION_CACHE", "off")  # it would be that of this process from here on
        patch.setattr(sys, "argv", ["mirrorjax", *arguments])
        patch.setattr(ending, "end_process", sys.exit)
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    assert isinstance(status, int)
    return Done(status, out.getvalue(), err.getvalue())
