"""One solve by diffrax: the traced core of `solve`, and the call of diffrax that segments of a sweep share with it.

No checks on values and no exceptions, a status instead.
"""

from typing import NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..checks import freeze
from ..results import RESULTS, first_of
from .guards import Field, never_reached, vector_field
from .motion import AbstractMotion, state_dtype
from .options import Options
from .pieces import OnPieces
from .solution import Point, Solution, is_finite


class Carried(NamedTuple):
    """Solver state that one solve hands to the next, so that two solves take the steps of a single one: see `run`."""

    solver_state: PyTree
    controller_state: PyTree
    made_jump: Bool[Array, ""]


def integrate(motion: AbstractMotion, options: Options) -> Solution:
    """Integrates a motion to t1. Never raises on values: a failed lane has the reason in `result`."""
    # TF32 products on a GPU cost an adaptive solver ten times the steps.
    with jax.default_matmul_precision("highest"):
        state, clock = motion.initial(), motion.clock
        valid = options.input_status(motion, state)
        ok, dtype = valid == RESULTS.successful, state_dtype(state)
        usable = options.usable_where(ok)
        # A lane with bad input is not integrated: its solve ends at the smallest positive tick.
        end = jnp.where(ok, clock.ticks(usable.t1, dtype), jnp.finfo(dtype).tiny)
        ts = jnp.minimum(clock.ticks(usable.ts, dtype), end)
        step, _ = first_step(motion, usable, state, end)
        span = {"start": jnp.zeros_like(end), "end": end, "ts": ts, "max_steps": usable.max_steps}
        raw = run(motion, usable, state, step=jnp.where(ok, step, end), **span)
        return eqx.tree_at(lambda sol: sol.ts, _solution(motion, usable, raw, valid), options.ts)


def run(
    motion: AbstractMotion,
    options: Options,
    state: PyTree,
    *,
    start: Float[Array, ""],
    end: Float[Array, ""],
    ts: Float[Array, " time"],
    step: Float[Array, ""],
    max_steps: int,
    carried: Carried | None = None,
) -> diffrax.Solution:
    """Integrates from tick `start` to tick `end`, or `max_steps` steps, the first of size `step`.

    **Arguments:** `carried`: left by a solve that ran out of steps, for this one to go on with the very same steps.
    **Returns:** a diffrax solution, whose `ys` is `((saved, loss), state)`. With `carried`, `solver_state`,
    `controller_state` and `made_jump` are those to hand on.
    """

    def save(tick: Float[Array, ""], y: PyTree, args: Field) -> PyTree:
        return args.save(options.metrics, tick, y)

    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        OnPieces(options.solver),
        t0=start,
        t1=end,
        dt0=step,
        y0=state,
        args=Field(motion, state),
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=ts, fn=save), diffrax.SubSaveAt(t1=True)],
            solver_state=carried is not None,
            controller_state=carried is not None,
            made_jump=carried is not None,
        ),
        stepsize_controller=motion.controller(options.rtol, options.atol, end.dtype),
        solver_state=None if carried is None else carried.solver_state,
        controller_state=None if carried is None else carried.controller_state,
        made_jump=None if carried is None else carried.made_jump,
        adjoint=options.adjoint,
        max_steps=max_steps,
        throw=False,
    )


def first_step(
    motion: AbstractMotion, options: Options, state: PyTree, end: Float[Array, ""]
) -> tuple[Float[Array, ""], PyTree]:
    """The size of the first step, in ticks, and the state of the controller at tick 0.

    A step clipped to a breakpoint or to the end moves with it; the size that the controller plans is a constant.
    Chosen here because diffrax's own choice is 0.01 whatever the units of time: inside a solve it does not recognise
    its wrapped term.
    """
    start, terms, solver = jnp.zeros_like(end), diffrax.ODETerm(vector_field), options.solver
    controller = motion.controller(options.rtol, options.atol, end.dtype)
    fixed, args, order = motion.clock.fixed_step(end.dtype), Field(motion, state), solver.error_order(terms)
    tick, controller_state = controller.init(terms, start, end, state, fixed, args, solver.func, order)
    return jnp.minimum(tick, end), controller_state


def _solution(motion: AbstractMotion, options: Options, raw: diffrax.Solution, valid: RESULTS) -> Solution:
    saved, final = cast(tuple, raw.ys)
    kept, loss = saved
    state = jax.tree.map(lambda leaf: leaf[0], final)
    tick = cast(tuple, raw.ts)[1][0]
    ticks = motion.clock.ticks(jnp.append(options.ts, options.t1), tick.dtype)
    t_end = jnp.where(tick == ticks[-1], options.t1, motion.clock.time(tick))
    t_end = jnp.where(valid == RESULTS.successful, t_end, 0.0)
    last = motion.read(t_end, state)
    reached = (ticks[:-1] <= tick) & (valid == RESULTS.successful)
    saved = loss if options.metrics is not None else (kept.x, kept.w, loss)
    on_the_way = RESULTS.where(_is_finite_where(reached, saved), RESULTS.successful, RESULTS.diverged)
    result = combine(valid, solver_status(raw.result), motion.status(t_end, options.t1, state))
    result = first_of(result, on_the_way, end_status(motion, t_end, state))
    absent = never_reached((motion, options))
    kept, loss = jax.tree.map(lambda leaf: _where_reached(reached, leaf, absent), (kept, loss))
    point: Point = kept if options.metrics is None else jax.tree.map(lambda leaf: leaf[None], last)
    stats = {name: raw.stats[f"num_{name}"] for name in ("steps", "accepted_steps", "rejected_steps")}
    return Solution(
        ts=options.ts,
        x=point.x,
        w=point.w,
        mu=point.mu,
        a=jax.vmap(motion.problem.accumulated)(options.ts),
        loss=loss,
        metrics=None if options.metrics is None else kept,
        last=last,
        t_end=t_end,
        stats=stats,
        result=result,
    )


def end_status(motion: AbstractMotion, t: Float[Array, ""], state: PyTree) -> RESULTS:
    """`AbstractMotion.end_status`, which is a yes or no and needs no derivative."""
    motion, t, state = freeze((motion, t, state))
    return motion.end_status(t, state)


def solver_status(raw: diffrax.RESULTS) -> RESULTS:
    """Translates the result of a diffrax solver into a status."""
    R, D = RESULTS, diffrax.RESULTS
    status = R.where(raw == D.successful, R.successful, R.step_size_underflow)
    return R.where(raw == D.max_steps_reached, R.max_steps_reached, status)


def combine(valid: RESULTS, solver: RESULTS, flow_status: RESULTS) -> RESULTS:
    """Reduces three statuses to one: bad input first, then the flow's status of its state, then the solver's."""
    return first_of(valid, flow_status, solver)


def _where_reached(reached: Bool[Array, " time"], leaf: Array, otherwise: Array) -> Array:
    """Replaces the values at save times that were never reached."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, otherwise.astype(leaf.dtype))


def _is_finite_where(reached: Bool[Array, " time"], saved: PyTree) -> Bool[Array, ""]:
    """True if the values at all save times that were reached are finite."""
    return is_finite(jax.tree.map(lambda leaf: _where_reached(reached, leaf, jnp.zeros(())), saved))
