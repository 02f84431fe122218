"""Explicit Runge-Kutta steps of diffrax's tableaus: their stages written out, for batches of lanes, or in a plain loop.

diffrax loops over the stages and contracts a buffer of all of them with a row of the tableau, zeros included: one
product with a small matrix a stage. Written out, a stage is one sum that the compiler fuses; with the loop of
`steppers/steps.py` a sweep of small lanes takes about half of the time. The price is a program with one copy of the
velocity for each stage. `InLoop` has one copy in all; unlike the loop of diffrax it is a `jax.lax.scan`, whose
derivative in reverse mode takes no stage again.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, cast

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

Scalar = Float[Array, ""]


def written_out(solver: diffrax.AbstractSolver) -> "WrittenOut | None":
    """The solver with its stages written out; `None` unless it is a Runge-Kutta solver that diffrax steps by itself."""
    if not isinstance(solver, diffrax.AbstractERK) or type(solver).step is not diffrax.Tsit5.step:
        return None
    return WrittenOut(solver) if isinstance(solver.tableau, diffrax.ButcherTableau) else None


def in_loop(solver: diffrax.AbstractSolver) -> "InLoop | None":
    """The solver with its stages in a plain loop; `None` where `written_out` is."""
    explicit = written_out(solver)
    return None if explicit is None else InLoop(explicit.solver)


class AbstractExplicit(diffrax.AbstractAdaptiveSolver):
    """An explicit Runge-Kutta solver of one `ODETerm`, with the stages, the error and the interpolation of its tableau.

    A subclass gives `step`, and `stacked`, which makes the array of the stages that diffrax interpolates from.
    """

    solver: eqx.AbstractVar[diffrax.AbstractERK]

    term_structure: ClassVar = diffrax.ODETerm

    @abc.abstractmethod
    def stacked(self, stages: PyTree) -> PyTree:
        """The stages of a step, times its length, along a first axis."""

    @property
    def tableau(self) -> diffrax.ButcherTableau:
        return cast(diffrax.ButcherTableau, self.solver.tableau)  # as `written_out` has checked

    @property
    def interpolation_cls(self) -> Callable[..., diffrax.AbstractLocalInterpolation]:
        def interpolation(**info: Any) -> diffrax.AbstractLocalInterpolation:
            return self.solver.interpolation_cls(**(info | {"k": self.stacked(info["k"])}))

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


class WrittenOut(AbstractExplicit):
    """An explicit Runge-Kutta solver with one copy of the velocity for each stage.

    **Arguments:** `solver`: any explicit Runge-Kutta solver of diffrax.
    """

    solver: diffrax.AbstractERK

    def stacked(self, stages: PyTree) -> PyTree:
        return jax.tree.map(lambda *each: jnp.stack(each), *stages)

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


class InLoop(AbstractExplicit):
    """An explicit Runge-Kutta solver with one copy of the velocity, in a loop over the stages.

    **Arguments:** `solver`: any explicit Runge-Kutta solver of diffrax.
    """

    solver: diffrax.AbstractERK

    def stacked(self, stages: PyTree) -> PyTree:
        return stages

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
        count = len(tableau.c) + 1
        at_start = functools.partial(terms.vf, t0, y0, args)
        first = _after_jump(at_start, solver_state, made_jump) if tableau.fsal else at_start()
        rows = np.stack([np.pad(row, (0, count - len(row))) for row in tableau.a_lower])

        def moved(weights: Any, rates: PyTree) -> PyTree:
            return jax.tree.map(lambda y, rate: y + h.astype(y.dtype) * _contracted(weights, rate), y0, rates)

        def stage(carry: tuple[PyTree, PyTree], each: tuple) -> tuple[tuple[PyTree, PyTree], None]:
            rates, (number, row, c) = carry[0], each
            y = moved(row, rates)
            # Exactly t1 for c = 1: t0 + h may round to a time beyond the step.
            rate = terms.vf(jnp.where(c == 1, t1, t0 + c.astype(h.dtype) * h), y, args)
            return (jax.tree.map(lambda rows, new: rows.at[number].set(new), rates, rate), y), None

        rates = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype).at[0].set(leaf), first)
        (rates, y), _ = jax.lax.scan(stage, (rates, y0), (jnp.arange(1, count), rows, np.asarray(tableau.c)))
        y1 = y if tableau.ssal else moved(tableau.b_sol, rates)
        error = jax.tree.map(lambda rate: h.astype(rate.dtype) * _contracted(tableau.b_error, rate), rates)
        info = {"y0": y0, "y1": y1, "k": jax.tree.map(lambda rate: h.astype(rate.dtype) * rate, rates)}
        carried = jax.tree.map(lambda rate: rate[-1], rates) if tableau.fsal else None
        return y1, error, info, carried, diffrax.RESULTS.successful


def _contracted(weights: Any, rates: Array) -> Array:
    """`sum_j weights_j rates_j` over the first axis."""
    return jnp.tensordot(jnp.asarray(weights, rates.dtype), rates, 1)


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
