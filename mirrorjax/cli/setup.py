"""Preparations that several commands share: precision, files that may be written, JSON of run folders."""

import json
from pathlib import Path
from typing import Any

from ..experiments.core.folders import exists
from .ending import fail, tell


def set_precision(float32: bool) -> None:
    """Sets up jax for a command: its precision, and the cache of compiled programs where it is wanted."""
    import jax

    from ..compilation import is_wanted, open_cache

    jax.config.update("jax_enable_x64", not float32)
    if not is_wanted():
        return
    try:
        open_cache(None)
    except OSError as error:
        tell(f"Compiled programs are not kept: {error}", stderr=True)


def require_new_files(outs: list[Path]) -> None:
    """Ends the command if a file of `--out` exists, or its folder does not."""
    for out in outs:
        if exists(out):
            fail(f"the file {out} exists and is not overwritten; choose another with --out")
        if not out.parent.is_dir():
            fail(f"the folder {out.parent} of --out does not exist; make it, or choose another")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON mapping in a file of a run folder; ends the command where the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fail(f"{path} is not JSON, as mirrorjax writes it: {error}")
    if not isinstance(content, dict):
        fail(f"{path} is not as mirrorjax writes it: it must be a JSON mapping, got {content!r}")
    return content
