"""Explicit Runge-Kutta steps of diffrax's tableaus: their stages written out, for batches of lanes, or in a plain loop.

diffrax loops over the stages and contracts a buffer of all of them with a row of the tableau, zeros included: one
product with a small matrix a stage. Written out, a stage is one sum that the compiler fuses; with the loop of
`steppers/steps.py` a sweep of small lanes takes about half of the time. The price is a program with one copy of the
velocity for each stage. `InLoop` has one copy in all; unlike the loop of diffrax it is a `jax.lax.scan`, whose
derivative in reverse mode takes no stage again.
"""

import abc
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


def is_written_out(solver: diffrax.AbstractSolver) -> bool:
    """True for a solver that `written_out` has made."""
    return isinstance(solver, WrittenOut)


def in_loop(solver: diffrax.AbstractSolver) -> "InLoop | None":
    """The solver with its stages in a plain loop; `None` where `written_out` is."""
    explicit = written_out(solver)
    return None if explicit is None else InLoop(explicit.solver)


class AbstractExplicit(diffrax.AbstractAdaptiveSolver):
    """An explicit Runge-Kutta solver of one `ODETerm`, with the stages, the error and the interpolation of its tableau.

    A subclass keeps the velocities of the stages, `rates`, in a form of its own, and gives `take_stages`, `weighted`,
    `last` and `stacked`.
    """

    solver: eqx.AbstractVar[diffrax.AbstractERK]

    term_structure: ClassVar = diffrax.ODETerm

    @abc.abstractmethod
    def take_stages(
        self, velocity: Callable[[Any, PyTree], PyTree], t0: Scalar, t1: Scalar, y0: PyTree, first: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The rates of all stages, of which `first` is known, and the state at the last stage."""

    @abc.abstractmethod
    def weighted(self, h: Scalar, weights: Any, rates: PyTree) -> PyTree:
        """`h sum_j weights_j rates_j`, each leaf in its own precision."""

    @abc.abstractmethod
    def last(self, rates: PyTree) -> PyTree:
        """The rate of the last stage."""

    @abc.abstractmethod
    def stacked(self, rates: PyTree) -> PyTree:
        """The rates along a first axis, from which diffrax interpolates."""

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

        def velocity(t: Any, y: PyTree) -> PyTree:
            return terms.vf(t, y, args)

        def at_start() -> PyTree:
            return velocity(t0, y0)

        first = _after_jump(at_start, solver_state, made_jump) if tableau.fsal else at_start()
        rates, y = self.take_stages(velocity, t0, t1, y0, first)
        y1 = y if tableau.ssal else jax.tree.map(jnp.add, y0, self.weighted(h, tableau.b_sol, rates))
        info = {"y0": y0, "y1": y1, "k": jax.tree.map(lambda rate: h.astype(rate.dtype) * rate, rates)}
        carried = self.last(rates) if tableau.fsal else None
        return y1, self.weighted(h, tableau.b_error, rates), info, carried, diffrax.RESULTS.successful


class WrittenOut(AbstractExplicit):
    """An explicit Runge-Kutta solver with one copy of the velocity for each stage. Its rates are a list.

    **Arguments:** `solver`: any explicit Runge-Kutta solver of diffrax.
    """

    solver: diffrax.AbstractERK

    def take_stages(
        self, velocity: Callable[[Any, PyTree], PyTree], t0: Scalar, t1: Scalar, y0: PyTree, first: PyTree
    ) -> tuple[PyTree, PyTree]:
        h, rates, y = t1 - t0, [first], y0
        for row, c in zip(self.tableau.a_lower, self.tableau.c.tolist(), strict=True):
            y = jax.tree.map(jnp.add, y0, self.weighted(h, row, rates))
            # Exactly t1 for c = 1: t0 + h may round to a time beyond the step.
            rates.append(velocity(t1 if c == 1 else t0 + c * h, y))
        return rates, y

    def weighted(self, h: Scalar, weights: Any, rates: PyTree) -> PyTree:
        return weighted(h, weights, rates)

    def last(self, rates: PyTree) -> PyTree:
        return rates[-1]

    def stacked(self, rates: PyTree) -> PyTree:
        return jax.tree.map(lambda *each: jnp.stack(each), *rates)


class InLoop(AbstractExplicit):
    """An explicit Runge-Kutta solver with one copy of the velocity, in a loop. Its rates have an axis of stages.

    **Arguments:** `solver`: any explicit Runge-Kutta solver of diffrax.
    """

    solver: diffrax.AbstractERK

    def take_stages(
        self, velocity: Callable[[Any, PyTree], PyTree], t0: Scalar, t1: Scalar, y0: PyTree, first: PyTree
    ) -> tuple[PyTree, PyTree]:
        tableau, h = self.tableau, t1 - t0
        count = len(tableau.c) + 1
        rows = np.stack([np.pad(row, (0, count - len(row))) for row in tableau.a_lower])

        def stage(carry: tuple[PyTree, PyTree], each: tuple) -> tuple[tuple[PyTree, PyTree], None]:
            rates, (number, row, c) = carry[0], each
            y = jax.tree.map(jnp.add, y0, self.weighted(h, row, rates))
            # Exactly t1 for c = 1: t0 + h may round to a time beyond the step.
            rate = velocity(jnp.where(c == 1, t1, t0 + c.astype(h.dtype) * h), y)
            return (jax.tree.map(lambda rows, new: rows.at[number].set(new), rates, rate), y), None

        room = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype).at[0].set(leaf), first)
        return jax.lax.scan(stage, (room, y0), (jnp.arange(1, count), rows, np.asarray(tableau.c)))[0]

    def weighted(self, h: Scalar, weights: Any, rates: PyTree) -> PyTree:
        return jax.tree.map(lambda rate: h.astype(rate.dtype) * _contracted(weights, rate), rates)

    def last(self, rates: PyTree) -> PyTree:
        return jax.tree.map(lambda rate: rate[-1], rates)

    def stacked(self, rates: PyTree) -> PyTree:
        return rates


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
