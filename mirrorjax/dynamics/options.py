"""The keywords by which `solve` and `sweep` are told how to integrate, spelled once and checked once."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import Number, Numbers, as_count, as_float, as_time_scalar, is_concrete, refuted, require_positive
from .flows.primal import PrimalFlow
from .guards import Metrics
from .motion import AbstractFlow, AbstractMotion, Solver
from .stiffness import motion_is_stiff

# The default rtol of float32 is 1e-4, which rounds to a little less there.
STABILIZED_FROM = 0.99e-4
# Adjoints that differentiate the steps themselves, as RKC needs.
DIFFERENTIATES_STEPS = diffrax.RecursiveCheckpointAdjoint | diffrax.DirectAdjoint | diffrax.ForwardMode

Function = TypeVar("Function", bound=Callable)


class Integration(TypedDict, total=False):
    """The keywords of `solve` and `sweep` that say how to integrate; `solve` documents them."""

    saveat: Numbers | None
    metrics: Metrics | None
    flow: AbstractFlow | None
    solver: Solver | None
    rtol: Number | None
    atol: Number | None
    max_steps: int | None


def with_integration(function: Function) -> Function:
    """Decorates a function of `**how: Unpack[Integration]` so that `help()` and completion list the keywords."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in Integration.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return function


class Options(eqx.Module):
    """Settings of the integration of a motion: save times, tolerances, solver. Numbers are leaves."""

    ts: Float[Array, " time"]
    t1: Float[Array, ""]
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    solver: Solver
    adjoint: diffrax.AbstractAdjoint
    metrics: Metrics | None
    max_steps: int = eqx.field(static=True)  # static: diffrax sizes its checkpoints by it


def refuse_unknown(how: Integration, caller: str) -> None:
    """Raises `TypeError` for a keyword that `caller` does not have."""
    if unknown := sorted(set(how) - set(Integration.__annotations__)):
        known = ", ".join(Integration.__annotations__)
        raise TypeError(f"{caller}() has no argument {', '.join(unknown)}; beside its own it has {known}")


def choose_flow(how: Integration) -> AbstractFlow:
    """The flow asked for, `PrimalFlow()` where none is. Raises `ValueError` for anything that is not a flow."""
    flow = how.get("flow")
    flow = PrimalFlow() if flow is None else flow
    if not isinstance(flow, AbstractFlow):
        raise ValueError(f"flow must be a flow such as PrimalFlow() or Descent(optimizer, step_size), got {flow!r}")
    return flow


def make_options(
    flow: AbstractFlow,
    motion: AbstractMotion,
    dtype: jnp.dtype,
    t1: Float[Array, ""],
    how: Integration,
    adjoint: diffrax.AbstractAdjoint | None = None,
    is_stiff: Callable[[], bool] | None = None,
) -> Options:
    """Checks the keywords and fills in the defaults of this motion.

    **Arguments:** `flow`; `motion`: of that flow, or its shapes; `dtype`: of the state; `t1`: the last time; `how`: the
    keywords; `adjoint`: a diffrax adjoint, reverse mode where it is `None`; `is_stiff`: measures whether the flow is
    stiff, where the given motion is only its shapes.
    **Raises:** `ValueError` for an argument that does not fit, with its value.
    """
    require_positive(t1, "t1")
    flow.clock.check(t1, type(flow).__name__)
    metrics = how.get("metrics")
    if metrics is not None and not callable(metrics):
        raise ValueError(f"metrics must be a function of (t, x, w), got {metrics!r}")
    single = jnp.finfo(dtype).bits < 64
    rtol = _tolerance(how.get("rtol"), "rtol", 1e-4 if single else 1e-6)
    max_steps = how.get("max_steps")
    loose = _is_loose(rtol, single, adjoint)
    measure = (lambda: motion_is_stiff(motion, t1)) if is_stiff is None else is_stiff
    return Options(
        ts=_save_times(how.get("saveat"), t1),
        t1=t1,
        rtol=rtol,
        atol=_tolerance(how.get("atol"), "atol", rtol / 100),
        solver=motion.choose_solver(how.get("solver"), is_stiff=lambda: loose and measure()),
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        metrics=metrics,
        max_steps=100_000 if max_steps is None else as_count(max_steps, "max_steps"),
    )


def _tolerance(value: Number | None, name: str, default: Any) -> Float[Array, ""]:
    tolerance = as_time_scalar(default if value is None else value, name)
    require_positive(tolerance, name)
    return tolerance


def _is_loose(rtol: Float[Array, ""], single: bool, adjoint: diffrax.AbstractAdjoint | None) -> bool:
    """True if the tolerance is 1e-4 or looser, all that a solver of second order can meet, and the adjoint one that
    differentiates steps, as the stabilized solver needs."""
    loose = float(rtol) >= STABILIZED_FROM if is_concrete(rtol) else single
    return loose and (adjoint is None or isinstance(adjoint, DIFFERENTIATES_STEPS))


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
