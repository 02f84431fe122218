"""Steps that see one piece of the schedule: between its breakpoints alpha is smooth, and a step lies in one piece.

A solver may evaluate a velocity at a time outside the piece of its step: at its end, where that is rounded onto the
breakpoint, and at stages beyond its end, which some implicit methods have. The strength of the next piece is wrong
there, however short the step, and so are derivatives with respect to the breakpoint.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..problem.schedule import AbstractSchedule, Time

# A schedule compares times that it has computed itself, such as a step count times the step size: a few roundings.
_ROUNDINGS = 4


class Piece(eqx.Module):
    """The times between two neighbouring breakpoints of a schedule; from 0 or to infinity where there are none."""

    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(self, schedule: AbstractSchedule, within: Float[Array, ""]):
        """Finds the piece that contains the time `within`."""
        times = schedule.breakpoints.astype(float)
        margin = _ROUNDINGS * jnp.finfo(times.dtype).eps
        self.start = (1 + margin) * jnp.max(jnp.where(times <= within, times, 0.0), initial=0.0)
        self.stop = (1 - margin) * jnp.min(jnp.where(times > within, times, jnp.inf), initial=jnp.inf)


class OnPiece(AbstractSchedule):
    """A schedule inside one piece, continued smoothly beyond both ends of it.

    At a time t outside, let e be the nearer end: `alpha(t) = 2 alpha(e) - alpha(2 e - t)`, the reflection about the
    point (e, alpha(e)), and the integral is continued likewise. This is exact for constant and linear pieces, and right
    to second order in t - e for any other. No schedule needs a method for it.
    """

    schedule: AbstractSchedule
    piece: Piece

    def strength(self, t: Time) -> Float[Array, ""]:
        end, reflected = self._reflect(t)
        return 2 * self.schedule(end) - self.schedule(reflected)

    def integral(self, t: Time) -> Float[Array, ""]:
        end, reflected = self._reflect(t)
        return self.schedule.integral(reflected) + 2 * self.schedule(end) * (t - end)

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return self.schedule.breakpoints

    def valid(self, t1: Time) -> Bool[Array, ""]:
        return self.schedule.valid(t1)

    def _reflect(self, t: Time) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The time of the piece nearest to t, and the reflection of t about it; both are t for a t inside."""
        end = jnp.clip(t, self.piece.start, self.piece.stop)
        return end, jnp.clip(2 * end - t, self.piece.start, self.piece.stop)


class OnPieces(diffrax.AbstractWrappedSolver):
    """A diffrax solver whose `args`, a `Field`, is told in which step it is evaluated.

    **Arguments:** `solver`: any diffrax solver of one ODE term.
    """

    solver: diffrax.AbstractSolver

    @property
    def term_structure(self) -> Any:
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:
        return self.solver.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return self.solver.term_compatible_contr_kwargs

    @property
    def root_finder(self) -> Any:
        """The root finder of an implicit solver, where diffrax sets its tolerances."""
        return self.solver.root_finder  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def scan_kind(self) -> Any:
        """The kind of loop over the stages of a Runge-Kutta solver, which some adjoints of diffrax choose."""
        return self.solver.scan_kind  # pyright: ignore[reportAttributeAccessIssue]

    def order(self, terms: PyTree) -> int | None:
        return self.solver.order(terms)

    def error_order(self, terms: PyTree) -> Any:
        return self.solver.error_order(terms)

    def func(self, terms: PyTree, t0: Any, y0: PyTree, args: Any) -> PyTree:
        return self.solver.func(terms, t0, y0, args)

    def init(self, terms: PyTree, t0: Any, t1: Any, y0: PyTree, args: Any) -> PyTree:
        return self.solver.init(terms, t0, t1, y0, args.during(t0, t1))

    def step(
        self, terms: PyTree, t0: Any, t1: Any, y0: PyTree, args: Any, solver_state: PyTree, made_jump: Any
    ) -> tuple[Any, ...]:
        return _step(self.solver, terms, t0, t1, y0, args.during(t0, t1), solver_state, made_jump)


@eqx.filter_jit
def _step(solver: diffrax.AbstractSolver, *args: Any) -> tuple[Any, ...]:
    """`solver.step(*args)`, traced once: diffrax traces the body of its loop three times, and its derivatives again."""
    return solver.step(*args)
