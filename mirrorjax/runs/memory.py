"""What a sweep needs, before it starts: how many lanes fit at a time, and whether the results have a place."""

import shutil
from pathlib import Path

import jax
import numpy as np
import psutil
from jaxtyping import PyTree

from .devices import Devices

# Copies of a lane's carried state that a step holds at once: stages of the solver, the trial state, save buffers.
COPIES = 12
# Beyond these a larger batch was not measured to be faster a lane: benchmarks/README.md.
LARGEST = {"cpu": 64}
LARGEST_ELSEWHERE = 1024


def size_of(shapes: PyTree) -> int:
    """Bytes of all arrays of a pytree, or of their shapes."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def choose_slots(lane_bytes: int, lanes: int, devices: Devices) -> int:
    """How many lanes to solve at a time: as many as pay, and fit into half of the memory that is free.

    **Raises:** `ValueError` when not even one fits.
    """
    fitting = int(_free(devices) // 2 // max(lane_bytes * COPIES, 1))
    if fitting < 1:
        raise ValueError(
            f"one lane needs about {_text(lane_bytes * COPIES)} while it is solved, but {_text(_free(devices))} are"
            " free; save fewer times, keep smaller metrics, or use float32"
        )
    largest = LARGEST.get(devices[0].platform, LARGEST_ELSEWHERE) * len(devices)
    return min(fitting, largest, lanes)


def check_room(lane_bytes: int, lanes: int, folder: Path | None) -> None:
    """Refuse a sweep whose results fit neither into memory nor, if it has one, into its folder.

    **Raises:** `ValueError` with the sizes and what helps.
    """
    needed = lane_bytes * lanes
    if folder is None:
        free, place = psutil.virtual_memory().available, "of memory are free"
        advice = 'pass store="runs/name" to keep them on disk, save fewer times, or keep smaller metrics'
    else:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free, place = shutil.disk_usage(existing).free, f"are free at {existing}"
        advice = "choose a store on a larger disk, save fewer times, or keep smaller metrics"
    if needed > 0.9 * free:
        raise ValueError(
            f"the results of {lanes} lanes take {_text(needed)} ({_text(lane_bytes)} a lane), but {_text(free)}"
            f" {place}; {advice}"
        )


def _free(devices: Devices) -> float:
    """Bytes free on all the devices."""
    stats = [device.memory_stats() for device in devices]
    if all(each and "bytes_limit" in each for each in stats):
        return float(sum(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats if each))
    return float(psutil.virtual_memory().available)


def _text(size: int | float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
