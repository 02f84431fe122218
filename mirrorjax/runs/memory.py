"""Computes before a run how many lanes fit into memory at a time, and refuses results that fit nowhere."""

import shutil
from pathlib import Path

import jax
import numpy as np
import psutil
from jaxtyping import PyTree

from .dataset import About
from .devices import Devices

# Copies of a lane's state that a step holds at once: its stages, trial state and buffers. Measured for 1e6 numbers a
# lane: 12.6 for the primal flow, 12.9 for the mirror flow, 4.8 for RKC, whose state holds its stages.
COPIES = 13
# Copies of the results of a group on the host: a step replaces them by a copy with those of the lanes that have ended.
# Measured: 2.7.
GROUP_COPIES = 3
# On a CPU a larger batch was not faster a lane; on one GPU a batch of 4096 took half the time a lane of one of 1024.
LARGEST = {"cpu": 64}
LARGEST_ELSEWHERE = 4096
# Of light lanes batches of 128 took 0.92 to 0.95 of the time, those of 256 0.82 to 0.86, as long as there are several:
# in a run of fewer than eight the slots that idle at its end cost more. Measured on two cores, by W2, W5 logs and W6
# of `benchmarks/workloads.py`.
LARGEST_OF_LIGHT = 256
# Bytes of a lane beside its results: its number, and the reference to the name of a status in the dataset.
POINTER = 8


def size_of(shapes: PyTree) -> int:
    """Sums the bytes of all arrays, or shapes of arrays, of a pytree."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def choose_slots(
    lane_bytes: int,
    lanes: int,
    devices: Devices,
    *,
    result_bytes: int = 0,
    batches: int = 1,
    stored: bool = True,
    is_light: bool = False,
) -> int:
    """Returns how many lanes to compute at a time: the fastest batch that fits into half of the free memory.

    What is free is what the results of all lanes leave, if they are kept in memory.

    **Arguments:** `lane_bytes`: of a lane's state; `result_bytes`: of a lane's results; `batches`: the number of
    batches whose results are collected in the memory of the host before they are stored; `stored`: True if results are
    kept on disk; `is_light`: True for lanes of which 64 are mostly the starting of kernels.
    **Raises:** `ValueError` if not even one lane fits.
    """
    state, group = lane_bytes * COPIES, result_bytes * batches * GROUP_COPIES
    host = psutil.virtual_memory().available - (0 if stored else lanes * result_bytes)
    on_device = _own_memory(devices)
    if on_device is None:
        free, needed = host, state + group
        fitting = free // 2 // max(needed, 1)
    else:
        free, needed = min(on_device, host), max(state, group)
        fitting = min(on_device // 2 // max(state, 1), host // 2 // max(group, 1))
    if fitting < 1:
        beside = "" if stored else f" beside the results of {lanes} lanes, {_text(lanes * result_bytes)}"
        advice = "" if stored else 'pass store="runs/name" to keep results on disk, '
        raise ValueError(
            f"one lane needs about {_text(2 * needed)} of memory while it is computed, but {_text(max(free, 0))} are "
            f"free{beside}; {advice}save fewer times, keep smaller metrics, or use float32"
        )
    largest = LARGEST.get(devices[0].platform, LARGEST_ELSEWHERE)
    if is_light and devices[0].platform == "cpu":
        largest = np.clip(lanes // (batches * len(devices)), largest, LARGEST_OF_LIGHT)
    return int(min(fitting, largest * len(devices), lanes))


def memory_of(about: About, lanes: int) -> int:
    """Returns the bytes that the results of all lanes take in the memory of this process, in the dataset."""
    statuses = sum(shape.nbytes for name, shape in about.lanes(lanes).items() if about.is_status(name))
    return sum(shape.nbytes for shape in about.lanes(lanes).values()) + POINTER * (lanes + statuses)


def check_memory(about: About, lanes: int) -> None:
    """Raises `ValueError`, with sizes and advice, if the results do not fit into memory."""
    free, needed = psutil.virtual_memory().available, memory_of(about, lanes)
    advice = 'pass store="runs/name" to keep them on disk, save fewer times, or keep smaller metrics'
    _require_room(needed, lanes, free, "of memory that are free", advice)


def check_disk(about: About, missing: int, folder: Path) -> None:
    """Raises `ValueError`, with sizes and advice, if the results of the missing lanes do not fit into the folder."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed = sum(shape.nbytes for shape in about.group(missing).values())
    advice = "choose a store on a larger disk, save fewer times, or keep smaller metrics"
    _require_room(needed, missing, shutil.disk_usage(existing).free, f"that are free at {existing}", advice)


def _require_room(needed: int, lanes: int, free: int, place: str, advice: str) -> None:
    if needed > 0.9 * free:
        raise ValueError(
            f"the results of {lanes} lanes take {_text(needed)} ({_text(needed / lanes)} a lane), more than nine "
            f"tenths of the {_text(free)} {place}; {advice}"
        )


def free_bytes(devices: Devices) -> int:
    """Sums the free bytes of devices; CPUs share those of the machine."""
    own = _own_memory(devices)
    return psutil.virtual_memory().available if own is None else own


def _own_memory(devices: Devices) -> int | None:
    """Sums the free bytes of devices that have a memory of their own; None for those that use that of the host."""
    stats = [device.memory_stats() for device in devices]
    if not all(each and "bytes_limit" in each for each in stats):
        return None
    return sum(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats if each)


def _text(size: int | float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
