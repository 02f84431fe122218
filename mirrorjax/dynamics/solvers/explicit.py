"""Explicit Runge-Kutta steps of diffrax's tableaus with their stages written out, for batches of lanes.

diffrax loops over the stages and contracts a buffer of all of them with a row of the tableau, zeros included: one
product with a small matrix a stage. Written out, a stage is one sum that the compiler fuses; with the loop of
`steppers/steps.py` a sweep of small lanes takes about half of the time. The price is a program with one copy of the
velocity for each stage.
"""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffrax
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

Scalar = Float[Array, ""]


def written_out(solver: diffrax.AbstractSolver) -> "WrittenOut | None":
    """The solver with its stages written out; `None` unless it is a Runge-Kutta solver that diffrax steps by itself."""
    if not isinstance(solver, diffrax.AbstractERK) or type(solver).step is not diffrax.Tsit5.step:
        return None
    return WrittenOut(solver) if isinstance(solver.tableau, diffrax.ButcherTableau) else None


class WrittenOut(diffrax.AbstractAdaptiveSolver):
    """An explicit Runge-Kutta solver of one `ODETerm`, with the stages, the error and the interpolation of its tableau.

    **Arguments:** `solver`: any explicit Runge-Kutta solver of diffrax.
    """

    solver: diffrax.AbstractERK

    term_structure: ClassVar = diffrax.ODETerm

    @property
    def tableau(self) -> diffrax.ButcherTableau:
        return cast(diffrax.ButcherTableau, self.solver.tableau)  # as `written_out` has checked

    @property
    def interpolation_cls(self) -> Callable[..., diffrax.AbstractLocalInterpolation]:
        def interpolation(**info: Any) -> diffrax.AbstractLocalInterpolation:
            stacked = jax.tree.map(lambda *stages: jnp.stack(stages), *info["k"])
            return self.solver.interpolation_cls(**(info | {"k": stacked}))

        return interpolation

    def order(self, terms: PyTree) -> int | None:
        return self.solver.order(terms)

    def error_order(self, terms: PyTree) -> Any:
        return self.solver.error_order(terms)

    def func(self, terms: Any, t0: Any, y0: PyTree, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any) -> PyTree:
        """The velocity at the start, which a solver whose last stage is the next first one carries along."""
        return terms.vf(t0, y0, args) if self.tableau.fsal else None

    def step(
        self,
        terms: Any,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: Any,
        solver_state: PyTree,
        made_jump: Bool[ArrayLike, ""],
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], PyTree, diffrax.RESULTS]:
        tableau, h = self.tableau, t1 - t0

        def velocity(c: float, y: PyTree) -> PyTree:
            # Exactly t1 for c = 1: t0 + h may round to a time beyond the step.
            return terms.vf(t1 if c == 1 else t0 + c * h, y, args)

        first = _after_jump(lambda: velocity(0.0, y0), solver_state, made_jump) if tableau.fsal else velocity(0.0, y0)
        rates, y = [first], y0
        for row, c in zip(tableau.a_lower, tableau.c, strict=True):
            y = jax.tree.map(jnp.add, y0, weighted(h, row, rates))
            rates.append(velocity(float(c), y))
        y1 = y if tableau.ssal else jax.tree.map(jnp.add, y0, weighted(h, tableau.b_sol, rates))
        stages = [jax.tree.map(lambda leaf: h.astype(leaf.dtype) * leaf, rate) for rate in rates]
        info = {"y0": y0, "y1": y1, "k": stages}
        carried = rates[-1] if tableau.fsal else None
        return y1, weighted(h, tableau.b_error, rates), info, carried, diffrax.RESULTS.successful


def weighted(h: Scalar, weights: Any, rates: list[PyTree]) -> PyTree:
    """`h sum_j weights_j rates_j`, without the terms of weight 0, each leaf in its own precision."""
    chosen = [(float(weight), rate) for weight, rate in zip(weights, rates, strict=True) if weight != 0]

    def leaf(*leaves: Array) -> Array:
        total = sum(weight * leaf for (weight, _), leaf in zip(chosen, leaves, strict=True))
        return h.astype(leaves[0].dtype) * total

    return jax.tree.map(leaf, *(rate for _, rate in chosen))


def _after_jump(velocity: Callable[[], PyTree], before: PyTree, made_jump: Bool[ArrayLike, ""]) -> PyTree:
    """The velocity carried from the step before, computed anew in lanes whose velocity has just jumped."""
    if made_jump is False:  # known when tracing, in solves that declare no jumps
        return before
    jumped = jnp.asarray(made_jump)
    renewed = jax.lax.cond(eqxi.unvmap_any(jumped), velocity, lambda: before)
    return jax.tree.map(lambda new, old: jnp.where(jumped, new, old), renewed, before)
