"""Points of a trajectory, and `Solution`, which `solve` returns."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..problem.reparam import Weights
from ..reprs import readable
from ..results import RESULTS


def is_finite(tree: PyTree) -> Bool[Array, ""]:
    """True if every number in the tree is finite; leaves that hold no floating-point numbers are not looked at."""
    return finite_rows(jax.tree.map(lambda leaf: leaf[None], eqx.filter(tree, eqx.is_inexact_array)), 1)[0]


def finite_rows(tree: PyTree[Array], rows: int) -> Bool[Array, " rows"]:
    """For each row of the leading axis that all leaves have, True if every floating-point number in it is finite."""
    leaves = [leaf.reshape(rows, -1) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    finite = jnp.ones(rows, bool)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        numbers = jnp.concatenate([leaf for leaf in leaves if leaf.dtype == dtype], axis=1)
        # Infinity times 0 is NaN. A product, where `all(isfinite)` would be compiled as three kernels for each leaf.
        finite &= jnp.isfinite(numbers @ jnp.zeros(numbers.shape[1], dtype))
    return finite


class Point(eqx.Module):
    """One moment of a trajectory: `x = g(w)`, the weights w, the dual variable mu and the loss f(x)."""

    x: Float[Array, "..."]
    w: Weights
    mu: Float[Array, "..."]
    loss: Float[Array, ""]

    def is_finite(self) -> Bool[Array, ""]:
        """True if x, w and the loss are finite; mu is not looked at, because some flows do not follow it."""
        return is_finite((self.x, self.w, self.loss))


class Solution(eqx.Module):
    """A trajectory of `f(g(w)) + alpha h(w)`, at the times asked for.

    - `ts` (time,): the save times, in units of the flow.
    - `x` (time, ...), `w` (pytree of (time, ...)), `mu` (time, ...): parameters, weights and dual variable
      `mu_t = -int_0^t grad f(x_s) ds`. When `metrics` were asked for, only the state at the end is kept: their time
      axis then has length 1, so that `sol.x[-1]` is the final state either way.
    - `a` (time,): `a_t = -int_0^t alpha(s) ds`, exact.
    - `loss` (time,): `f(x_t)`, without the regularizer.
    - `metrics`: what the metric function returned, each with a leading time axis; `None` if there was none.
    - `last`: the `Point` at `t_end`, the time reached: t1 unless the flow failed. Save times after it hold NaN.
    - `stats`: number of accepted, rejected and all steps.
    - `result`: how it ended, a `RESULTS`.
    """

    ts: Float[Array, " time"]
    x: Float[Array, "saved ..."]
    w: Weights
    mu: Float[Array, "saved ..."]
    a: Float[Array, " time"]
    loss: Float[Array, " time"]
    metrics: PyTree[Any]
    last: Point
    t_end: Float[Array, ""]
    stats: dict[str, Int[Array, ""]]
    result: RESULTS

    def __repr__(self) -> str:
        return readable(self)
