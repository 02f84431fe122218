"""Options: the arguments of `solve` and `sweep`, checked once, with defaults for the precision of the weights."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks import Numbers, as_float, is_concrete, refuted
from ..problem.reparam import Weights
from .flows.continuous import AbstractFlow, MirrorFlow, PrimalFlow
from .flows.descent import AbstractDescent, DescentSolver, whole
from .solvers.rkc import RKC

Solver = diffrax.AbstractSolver
Metrics = Callable[[Float[Array, ""], Float[Array, "..."], Weights], PyTree]
# The default of float32, with room for its own rounding.
STABILIZED_FROM = 0.99e-4


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
    t1 = as_time_scalar(t1, "t1")
    if refuted(lambda: (t1 > 0) & jnp.isfinite(t1), t1):
        raise ValueError(f"t1 must be positive and finite, got {t1}")
    single = jnp.finfo(jnp.result_type(*jax.tree.leaves(w0))).bits < 64
    rtol = as_time_scalar((1e-4 if single else 1e-6) if rtol is None else rtol, "rtol")
    atol = rtol / 100 if atol is None else as_time_scalar(atol, "atol")
    for tolerance, name in ((rtol, "rtol"), (atol, "atol")):
        if refuted(lambda tolerance=tolerance: (tolerance > 0) & jnp.isfinite(tolerance), tolerance):
            raise ValueError(f"{name} must be positive and finite, got {tolerance}")
    return Options(
        ts=_save_times(saveat, t1),
        t1=t1,
        rtol=rtol,
        atol=atol,
        flow=flow,
        solver=_default_solver(flow, rtol, single, adjoint) if solver is None else solver,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        metrics=metrics,
        max_steps=max_steps,
    )


def _default_solver(
    flow: AbstractFlow, rtol: Float[Array, ""], single: bool, adjoint: diffrax.AbstractAdjoint | None
) -> Solver:
    """The stabilized solver for gradient flows at tolerances of 1e-4 and looser, where it was measured to need a fifth
    to three fifths of the evaluations of Tsit5; Tsit5 else. Curves: benchmarks/README.md."""
    loose = single if not is_concrete(rtol) else float(rtol) >= STABILIZED_FROM
    steps_differentiate = adjoint is None or isinstance(
        adjoint, diffrax.RecursiveCheckpointAdjoint | diffrax.DirectAdjoint | diffrax.ForwardMode
    )
    stabilized = loose and steps_differentiate and isinstance(flow, PrimalFlow | MirrorFlow)
    return RKC() if stabilized else diffrax.Tsit5()


def as_time_scalar(value: ArrayLike, name: str) -> Float[Array, ""]:
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
