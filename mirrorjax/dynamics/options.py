"""The keywords by which `solve` and `sweep` are told how to integrate, spelled once and checked once."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ..calls import calling, misfit_of
from ..checks import (
    Number,
    Numbers,
    as_array,
    as_count,
    as_time,
    as_time_scalar,
    freeze,
    is_concrete,
    on_host,
    positive,
    refuted,
    require_kind,
    require_positive,
)
from ..programs import as_program
from ..results import RESULTS, first_of
from .adjoints import DIFFERENTIATES_STEPS, StoredSteps, require_adjoint
from .flows.primal import PrimalFlow
from .guards import Metrics
from .motion import AbstractFlow, AbstractMotion, Solver
from .stiffness import motion_is_stiff

# The default rtol of float32 is 1e-4, which rounds to a little less there.
STABILIZED_FROM = 0.99e-4

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
    max_steps: int = eqx.field(static=True)  # static: memory for derivatives is sized by it
    end_only: bool = eqx.field(static=True)  # static: a program that saves nothing on the way is a simpler one

    @property
    def is_implicit(self) -> bool:
        """True for a solver that solves equations in each step."""
        return isinstance(self.solver, diffrax.AbstractImplicitSolver)

    def input_status(self, motion: AbstractMotion, state: PyTree) -> RESULTS:
        """`successful` if the motion can be integrated from the initial state with these numbers, else why not."""
        return first_of(self.number_status(motion, state), freeze(motion).start_status(freeze(state)))

    def number_status(self, motion: AbstractMotion, state: PyTree) -> RESULTS:
        """`input_status`, as far as it is known without a velocity.

        The one place that judges numbers that may be traced: those known when the solve is called were refused then.
        """
        options, motion, state = freeze((self, motion, state))
        increasing = jnp.all(jnp.diff(options.ts) > 0)
        times = positive(options.t1) & increasing & (options.ts[0] >= 0) & (options.ts[-1] <= options.t1)
        numbers = positive(options.rtol) & positive(options.atol) & motion.clock.valid()
        status = RESULTS.where(numbers, motion.number_status(state, options.t1), RESULTS.invalid_options)
        return RESULTS.where(times, status, RESULTS.invalid_times)

    def usable_where(self, valid: Bool[Array, ""]) -> "Options":
        """These options, with stand-ins for the numbers of a lane that is not valid.

        Such a lane is not integrated, but it runs through the same program as the others, which must come to its end.
        """
        numbers = (self.ts, self.t1, self.rtol, self.atol)
        placeholders = (jnp.zeros_like(self.ts), *map(jnp.ones_like, numbers[1:]))
        chosen = jax.tree.map(lambda number, other: jnp.where(valid, number, other), numbers, placeholders)
        return eqx.tree_at(lambda options: (options.ts, options.t1, options.rtol, options.atol), self, chosen)


def refuse_unknown(how: Integration, caller: str) -> None:
    """Raises `TypeError` for a keyword that `caller` does not have."""
    if unknown := sorted(set(how) - set(Integration.__annotations__)):
        known = ", ".join(Integration.__annotations__)
        raise TypeError(f"{caller}() has no argument {', '.join(unknown)}; beside its own it has {known}")


def choose_flow(how: Integration) -> AbstractFlow:
    """The flow asked for, `PrimalFlow()` where none is. Raises `ValueError` for anything that is not a flow."""
    flow = how.get("flow")
    flow = PrimalFlow() if flow is None else flow
    require_kind(flow, AbstractFlow, "flow", "a flow such as PrimalFlow() or Descent(optimizer, step_size)")
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
    keywords; `adjoint`: one that differentiates steps, reverse mode where it is `None`; `is_stiff`: measures whether
    the flow is stiff, where the given motion is only its shapes.
    **Raises:** `ValueError` for an argument that does not fit, with its value.
    """
    require_positive(t1, "t1")
    flow.clock.check(t1, type(flow).__name__)
    metrics = require_metrics(how.get("metrics"))
    _require_adaptive(how.get("solver"))
    require_adjoint(adjoint)
    single = jnp.finfo(dtype).bits < 64
    rtol = _tolerance(how.get("rtol"), "rtol", 1e-4 if single else 1e-6)
    max_steps = how.get("max_steps")
    loose = _is_loose(rtol, single, adjoint)
    measure = (lambda: motion_is_stiff(motion, t1)) if is_stiff is None else is_stiff
    return Options(
        ts=_save_times(how.get("saveat"), t1),
        t1=t1,
        rtol=rtol,
        atol=_tolerance(how.get("atol"), "atol", on_host(rtol) / 100),
        solver=motion.choose_solver(how.get("solver"), is_stiff=lambda: loose and measure()),
        adjoint=StoredSteps() if adjoint is None else adjoint,
        metrics=metrics,
        max_steps=100_000 if max_steps is None else as_count(max_steps, "max_steps"),
        end_only=how.get("saveat") is None,
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


def require_metrics(metrics: Any) -> Metrics | None:
    """The metrics. Raises `ValueError` unless they are `None` or a function that can be called with (t, x, w)."""
    if metrics is None:
        return None
    if not callable(metrics):
        raise ValueError(f"metrics must be a function of (t, x, w), got {metrics!r}")
    if misfit := misfit_of(metrics, "t", "x", "w"):
        raise ValueError(f"metrics must be a function of (t, x, w), got one of {misfit[0]}")
    return metrics


def with_metrics_traced(how: Integration, motion: AbstractMotion, like: PyTree) -> Integration:
    """The keywords with the metrics as their program, see `as_program`, so that equal metrics are compiled once.

    **Arguments:** `motion`, or its shapes; `like`: a state of it, or its shapes.
    **Raises:** `ValueError` unless the metrics are `None` or a function that can be called with (t, x, w).
    """
    metrics = require_metrics(how.get("metrics"))
    if metrics is None or any(leaf is not metrics for leaf in jax.tree.leaves(metrics)):
        return how  # a module, whose numbers are leaves already
    t = jax.ShapeDtypeStruct((), float)
    point = eqx.filter_eval_shape(lambda motion, t, state: motion.read(t, state), motion, t, like)
    with calling("metrics"):
        return {**how, "metrics": as_program(metrics, t, point.x, point.w)}


def _require_adaptive(solver: Any) -> None:
    """Raises `ValueError` unless the solver is `None` or one whose steps can be chosen by their errors."""
    if solver is None:
        return
    wanted = "a solver such as RKC() or diffrax.Tsit5()"
    require_kind(solver, diffrax.AbstractSolver, "solver", wanted)
    name = type(solver).__name__
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"{name} gives no estimate of its error, by which steps are chosen; solver must be {wanted} or "
            f"diffrax.HalfSolver({name}()); steps of one size are taken by flow=Descent(optax.sgd(1.0), step_size)"
        )
    if solver.term_structure not in (diffrax.AbstractTerm, diffrax.ODETerm):
        raise ValueError(f"{name} is for equations of several terms, a flow has one; solver must be {wanted}")
    _require_tolerances(solver)


def _require_tolerances(solver: diffrax.AbstractSolver) -> None:
    """Raises `ValueError` for an implicit solver inside a wrapper whose root finder has no tolerances of its own.

    diffrax fills in those of the step size for the outermost solver alone.
    """
    inner: Any = solver
    # diffrax's `isinstance` answers for the solver in a wrapper, so the classes are compared.
    while issubclass(type(inner), diffrax.AbstractWrappedSolver):
        inner = inner.solver
    finder = getattr(inner, "root_finder", None)
    if inner is not solver and not eqx.is_array_like(getattr(finder, "rtol", 0.0)):
        outer, name = type(solver).__name__, type(inner).__name__
        raise ValueError(
            f"the root finder of the {name} in {outer} has no tolerances, and inside a wrapper it is given none; "
            f"solver must be diffrax.{name}() itself, or {outer} of "
            f"diffrax.{name}(root_finder=diffrax.VeryChord(rtol=1e-8, atol=1e-8, norm=optimistix.max_norm))"
        )


def _save_times(saveat: Numbers | None, t1: Float[Array, ""]) -> Float[Array, " time"]:
    if saveat is None:
        return t1[None]
    ts = as_time(as_array(saveat, "saveat"), "saveat")
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"saveat must be a non-empty one-dimensional array of times, got shape {ts.shape}")
    if refuted(lambda: np.all(np.diff(np.asarray(ts)) > 0), ts):
        raise ValueError(f"saveat must be increasing without repeats, got {np.asarray(ts)}")
    if refuted(lambda: np.asarray(ts)[0] >= 0, ts):
        raise ValueError(f"saveat must lie in [0, t1] = [0, {t1}], got {np.asarray(ts)}")
    if refuted(lambda: np.asarray(ts)[-1] <= np.asarray(t1), ts, t1):
        excess = float(ts[-1]) - float(t1)
        raise ValueError(
            f"saveat must lie in [0, t1] = [0, {t1}], but its last time is above t1 by {excess:.3g}"
            + (", a rounding: pass t1=saveat[-1]" if excess <= 8 * jnp.finfo(ts.dtype).eps * float(t1) else "")
        )
    return ts
