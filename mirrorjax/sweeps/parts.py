"""A batch in parts of one size, each moved by a thread of its own.

The operations on a few dozen small lanes keep one core of a CPU busy, not several. Lanes are independent, so that parts
of a batch can be at different places of the same program; which thread is first changes no number.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..runs.devices import Devices, on_devices

# Lanes of one part: with fewer, calls of operations cost more than the operations.
PART = 32
# Operations of a lane's velocity up to which one thread is enough for its lanes. The product of a large matrix with all
# lanes uses every core by itself, and is the faster the more lanes it has.
SMALL = 1e6


def may_part(operations: float, devices: Devices) -> bool:
    """True if batches of lanes with so many operations are moved in parts on these devices."""
    return operations <= SMALL and len(devices) == 1 and devices[0].platform == "cpu"


def parts_of(slots: int) -> int:
    """The number of parts of a batch. It depends on the size alone, so that a resumed run has the same parts."""
    return slots // PART if slots % PART == 0 else 1


def in_parts(fn: Callable[[PyTree, PyTree], PyTree], shared: PyTree, lanes: list[PyTree], devices: Devices) -> PyTree:
    """`fn(shared, part)` for each part, joined along the leading axis; compiled once and run in threads.

    **Arguments:** `fn`: as in `on_devices`; `lanes`: the parts, all of one size.
    """
    if len(lanes) == 1:
        return on_devices(fn, shared, lanes[0], devices)
    # Compiled by this thread, in whose settings of JAX it is traced; other threads have their own.
    compiled: Any = on_devices.lower(fn, shared, lanes[0], devices).compile()

    def run(part: PyTree) -> PyTree:
        with jax.transfer_guard("allow"):
            return jax.tree.map(np.asarray, compiled(fn, shared, part, devices))

    with ThreadPoolExecutor(len(lanes)) as pool:
        done = list(pool.map(run, lanes))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *done)


def split(tree: PyTree, count: int) -> list[PyTree]:
    """Divides the leading axis of a tree of arrays into so many parts."""
    leaves, structure = jax.tree.flatten(tree)
    pieces = [np.split(np.asarray(leaf), count) for leaf in leaves]
    return [jax.tree.unflatten(structure, part) for part in zip(*pieces, strict=True)]
