"""solve(t1=inf): the limit of a flow after its decay is switched off, predicted and not integrated."""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import as_array, as_time_scalar, is_concrete, refuted
from ..compilation import Effort, compiled
from ..geometry.base import AbstractLegendre
from ..geometry.limit import predict_limit
from ..problem import Problem
from ..problem.objective import AbstractMeasured
from ..results import RESULTS, first_of
from .adjoints import choose_adjoint
from .guards import as_numbers
from .integrate import integrate
from .motion import AbstractFlow, AbstractMotion, state_dtype
from .options import Integration, make_options, require_metrics
from .solution import Point, Solution


def solve_at_infinity(
    problem: Problem,
    motion: AbstractMotion,
    flow: AbstractFlow,
    adjoint: diffrax.AbstractAdjoint | None,
    how: Integration,
) -> Solution:
    """The trajectory at the finite save times, if there are any, and the limit at t = inf.

    **Raises:** `ValueError` for a schedule that is not switched off, a flow without a known limit, and save times that
    are traced; like `predict_limit`.
    """
    ts = _save_times(how)
    adjoint = choose_adjoint((motion, flow, dict(how))) if adjoint is None else adjoint

    def until(t1: Array, **changes: Any) -> Solution:
        dtype = state_dtype(eqx.filter_eval_shape(lambda motion: motion.initial(), motion))
        options = make_options(flow, motion, dtype, t1, cast(Integration, {**how, **changes}), adjoint)
        return compiled(integrate, Effort.LESS, motion, options)(motion, options)

    limit = _limit(problem, motion, how, until)
    saved = bool(np.isposinf(ts[-1]))
    finite = ts[:-1] if saved else ts
    if not finite.size:
        return limit
    before = until(as_time_scalar(finite[-1], "saveat"), saveat=finite)
    return _joined(before, limit, limit.metrics is not None, saved)


def _save_times(how: Integration) -> np.ndarray:
    """The save times, the last of which may be `inf`. The finite ones are checked with the other options."""
    saveat = how.get("saveat")
    if not is_concrete(saveat):
        raise ValueError("with t1 = inf the save times must be known, got traced ones; pass a finite t1")
    with jax.ensure_compile_time_eval():
        ts = np.asarray(as_array([np.inf] if saveat is None else saveat, "saveat"))
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"saveat must be a non-empty one-dimensional array of times, got shape {ts.shape}")
    return ts


def after_switch_off(problem: Problem) -> Float[Array, ""]:
    """A time after the last breakpoint. Raises `ValueError` where alpha is known not to be 0 from there on."""
    last = _last_breakpoint(problem)
    if refuted(lambda: _is_off(problem, last), eqx.filter(problem.schedule, eqx.is_array)):
        raise ValueError(
            f"the limit at t1 = inf needs an alpha that is switched off, and alpha({last:g}) = "
            f"{problem.schedule(last):g} after the last breakpoint of {problem.schedule}; use SwitchOff(alpha, t_off), "
            "or for a decay that never ends flow=DualFlow() with a finite t1, or sweep(steady=..)"
        )
    # Beyond the last breakpoint the integral of alpha moves with the breakpoints and not with t.
    return 2 * last + 1


def _last_breakpoint(problem: Problem) -> Float[Array, ""]:
    times = problem.schedule.breakpoints.astype(float)
    return jnp.max(jnp.where(jnp.isfinite(times), times, 0.0), initial=0.0)


def _is_off(problem: Problem, last: Float[Array, ""]) -> Array:
    """True if alpha is 0 at the last breakpoint, at which it has its value after the jump, and at later times."""
    later = last + jnp.array([0.0, 0.1, 1.0, 10.0, 1e3]) * (1 + last)
    return jnp.all(jax.vmap(problem.schedule.strength)(later) == 0)


def _limit(problem: Problem, motion: AbstractMotion, how: Integration, until: Callable[..., Solution]) -> Solution:
    """The limit as a solution whose one save time is `inf`.

    Where the dual variable leaks at several rates the limit is no minimum of R_a. It is the Bregman projection of any
    point after the switch-off, so the flow is integrated to one.
    """
    R: AbstractLegendre = motion.limit_legendre()
    t = after_switch_off(problem)
    a = problem.accumulated(t)
    before = until(t, saveat=None, metrics=None) if R.leak.ndim else None
    found = predict_limit(R, problem.objective, a, start=None if before is None else before.last.x)
    objective = cast(AbstractMeasured, problem.objective)  # as predict_limit has checked
    w = R.weights(found.mu, a.astype(found.mu.dtype))
    point = Point(found.x, w, found.mu, objective(found.x))
    off = RESULTS.where(_is_off(problem, _last_breakpoint(problem)), RESULTS.successful, RESULTS.invalid_times)
    valid = RESULTS.where(problem.schedule.valid(t), RESULTS.successful, RESULTS.invalid_schedule)
    whole = RESULTS.where(point.is_finite(), RESULTS.successful, RESULTS.diverged)
    earlier = RESULTS.successful if before is None else before.result
    result = first_of(valid, off, motion.own_status(), earlier, found.result, whole)
    point = jax.tree.map(lambda leaf: jnp.where(result == RESULTS.successful, leaf, jnp.nan), point)
    metrics = require_metrics(how.get("metrics"))
    infinity, none = jnp.asarray(jnp.inf, float), jnp.array(0)
    kept = None if metrics is None else as_numbers(metrics, infinity, point)
    one = jax.tree.map(lambda leaf: leaf[None], (point, kept))
    return Solution(
        ts=infinity[None],
        x=one[0].x,
        w=one[0].w,
        mu=one[0].mu,
        a=a[None],
        loss=one[0].loss,
        metrics=one[1],
        last=point,
        t_end=infinity,
        stats={"steps": none, "accepted_steps": none, "rejected_steps": none},
        result=result,
    )


def _joined(before: Solution, limit: Solution, metrics: bool, saved: bool) -> Solution:
    """A trajectory and its limit as one solution; `saved` says that `inf` is one of the save times."""

    def both(one: Array, other: Array) -> Array:
        return jnp.concatenate([one, other]) if saved else one

    def follow(name: str) -> tuple:
        return getattr(before, name), getattr(limit, name)

    joined = {name: jax.tree.map(both, *follow(name)) for name in ("ts", "a", "loss", "metrics")}
    points = {name: getattr(limit, name) if metrics else jax.tree.map(both, *follow(name)) for name in ("x", "w", "mu")}
    return Solution(
        **joined,
        **points,
        last=limit.last,
        t_end=limit.t_end,
        stats=before.stats,
        result=first_of(before.result, limit.result),
    )
