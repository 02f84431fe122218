"""One solve by diffrax: the traced core of `solve`, and the call of diffrax that segments of a sweep share with it.

No checks on values and no exceptions, a status instead.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..checks import freeze
from ..results import RESULTS, first_of
from .guards import Field, never_reached, read_out, vector_field
from .motion import AbstractMotion, state_dtype
from .options import Options
from .pieces import OnPieces
from .solution import Point, Solution, finite_rows
from .solvers.controller import Ending, EndingFixed


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
        step, control = first_step(motion, usable, state, end)
        span = {"start": jnp.zeros_like(end), "end": end, "ts": ts, "max_steps": usable.max_steps}
        save = save_state if usable.metrics is None else save_metrics
        saved, last, raw = run(motion, usable, state, save, step=jnp.where(ok, step, end), control=control, **span)
        if usable.metrics is None:
            saved = jax.vmap(Field.packed(motion, state).unpack)(saved)
        return eqx.tree_at(lambda sol: sol.ts, _solution(motion, usable, saved, last, raw, valid), options.ts)


Save = Callable[[Options, Float[Array, ""], PyTree, Field], PyTree]


def save_metrics(options: Options, tick: Float[Array, ""], y: PyTree, field: Field) -> PyTree:
    """The metrics, or the whole point, and the loss."""
    return field.save(options.metrics, tick, y)


def save_state(options: Options, tick: Float[Array, ""], y: PyTree, field: Field) -> PyTree:
    """The state as it is, packed: whoever keeps whole points reads them at all save times together, compiled once."""
    return y


def run(
    motion: AbstractMotion,
    options: Options,
    state: PyTree,
    save: Save,
    *,
    start: Float[Array, ""],
    end: Float[Array, ""],
    ts: Float[Array, " time"],
    step: Float[Array, ""],
    control: PyTree,
    max_steps: int,
    carried: Carried | None = None,
) -> tuple[PyTree, PyTree, diffrax.Solution]:
    """Integrates from tick `start` to tick `end`, or `max_steps` steps, the first of size `step`.

    **Arguments:** `save`: what to keep at the save times; `control`: the state of the controller at `start`; `carried`:
    left by a solve that ran out of steps, for this one to go on with the very same steps.
    **Returns:** what was saved, the state at the end, and the diffrax solution. With `carried`, its `solver_state`,
    `controller_state` and `made_jump` are those to hand on.
    """
    field = Field.packed(motion, state)
    controller = motion.controller(options.rtol, options.atol, end.dtype)
    is_adaptive = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    ending = (Ending if is_adaptive else EndingFixed)(controller, end, jnp.minimum(start + step, end), control)
    raw = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        OnPieces(options.solver),
        t0=start,
        t1=jnp.finfo(end.dtype).max,  # never reached: see `Ending`
        dt0=None,
        y0=field.anchor,
        args=field,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(ts=ts, fn=partial(save, options)),
                diffrax.SubSaveAt(t1=True, fn=partial(save_state, options)),
            ],
            solver_state=carried is not None,
            controller_state=carried is not None,
            made_jump=carried is not None,
        ),
        stepsize_controller=ending,
        solver_state=None if carried is None else carried.solver_state,
        made_jump=None if carried is None else carried.made_jump,
        adjoint=options.adjoint,
        max_steps=max_steps,
        throw=False,
    )
    saved, final = cast(tuple, raw.ys)
    return saved, field.unpack(jax.tree.map(lambda leaf: leaf[0], final)), raw


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
    fixed, args, order = motion.clock.fixed_step(end.dtype), Field.packed(motion, state), solver.error_order(terms)
    tick, controller_state = controller.init(terms, start, end, args.anchor, fixed, args, solver.func, order)
    return jnp.minimum(tick, end), controller_state


def _solution(
    motion: AbstractMotion, options: Options, saved: PyTree, state: PyTree, raw: diffrax.Solution, valid: RESULTS
) -> Solution:
    """The solution of what was saved, the state at the end and the diffrax solution; `valid`: of the input."""
    tick = cast(tuple, raw.ts)[1][0]
    ticks = motion.clock.ticks(jnp.append(options.ts, options.t1), tick.dtype)
    t_end = jnp.where(tick == ticks[-1], options.t1, motion.clock.time(tick))
    t_end = jnp.where(valid == RESULTS.successful, t_end, 0.0)
    reached = (ticks[:-1] <= tick) & (valid == RESULTS.successful)
    if options.metrics is None:
        point, last = _read(motion, jnp.append(jnp.where(reached, options.ts, t_end), t_end), saved, state, reached)
        kept, loss = (point.x, point.w, point.mu), point.loss
        of_interest = point.x, point.w, loss
    else:
        kept, loss = of_interest = saved
        last = motion.read(t_end, state)
    finite = finite_rows(of_interest, reached.size)
    on_the_way = RESULTS.where(jnp.all(finite | jnp.logical_not(reached)), RESULTS.successful, RESULTS.diverged)
    result = combine(valid, solver_status(raw.result), motion.status(t_end, options.t1, state))
    result = first_of(result, on_the_way, end_status(motion, t_end, state, last))
    absent = never_reached((motion, options))
    kept, loss = jax.tree.map(lambda leaf: _where_reached(reached, leaf, absent), (kept, loss))
    final_point = jax.tree.map(lambda leaf: leaf[None], (last.x, last.w, last.mu))
    x, w, mu = kept if options.metrics is None else final_point
    stats = {name: raw.stats[f"num_{name}"] for name in ("steps", "accepted_steps", "rejected_steps")}
    return Solution(
        ts=options.ts,
        x=x,
        w=w,
        mu=mu,
        a=jax.vmap(motion.problem.accumulated)(options.ts),
        loss=loss,
        metrics=None if options.metrics is None else kept,
        last=last,
        t_end=t_end,
        stats=stats,
        result=result,
    )


def _read(
    motion: AbstractMotion, times: Float[Array, " times"], saved: PyTree, state: PyTree, reached: Bool[Array, " saved"]
) -> tuple[Point, Point]:
    """The points of the saved states and of the last one, which also stands for the states that were not reached."""
    now = jax.tree.map(lambda leaf: leaf[None], state)
    saved = jax.tree.map(lambda leaf, now: _where_reached(reached, leaf, now), saved, now)
    states = jax.tree.map(lambda leaf, now: jnp.concatenate([leaf, now]), saved, now)
    points, _ = jax.vmap(lambda t, state: read_out(motion, None, t, state))(times, states)
    return jax.tree.map(lambda leaf: leaf[:-1], points), jax.tree.map(lambda leaf: leaf[-1], points)


def end_status(motion: AbstractMotion, t: Float[Array, ""], state: PyTree, point: Point) -> RESULTS:
    """`AbstractMotion.end_status`, which is a yes or no and needs no derivative."""
    motion, t, state, point = freeze((motion, t, state, point))
    return motion.end_status(t, state, point)


def solver_status(raw: diffrax.RESULTS) -> RESULTS:
    """Translates the result of a diffrax solver into a status."""
    R, D = RESULTS, diffrax.RESULTS
    # A solve is over when its controller says so, see `Ending`.
    status = R.where(raw == D.event_occurred, R.successful, R.step_size_underflow)
    return R.where(raw == D.max_steps_reached, R.max_steps_reached, status)


def combine(valid: RESULTS, solver: RESULTS, flow_status: RESULTS) -> RESULTS:
    """Reduces three statuses to one: bad input first, then the flow's status of its state, then the solver's."""
    return first_of(valid, flow_status, solver)


def _where_reached(reached: Bool[Array, " time"], leaf: Array, otherwise: Array) -> Array:
    """Replaces the values at save times that were never reached."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, otherwise.astype(leaf.dtype))
