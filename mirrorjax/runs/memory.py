"""Computes before a run how many lanes fit into memory at a time, and refuses results that fit nowhere."""

import shutil
from pathlib import Path

import jax
import numpy as np
import psutil
from jaxtyping import PyTree

from .devices import Devices

# Copies of a lane's state that a step holds at once; measured for the stages, trial state and buffers of a solver.
COPIES = 12
# A larger batch was not faster per lane in benchmarks/README.md.
LARGEST = {"cpu": 64}
LARGEST_ELSEWHERE = 1024


def size_of(shapes: PyTree) -> int:
    """Sums the bytes of all arrays, or shapes of arrays, of a pytree."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def choose_slots(lane_bytes: int, lanes: int, devices: Devices) -> int:
    """Returns how many lanes to compute at a time: the fastest batch that fits into half of the free memory.

    **Raises:** `ValueError` if not even one lane fits.
    """
    fitting = int(_free(devices) // 2 // max(lane_bytes * COPIES, 1))
    if fitting < 1:
        raise ValueError(
            f"one lane needs about {_text(lane_bytes * COPIES)} while it is computed, but {_text(_free(devices))} are"
            " free; save fewer times, keep smaller metrics, or use float32"
        )
    largest = LARGEST.get(devices[0].platform, LARGEST_ELSEWHERE) * len(devices)
    return min(fitting, largest, lanes)


def check_room(lane_bytes: int, lanes: int, folder: Path | None) -> None:
    """Raises `ValueError`, with sizes and advice, if the results do not fit into memory, or into the given folder."""
    needed = lane_bytes * lanes
    if folder is None:
        free, place = psutil.virtual_memory().available, "of memory that are free"
        advice = 'pass store="runs/name" to keep them on disk, save fewer times, or keep smaller metrics'
    else:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free, place = shutil.disk_usage(existing).free, f"that are free at {existing}"
        advice = "choose a store on a larger disk, save fewer times, or keep smaller metrics"
    if needed > 0.9 * free:
        raise ValueError(
            f"the results of {lanes} lanes take {_text(needed)} ({_text(lane_bytes)} a lane), more than nine tenths of "
            f"the {_text(free)} {place}; {advice}"
        )


def _free(devices: Devices) -> float:
    """Sums the free bytes of all the devices."""
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
