"""Divides lanes over devices and processes. Lanes are independent, so devices exchange no data.

If `jax.jit` shards a vmapped loop by itself, it puts collectives into the loop, and every device then waits for the
slowest one in each step. `shard_map` keeps the loops of the devices apart; a test counts the collectives: none.

Devices of one CPU share XLA's threads. Its factors of several matrices occupy them and wait for them: two devices that
ask for some at the same time wait for ever (jaxlib 0.10.2, two cores). Such programs are refused there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import PyTree

from ..compilation import Effort, compiled
from ..programs import primitives_in

Device = Any  # a jax.Device, which is a variable to type checkers
Devices = tuple[Device, ...]
WAITING = {"cholesky", "lu", "triangular_solve"}  # eigenvectors and QR factors of the same matrices came back


def choose_devices(devices: Sequence[Device] | None) -> Devices:
    """Returns the given devices, by default all of this process.

    **Raises:** `ValueError` for devices of another process, one that is given twice, or something else.
    """
    if isinstance(devices, jax.Device):
        raise ValueError(f"devices must be a sequence of jax devices, got one device; write [{devices!r}]")
    chosen = tuple(jax.local_devices() if devices is None else devices if isinstance(devices, Iterable) else ())
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise ValueError(f"devices must be a non-empty sequence of jax devices, such as jax.devices(), got {devices!r}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"devices must be distinct, got {list(chosen)}; for a larger batch raise chunk")
    if foreign := [device for device in chosen if device.process_index != jax.process_index()]:
        raise ValueError(f"devices must be of this process, got {foreign}; every process runs lanes of its own")
    return chosen


def on_devices(
    fn: Callable[[PyTree, PyTree], PyTree],
    shared: PyTree,
    lanes: PyTree,
    devices: Devices,
    effort: Effort = Effort.FULL,
) -> PyTree:
    """Computes `fn(shared, lanes)`; each device has all of `shared` and its share of the leading axis of `lanes`.

    **Arguments:** `fn`: acts on a batch of any size, with outputs that have its leading axis; `lanes`: a pytree of
    arrays (lanes, ...), their number a multiple of the number of devices; `effort`: spent on compiling the program.
    """
    return compiled(_on_devices, effort)(fn, shared, lanes, devices)


def _on_devices(fn: Callable[[PyTree, PyTree], PyTree], shared: PyTree, lanes: PyTree, devices: Devices) -> PyTree:
    if len(devices) == 1:
        return fn(shared, jax.device_put(lanes, devices[0]))
    arrays, rest = eqx.partition(shared, eqx.is_array)
    mesh = Mesh(np.asarray(devices), ("lanes",), axis_types=(AxisType.Auto,))
    whole, share = PartitionSpec(), PartitionSpec("lanes")

    def local(arrays: PyTree, lanes: PyTree) -> PyTree:
        return fn(eqx.combine(arrays, rest), lanes)

    if devices[0].platform == "cpu":
        _require_none_that_waits(local, arrays, lanes, devices)
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, share), out_specs=share, check_vma=False)(arrays, lanes)


def _require_none_that_waits(local: Callable, arrays: PyTree, lanes: PyTree, devices: Devices) -> None:
    """Raises `ValueError` for a program that several devices of one CPU may never finish."""

    def share(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((leaf.shape[0] // len(devices), *leaf.shape[1:]), leaf.dtype)

    program, *_ = eqx.filter_make_jaxpr(local)(arrays, jax.tree.map(share, lanes))
    if found := sorted(WAITING & primitives_in(program.jaxpr)):
        raise ValueError(
            f"the lanes use {', '.join(found)}, for which {len(devices)} devices of one CPU may wait for ever (a fault "
            "of XLA): pass devices=jax.devices()[:1]"
        )


def spread(size: int, devices: Devices) -> int:
    """Rounds `size` up to a multiple of the number of devices."""
    return -(-size // len(devices)) * len(devices)
