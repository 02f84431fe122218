"""The traced core that `solve` and `sweep` share: the one place that calls diffrax.

No checks on values and no exceptions, a status instead. Only this file builds a step-size controller, always from the
schedule's breakpoints.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ..problem import Problem
from ..results import RESULTS
from .flows.continuous import AbstractFlow
from .flows.descent import AbstractDescent, whole
from .options import Options
from .solution import Point, Solution
from .solvers.controller import GiveUp, Resumable


class Carried(NamedTuple):
    """What one solve hands to the next, so that the two take the steps of one: see `run`."""

    solver_state: PyTree
    controller_state: PyTree
    made_jump: Bool[Array, ""]


def integrate(problem: Problem, context: Any, state: PyTree, options: Options) -> Solution:
    """The traced core: integrate a started flow. Never raises on values; a lane that fails says so in `result`."""
    # TF32 products on a GPU cost an adaptive solver ten times the steps.
    with jax.default_matmul_precision("highest"):
        valid = input_status(problem, context, state, options)
        dtype = jnp.result_type(*jax.tree.leaves(state))
        # A lane with bad input is not integrated: it waits at t = 0 for the others.
        end = jnp.where(valid == RESULTS.successful, to_ticks(options.t1, options.flow, dtype), jnp.finfo(dtype).tiny)
        ts = jnp.minimum(to_ticks(options.ts, options.flow, dtype), end)
        start = jnp.zeros_like(end)
        step, _ = plan(problem, context, state, options, end)
        span = {"start": start, "end": end, "ts": ts, "max_steps": options.max_steps}
        raw = run(problem, context, state, options, step=jnp.where(valid == RESULTS.successful, step, end), **span)
        return _solution(problem, context, raw, options, valid)


def run(
    problem: Problem,
    context: Any,
    state: PyTree,
    options: Options,
    *,
    start: Float[Array, ""],
    end: Float[Array, ""],
    ts: Float[Array, " time"],
    step: Float[Array, ""],
    max_steps: int,
    carried: Carried | None = None,
) -> diffrax.Solution:
    """From tick `start` to tick `end`, or `max_steps` steps, the first of size `step`; `sol.ys` is `((saved, loss),
    state)`.

    `carried`: what a solve that ran out of steps left behind, for this one to go on with the very same steps; what it
    leaves itself is then in `sol.solver_state`, `sol.controller_state` and `sol.made_jump`.
    """
    return diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        options.solver,
        t0=start,
        t1=end,
        dt0=step,
        y0=state,
        args=(options.flow, context, state),
        saveat=diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=ts, fn=saving(options)), diffrax.SubSaveAt(t1=True)],
            solver_state=carried is not None,
            controller_state=carried is not None,
            made_jump=carried is not None,
        ),
        stepsize_controller=make_controller(problem, options, end.dtype),
        solver_state=None if carried is None else carried.solver_state,
        controller_state=None if carried is None else carried.controller_state,
        made_jump=None if carried is None else carried.made_jump,
        adjoint=options.adjoint,
        max_steps=max_steps,
        throw=False,
    )


def plan(
    problem: Problem, context: Any, state: PyTree, options: Options, end: Float[Array, ""]
) -> tuple[Float[Array, ""], PyTree]:
    """The first step from tick 0, and the controller's state there. A descent takes whole ticks.

    diffrax's own choice is 0.01 whatever the units of time: inside a solve it does not recognise its wrapped term.
    """
    start, terms = jnp.zeros_like(end), diffrax.ODETerm(velocity)
    controller, solver = make_controller(problem, options, end.dtype), options.solver
    whole_tick = jnp.ones_like(end) if isinstance(options.flow, AbstractDescent) else None
    args, order = (options.flow, context, state), solver.error_order(terms)
    tick, controller_state = controller.init(terms, start, end, state, whole_tick, args, solver.func, order)
    return jax.lax.stop_gradient(jnp.minimum(tick, end)), controller_state


def saving(options: Options) -> Callable:
    """What is kept at a save time: the metrics, or the whole point, and always the loss."""

    def save(tick, y, args):
        flow, context, _ = args
        arrays, static = eqx.partition((flow, to_time(tick, flow), y, context), eqx.is_array)
        flow, t, y, context = eqx.combine(_guard(arrays, static), static)
        point = flow.read(t, y, context)
        kept = point if options.metrics is None else options.metrics(t, point.x, point.w)
        return jax.tree.map(_as_float, kept), point.loss

    return save


@eqx.filter_custom_jvp
def _guard(arrays: PyTree, static: PyTree) -> PyTree:
    """The arrays among the arguments of a read, with derivative 0 where the point they give is not finite.

    Under vmap diffrax saves for all lanes when one is at a save time, and throws away what the others extrapolated to.
    That may overflow, and 0 times NaN would spoil their derivatives.
    """
    return arrays


@_guard.def_jvp
def _guard_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    arrays, static = primals
    flow, *where = eqx.combine(arrays, static)
    ok = _is_finite(flow.read(*where))
    return arrays, jax.tree.map(lambda slope: jnp.where(ok, slope, jnp.zeros_like(slope)), tangents[0])


def _is_finite(point: Point) -> Bool[Array, ""]:
    """Whether a point is one: mu is not looked at, which some flows do not follow."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((point.x, point.w, point.loss))]))


def _raw_velocity(tick: Float[Array, ""], y: PyTree, args: tuple[AbstractFlow, Any, PyTree]) -> PyTree:
    flow, context, _ = args
    return flow.velocity(to_time(tick, flow), y, context)


def _finite(rate: PyTree) -> tuple[PyTree, Bool[Array, ""]]:
    """A velocity whose numbers are finite, and whether they were."""
    # The largest is NaN where any is, and found in half the time that `all(isfinite)` takes on a CPU.
    largest = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(rate)]
    ok = jnp.all(jnp.stack([jnp.isfinite(size) for size in largest]))
    return jax.tree.map(lambda leaf: jnp.where(ok, leaf, float(jnp.finfo(leaf.dtype).max) ** 0.4), rate), ok


@eqx.filter_custom_jvp
def velocity(tick: Float[Array, ""], y: PyTree, args: tuple[AbstractFlow, Any, PyTree]) -> PyTree:
    """The flow's velocity, huge where it overflows or is not defined, and with derivative 0 there.

    A trial step that is too long may leave the domain. It is rejected either way, since its error estimate is huge;
    but the derivative of a rejected step is multiplied by 0, and 0 times NaN would spoil that of the solution.
    """
    return _finite(_raw_velocity(tick, y, args))[0]


@velocity.def_jvp
def _velocity_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    tick, y, args = primals
    rate, ok = _finite(_raw_velocity(tick, y, args))
    inside = jax.tree.map(lambda leaf, start: jnp.where(ok, leaf, start), y, args[2])
    _, slope = eqx.filter_jvp(_raw_velocity, (tick, inside, args), tangents)
    return rate, jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.zeros_like(leaf)), slope)


def to_ticks(t: Float[Array, "..."], flow: AbstractFlow, dtype: jnp.dtype) -> Float[Array, "..."]:
    """Times on the solver's clock: the flow's own, or for a descent the count of its steps, exact where it is whole.

    In the dtype of the state, since diffrax promotes both to the longer one.
    """
    if not isinstance(flow, AbstractDescent):
        return t.astype(dtype)
    count = t / flow.step_size
    return jnp.where(whole(count), jnp.round(count), count).astype(dtype)


def to_time(tick: Float[Array, ""], flow: AbstractFlow) -> Float[Array, ""]:
    """The flow's time, in the precision of time, at a tick of the solver's clock."""
    t = tick.astype(float)
    return t * flow.step_size if isinstance(flow, AbstractDescent) else t


def make_controller(problem: Problem, options: Options, dtype: jnp.dtype) -> diffrax.AbstractStepSizeController:
    """Error control that stops at every breakpoint and gives up, rather than creeps, where the flow blows up."""
    if isinstance(options.flow, AbstractDescent):
        return diffrax.ConstantStepSize()
    control = GiveUp(diffrax.PIDController(rtol=options.rtol.astype(dtype), atol=options.atol.astype(dtype)))
    breakpoints = problem.alpha.breakpoints.astype(dtype)
    if breakpoints.size:
        control = diffrax.ClipStepSizeController(control, jump_ts=breakpoints)
    return Resumable(control)


def input_status(problem: Problem, context: Any, state: PyTree, options: Options) -> RESULTS:
    """Whether the numbers a lane was given can be integrated at all."""
    t0 = jnp.zeros_like(options.t1)
    point = options.flow.read(t0, state, context)
    status = RESULTS.where(_is_finite(point), RESULTS.successful, RESULTS.invalid_weights)
    if isinstance(options.flow, AbstractDescent):
        status = RESULTS.where(whole(options.t1 / options.flow.step_size), status, RESULTS.partial_step)
    return RESULTS.where(problem.alpha.valid(options.t1), status, RESULTS.invalid_schedule)


def _solution(problem: Problem, context: Any, raw: diffrax.Solution, options: Options, valid: RESULTS) -> Solution:
    saved, final = cast(tuple, raw.ys)
    kept, loss = saved
    state = jax.tree.map(lambda leaf: leaf[0], final)
    tick = cast(tuple, raw.ts)[1][0]
    ticks = to_ticks(jnp.append(options.ts, options.t1), options.flow, tick.dtype)
    t_end = jnp.where(tick == ticks[-1], options.t1, to_time(tick, options.flow))
    t_end = jnp.where(valid == RESULTS.successful, t_end, 0.0)
    last = options.flow.read(t_end, state, context)
    result = combine(valid, solver_status(raw.result), options.flow.status(t_end, options.t1, state, context))
    reached = (ticks[:-1] <= tick) & (valid == RESULTS.successful)
    kept, loss = jax.tree.map(lambda leaf: _missing(leaf, reached), (kept, loss))
    point: Point = kept if options.metrics is None else jax.tree.map(lambda leaf: leaf[None], last)
    stats = {name: raw.stats[f"num_{name}"] for name in ("steps", "accepted_steps", "rejected_steps")}
    return Solution(
        ts=options.ts,
        x=point.x,
        w=point.w,
        mu=point.mu,
        a=jax.vmap(problem.accumulated)(options.ts),
        loss=loss,
        metrics=None if options.metrics is None else kept,
        last=last,
        t_end=t_end,
        stats=stats,
        result=result,
    )


def solver_status(raw: Any) -> RESULTS:
    """What a diffrax solver says, as a status."""
    R, D = RESULTS, diffrax.RESULTS
    status = R.where(raw == D.successful, R.successful, R.step_size_underflow)
    return R.where(raw == D.max_steps_reached, R.max_steps_reached, status)


def combine(valid: RESULTS, solver: RESULTS, flow_status: RESULTS) -> RESULTS:
    """One status out of three: bad input first, then what the flow says of its state, then what the solver says."""
    status = RESULTS.where(flow_status == RESULTS.successful, solver, flow_status)
    return RESULTS.where(valid == RESULTS.successful, status, valid)


def _missing(leaf: Array, reached: Bool[Array, " time"]) -> Array:
    """NaN at the save times that were never reached."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan)


def _as_float(leaf: ArrayLike) -> Array:
    """Metrics that are whole numbers or booleans become floating point, which can say that a value is missing."""
    array = jnp.asarray(leaf)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)
