"""Compares the store's checkpoints with orbax on large states: seconds to save and restore, peak memory, bytes.

    python benchmarks/checkpoints.py [--sizes 0.1 0.5 1.0] [--runs 3]

Every measurement has a process of its own, so that its peak memory is its own. Memory is counted beyond that of the
process with the state in it: a save or a restore that copies the state once costs 1 x its size.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from mirrorjax.runs.engine import Checkpoint
from mirrorjax.runs.store import Folder

LEAVES = 100
GIGA = 1e9


def state_of(gigabytes: float) -> list[jax.Array]:
    """Float32 arrays of normal numbers, which no file format could compress."""
    rng, size = np.random.default_rng(0), int(gigabytes * GIGA / 4 / LEAVES)
    return [jnp.asarray(rng.standard_normal(size, np.float32)) for _ in range(LEAVES)]


class Store:
    """`mirrorjax.runs`: one npz file with its SHA-256 in a manifest."""

    def __init__(self, path: Path):
        self._checkpoint = Checkpoint(Folder(path, {}, process=0, resume=True), "group", 0.0)

    def save(self, state: Any) -> None:
        self._checkpoint.offer(state, now=True)

    def restore(self, template: Any) -> Any:
        return self._checkpoint.find(template)


class Orbax:
    """`orbax.checkpoint.CheckpointManager`, the newest state kept."""

    def __init__(self, path: Path):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._ocp, self._manager, self._step = ocp, ocp.CheckpointManager(path.absolute(), options=options), 0

    def save(self, state: Any) -> None:
        self._step += 1
        self._manager.save(self._step, args=self._ocp.args.StandardSave(_numbered(state)))

    def restore(self, template: Any) -> Any:
        return self._manager.restore(self._step, args=self._ocp.args.StandardRestore(_numbered(template)))


def _numbered(leaves: list) -> dict:
    return {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}


WAYS: dict[str, Callable[[Path], Any]] = {"store": Store, "orbax": Orbax}


class PeakMemory:
    """The largest resident memory of this process inside the block, in bytes beyond that at its start."""

    def __enter__(self) -> "PeakMemory":
        self._process, self._stop = psutil.Process(), threading.Event()
        self._start = self._process.memory_info().rss
        self.bytes = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._start)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """The seconds of an action and the gigabytes it took at its peak."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        jax.block_until_ready(action())
        seconds = time.perf_counter() - start
    return seconds, memory.bytes / GIGA


def measure(way: str, gigabytes: float, runs: int) -> dict[str, Any]:
    """Saves and restores one state several times in a fresh folder."""
    state = jax.block_until_ready(state_of(gigabytes))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run"
        keeper = WAYS[way](path)
        keeper.save(state[:1])  # imports, threads and the folder
        saves = [timed(lambda: keeper.save(state)) for _ in range(runs)]
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        restores = [timed(lambda: keeper.restore(state)) for _ in range(runs)]
    return {"save": saves, "restore": restores, "bytes": size}


def main() -> None:
    """Prints the table, or with `--one` a single measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.5, 1.0], help="gigabytes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.sizes[0], chosen.runs)))
        return
    table = Table(
        "GB", "way", "save s (min / median)", "restore s (min / median)", "save + GB", "restore + GB", "file GB"
    )
    for size in chosen.sizes:
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, "--sizes", str(size), "--runs", str(chosen.runs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            table.add_row(f"{size:g}", way, *_cells(json.loads(done.stdout.splitlines()[-1])))
    Console(width=120).print(table)


def _cells(found: dict[str, Any]) -> list[str]:
    seconds = {kind: [second for second, _ in found[kind]] for kind in ("save", "restore")}
    peaks = {kind: max(peak for _, peak in found[kind]) for kind in ("save", "restore")}
    return [
        *(f"{min(each):.2f} / {statistics.median(each):.2f}" for each in seconds.values()),
        *(f"{peak:.2f}" for peak in peaks.values()),
        f"{found['bytes'] / GIGA:.2f}",
    ]


if __name__ == "__main__":
    main()
