"""solve(): the one place that calls diffrax.

`solve` checks and starts; `integrate` is the traced core that `sweep` shares: no checks on values, no exceptions, a
status instead. Only this file builds a step-size controller, always from the schedule's breakpoints.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ..problem import Problem
from ..problem._checks import Numbers, as_float, refuted
from ..problem.problem import as_weights
from ..problem.reparam import Weights
from ..results import RESULTS
from .controller import GiveUp
from .descent import AbstractDescent, DescentSolver, whole
from .flows import AbstractFlow, PrimalFlow
from .solution import Point, Solution

Solver = diffrax.AbstractSolver
Metrics = Callable[[Float[Array, ""], Float[Array, "..."], Weights], PyTree]


class Options(eqx.Module):
    """How to integrate: everything `solve` and `sweep` take besides the problem, checked once. Numbers are leaves."""

    ts: Float[Array, " time"]
    t1: Float[Array, ""]
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    flow: AbstractFlow
    solver: Solver
    adjoint: diffrax.AbstractAdjoint
    metrics: Metrics | None
    max_steps: int = eqx.field(static=True)  # static: diffrax sizes its checkpoints by it


def solve(
    problem: Problem,
    w0: PyTree,
    *,
    t1: ArrayLike,
    saveat: Numbers | None = None,
    metrics: Metrics | None = None,
    flow: AbstractFlow | None = None,
    solver: Solver | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int = 100_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Solution:
    """The trajectory of `min f(g(w)) + alpha(t) h(w)` from w0, for t in [0, t1].

    Jit-compiled, and differentiable with respect to every number in the problem, w0 and t1; use it inside your own
    jit, vmap and grad, or hand many problems to `mirrorjax.sweep`.

    **Arguments:**

    - `problem`: a `Problem`.
    - `w0`: initial weights, a pytree that `problem.g` accepts.
    - `t1`: the end, in units of the flow (gradient descent with step eta advances eta a step).
    - `saveat`: increasing times in [0, t1] to save at; `None` for the final state only.
    - `metrics`: a function of `(t, x, w)`, saved at those times instead of the whole state.
    - `flow`: `PrimalFlow()` unless told otherwise; also `MirrorFlow()`, `RiemannianFlow()`, `Descent(..)`,
      `ProximalDescent(..)`.
    - `solver`: any explicit or implicit diffrax solver; `diffrax.Tsit5()` unless told otherwise. Descents bring their
      own.
    - `rtol`, `atol`: error per step, relative and absolute, in the flow's coordinates, which are of order one. Unless
      told otherwise 1e-6 in float64 and 1e-4 in float32, and a hundredth of that.
    - `max_steps`: give up after so many steps, accepted or not.
    - `adjoint`: any diffrax adjoint; reverse mode (`diffrax.RecursiveCheckpointAdjoint()`) unless told otherwise, for
      `jax.jvp` and `jax.jacfwd` pass `diffrax.ForwardMode()`.
    - `throw`: raise when the result is not successful; otherwise look at `sol.result`.

    **Returns:** a `Solution`.

    **Raises:** `ValueError` for arguments that do not fit, with the value and the remedy; `EquinoxRuntimeError` with
    the advice of `RESULTS` when the flow fails and `throw` is set.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3), (5), (7).
    """
    w0, t1 = as_weights(w0), _clock(t1, "t1")
    problem.check(w0, t1)
    options = make_options(
        w0,
        t1=t1,
        saveat=saveat,
        metrics=metrics,
        flow=flow,
        solver=solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        adjoint=adjoint,
    )
    context, state = options.flow.start(problem, w0)
    solution = eqx.filter_jit(integrate)(problem, context, state, options)
    if throw:
        return solution.result.error_if(solution, solution.result != RESULTS.successful)
    return solution


def make_options(
    w0: PyTree,
    *,
    t1: ArrayLike,
    saveat: Numbers | None = None,
    metrics: Metrics | None = None,
    flow: AbstractFlow | None = None,
    solver: Solver | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int = 100_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> Options:
    """The arguments of `solve` as leaves, with defaults filled in for the dtype of w0 and bad ones refused."""
    flow = PrimalFlow() if flow is None else flow
    if not isinstance(flow, AbstractFlow):
        raise ValueError(f"flow must be a flow such as PrimalFlow() or Descent(optimizer, step_size), got {flow!r}")
    if isinstance(flow, AbstractDescent):
        if solver is not None:
            raise ValueError(f"{type(flow).__name__} makes its own steps; leave out solver={solver!r}")
        if refuted(lambda: whole(jnp.asarray(t1) / flow.step_size), t1, flow.step_size):
            raise ValueError(
                f"{type(flow).__name__} takes whole steps, but t1 = {t1} is {float(jnp.asarray(t1) / flow.step_size):g}"
                f" steps of {flow.step_size}; choose a multiple of step_size"
            )
        solver = DescentSolver()
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a whole number of at least 1, got {max_steps!r}")
    if metrics is not None and not callable(metrics):
        raise ValueError(f"metrics must be a function of (t, x, w), got {metrics!r}")
    t1 = _clock(t1, "t1")
    if refuted(lambda: (t1 > 0) & jnp.isfinite(t1), t1):
        raise ValueError(f"t1 must be positive and finite, got {t1}")
    single = jnp.finfo(jnp.result_type(*jax.tree.leaves(w0))).bits < 64
    rtol = _clock((1e-4 if single else 1e-6) if rtol is None else rtol, "rtol")
    atol = rtol / 100 if atol is None else _clock(atol, "atol")
    for tolerance, name in ((rtol, "rtol"), (atol, "atol")):
        if refuted(lambda tolerance=tolerance: (tolerance > 0) & jnp.isfinite(tolerance), tolerance):
            raise ValueError(f"{name} must be positive and finite, got {tolerance}")
    return Options(
        ts=_save_times(saveat, t1),
        t1=t1,
        rtol=rtol,
        atol=atol,
        flow=flow,
        solver=diffrax.Tsit5() if solver is None else solver,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        metrics=metrics,
        max_steps=max_steps,
    )


def integrate(problem: Problem, context: Any, state: PyTree, options: Options) -> Solution:
    """The traced core: integrate a started flow. Never raises on values; a lane that fails says so in `result`."""
    # TF32 products on a GPU cost an adaptive solver ten times the steps.
    with jax.default_matmul_precision("highest"):
        valid = _input_status(problem, context, state, options)
        raw = _diffeqsolve(problem, context, state, options, valid == RESULTS.successful)
        return _solution(problem, context, raw, options, valid)


def _diffeqsolve(
    problem: Problem, context: Any, state: PyTree, options: Options, valid: Bool[Array, ""]
) -> diffrax.Solution:
    def save(tick, y, args):
        flow, context, _ = args
        t = _time(tick, flow)
        point = flow.read(t, y, context)
        kept = point if options.metrics is None else options.metrics(t, point.x, point.w)
        return jax.tree.map(_as_float, kept), point.loss

    dtype = jnp.result_type(*jax.tree.leaves(state))
    # A lane with bad input is not integrated: it waits at t = 0 for the others.
    end = jnp.where(valid, _ticks(options.t1, options.flow, dtype), jnp.finfo(dtype).tiny)
    descent = isinstance(options.flow, AbstractDescent)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(_velocity),
        options.solver,
        t0=jnp.zeros_like(end),
        t1=end,
        dt0=jnp.ones_like(end) if descent else None,
        y0=state,
        args=(options.flow, context, state),
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(ts=jnp.minimum(_ticks(options.ts, options.flow, dtype), end), fn=save),
                diffrax.SubSaveAt(t1=True),
            ]
        ),
        stepsize_controller=diffrax.ConstantStepSize() if descent else _controller(problem, options, dtype),
        adjoint=options.adjoint,
        max_steps=options.max_steps,
        throw=False,
    )


def _raw_velocity(tick: Float[Array, ""], y: PyTree, args: tuple[AbstractFlow, Any, PyTree]) -> PyTree:
    flow, context, _ = args
    return flow.velocity(_time(tick, flow), y, context)


def _finite(velocity: PyTree) -> tuple[PyTree, Bool[Array, ""]]:
    """A velocity whose numbers are finite, and whether they were."""
    ok = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(velocity)]))
    return jax.tree.map(lambda leaf: jnp.where(ok, leaf, float(jnp.finfo(leaf.dtype).max) ** 0.4), velocity), ok


@eqx.filter_custom_jvp
def _velocity(tick: Float[Array, ""], y: PyTree, args: tuple[AbstractFlow, Any, PyTree]) -> PyTree:
    """The flow's velocity, huge where it overflows or is not defined, and with derivative 0 there.

    A trial step that is too long may leave the domain. It is rejected either way, since its error estimate is huge;
    but the derivative of a rejected step is multiplied by 0, and 0 times NaN would spoil that of the solution.
    """
    return _finite(_raw_velocity(tick, y, args))[0]


@_velocity.def_jvp
def _velocity_jvp(primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    tick, y, args = primals
    velocity, ok = _finite(_raw_velocity(tick, y, args))
    inside = jax.tree.map(lambda leaf, start: jnp.where(ok, leaf, start), y, args[2])
    _, slope = eqx.filter_jvp(_raw_velocity, (tick, inside, args), tangents)
    return velocity, jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.zeros_like(leaf)), slope)


def _ticks(t: Float[Array, "..."], flow: AbstractFlow, dtype: jnp.dtype) -> Float[Array, "..."]:
    """Times on the solver's clock: the flow's own, or for a descent the count of its steps, exact where it is whole.

    In the dtype of the state, since diffrax promotes both to the longer one.
    """
    if not isinstance(flow, AbstractDescent):
        return t.astype(dtype)
    count = t / flow.step_size
    return jnp.where(whole(count), jnp.round(count), count).astype(dtype)


def _time(tick: Float[Array, ""], flow: AbstractFlow) -> Float[Array, ""]:
    """The flow's time, in the precision of time, at a tick of the solver's clock."""
    t = tick.astype(float)
    return t * flow.step_size if isinstance(flow, AbstractDescent) else t


def _controller(problem: Problem, options: Options, dtype: jnp.dtype) -> diffrax.AbstractStepSizeController:
    """Error control that stops at every breakpoint and gives up, rather than creeps, where the flow blows up."""
    control = GiveUp(diffrax.PIDController(rtol=options.rtol.astype(dtype), atol=options.atol.astype(dtype)))
    breakpoints = problem.alpha.breakpoints.astype(dtype)
    if breakpoints.size == 0:
        return control
    return diffrax.ClipStepSizeController(control, jump_ts=breakpoints)


def _input_status(problem: Problem, context: Any, state: PyTree, options: Options) -> RESULTS:
    """Whether the numbers a lane was given can be integrated at all."""
    t0 = jnp.zeros_like(options.t1)
    point = options.flow.read(t0, state, context)
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((point.x, point.w, point.loss))])
    status = RESULTS.where(jnp.all(finite), RESULTS.successful, RESULTS.invalid_weights)
    if isinstance(options.flow, AbstractDescent):
        status = RESULTS.where(whole(options.t1 / options.flow.step_size), status, RESULTS.partial_step)
    return RESULTS.where(problem.alpha.valid(options.t1), status, RESULTS.invalid_schedule)


def _solution(problem: Problem, context: Any, raw: diffrax.Solution, options: Options, valid: RESULTS) -> Solution:
    saved, final = cast(tuple, raw.ys)
    kept, loss = saved
    state = jax.tree.map(lambda leaf: leaf[0], final)
    tick = cast(tuple, raw.ts)[1][0]
    ticks = _ticks(jnp.append(options.ts, options.t1), options.flow, tick.dtype)
    t_end = jnp.where(tick == ticks[-1], options.t1, _time(tick, options.flow))
    t_end = jnp.where(valid == RESULTS.successful, t_end, 0.0)
    last = options.flow.read(t_end, state, context)
    result = _combine(valid, raw.result, options.flow.status(t_end, options.t1, state, context))
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


def _combine(valid: RESULTS, raw: Any, flow_status: RESULTS) -> RESULTS:
    """One status out of three: bad input first, then what the flow says of its state, then what the solver says."""
    R, D = RESULTS, diffrax.RESULTS
    solver = R.where(raw == D.successful, R.successful, R.step_size_underflow)
    solver = R.where(raw == D.max_steps_reached, R.max_steps_reached, solver)
    status = R.where(flow_status == R.successful, solver, flow_status)
    return R.where(valid == R.successful, status, valid)


def _missing(leaf: Array, reached: Bool[Array, " time"]) -> Array:
    """NaN at the save times that were never reached."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan)


def _as_float(leaf: ArrayLike) -> Array:
    """Metrics that are whole numbers or booleans become floating point, which can say that a value is missing."""
    array = jnp.asarray(leaf)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def _clock(value: ArrayLike, name: str) -> Float[Array, ""]:
    """A scalar in the precision of time: float64 where it is enabled, whatever the dtype of the state."""
    array = as_float(value, name)
    if array.ndim != 0:
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}")
    return array.astype(float)


def _save_times(saveat: Numbers | None, t1: Float[Array, ""]) -> Float[Array, " time"]:
    if saveat is None:
        return t1[None]
    ts = as_float(jnp.asarray(saveat), "saveat").astype(float)
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"saveat must be a non-empty one-dimensional array of times, got shape {ts.shape}")
    if refuted(lambda: jnp.all(jnp.diff(ts) > 0), ts):
        raise ValueError(f"saveat must be increasing without repeats, got {np.asarray(ts)}")
    if refuted(lambda: (ts[0] >= 0) & (ts[-1] <= t1), ts, t1):
        raise ValueError(f"saveat must lie in [0, t1] = [0, {t1}], got {np.asarray(ts)}")
    return ts
