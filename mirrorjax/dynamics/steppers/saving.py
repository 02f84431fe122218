"""Values at the save times that lie in the steps just taken, read for a few lanes of a batch at a time."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..options import Options
from .base import Lane, Prepare, over_lanes, part_of

# The least number of lanes whose save times are read together: few reach a save time in the same round, and a metric
# may cost more than a velocity.
SAVING = 4


def save_ticks(prepare: Prepare, options: Options, values: PyTree, lanes: Lane) -> Float[Array, "lanes time"]:
    """The save times on the clock of each lane."""
    dtype = lanes.tick.dtype
    return over_lanes(prepare, lambda motion, _: motion.clock.ticks(options.ts, dtype))(values, lanes.saved)


def save(
    prepare: Prepare,
    options: Options,
    values: PyTree,
    ticks: Float[Array, "lanes time"],
    lanes: Lane,
    kept: Bool[Array, " lanes"],
    until: Float[Array, " lanes"],
    read: Callable[..., PyTree],
    data: PyTree,
) -> Lane:
    """Records the values at the save times up to `until` of the lanes whose step was kept.

    Where t1 alone is saved nothing is recorded: its values are those of a lane that has ended.

    **Arguments:** `ticks`: by `save_ticks`; `lanes`: at the start of their steps; `until`: the ticks at which they end;
    `read(motion, lane, data, t)`: the metrics and the loss at a time t in the step of one lane; `data` (lanes, ...):
    what it needs.
    """
    if options.end_only:
        return lanes
    count, size = lanes.tick.shape[0], options.ts.size

    def due(saved: Int[Array, " lanes"]) -> Bool[Array, " lanes"]:
        following = jnp.take_along_axis(ticks, jnp.minimum(saved, size - 1)[:, None], axis=1)[:, 0]
        return kept & (saved < size) & (following <= until)

    def some(carry: tuple) -> tuple:
        saved, buffers = carry
        wanted, chosen = jax.lax.top_k(due(saved).astype(int), part_of(count, SAVING))
        chosen = jnp.where(wanted == 1, chosen, count)
        row, *arguments = jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="clip"), (saved, values, lanes, data))
        new = over_lanes(prepare, read)(*arguments, options.ts[row])
        buffers = jax.tree.map(lambda buffer, new: buffer.at[chosen, row].set(new, mode="drop"), buffers, new)
        return saved.at[chosen].add(1, mode="drop"), buffers

    start = lanes.saved, (lanes.metrics, lanes.loss)
    saved, (metrics, loss) = jax.lax.while_loop(lambda carry: jnp.any(due(carry[0])), some, start)
    return eqx.tree_at(lambda lanes: (lanes.saved, lanes.metrics, lanes.loss), lanes, (saved, metrics, loss))
