"""solve(): one problem, checked, started and integrated; it raises where `sweep` records a status."""

from typing import Unpack

import diffrax
import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..calls import calling
from ..checks import Number, as_time_scalar, is_concrete, require_kind, require_positive
from ..compilation import Effort, compiled
from ..problem import Problem
from ..problem.problem import as_weights
from ..results import require_success
from .adjoints import StoredSteps, choose_adjoint, has_lanes, in_reverse, is_reversed_alone
from .at_infinity import after_switch_off, solve_at_infinity
from .blocks import for_lanes, in_blocks, is_batched
from .integrate import integrate
from .motion import state_dtype
from .options import (
    Integration,
    choose_flow,
    make_options,
    refuse_unknown,
    with_integration,
    with_metrics_traced,
)
from .solution import Solution


@with_integration
@jax.transfer_guard("allow")  # the transfers here are meant: arguments to the device, a status back
def solve(
    problem: Problem,
    w0: PyTree,
    *,
    t1: Number,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
    **how: Unpack[Integration],
) -> Solution:
    """Integrates the flow of `min f(g(w)) + alpha(t) h(w)` from the weights w0 over t in [0, t1].

    Jit-compiled, and differentiable with respect to every number in the problem, w0 and t1. Call it inside your own
    jit, vmap and grad, or hand many problems to `mirrorjax.sweep`. Under `jax.vmap` lanes without metrics are solved in
    blocks of a few dozen, each in the time of its slowest lane.

    **Arguments:**

    - `problem`: a `Problem`.
    - `w0`: initial weights, a pytree that `problem.g` accepts.
    - `t1`: the last time, in units of the flow: gradient descent with step size eta advances eta a step. `jnp.inf` asks
      for the limit of a flow whose alpha is switched off: only the finite `saveat` are integrated, the limit is that of
      `predict_limit` and not integrated, `sol.last` and `sol.t_end` are at infinity, and so is a last save time of
      `inf` (the only one unless told otherwise). Its mu is `grad R_a(x)`, which is `-int grad f dt` unless R leaks. It
      is refused where no limit is known: alpha that is not switched off, objectives without interpolation such as
      `Logistic`, other flows than gradient flow, pairs without R_a.
    - `adjoint`: how the steps are differentiated. In reverse mode, for explicit Runge-Kutta solvers, each kept step by
      itself: the states of up to 1024 steps are stored, as far as they fit into a mebibyte, those of later steps from
      time to time, which takes the steps between them once more, and memory for twice the root of `max_steps` states;
      `diffrax.RecursiveCheckpointAdjoint()` for other solvers. `diffrax.ForwardMode()` under `jax.jvp` and
      `jax.jacfwd`, and where nothing is differentiated, since it compiles fastest; `diffrax.DirectAdjoint()` for both
      together, as in `jax.hessian`. Chosen by the transformations around the call, as far as they show: outside a
      `jax.jit` around it they do not, so that `jax.jacfwd(jax.jit(f))` needs `diffrax.ForwardMode()` named, or
      `jax.jit(jax.jacfwd(f))`. Where a solve fails, the first derivatives of the values that it did not reach are NaN
      like the values; second ones may be 0.
    - `throw`: raise when the result is not successful; otherwise look at `sol.result`.
    - `saveat`: increasing times in [0, t1] to save at; `None` for the final state only.
    - `metrics`: a function of `(t, x, w)`, saved at those times instead of the whole state.
    - `flow`: `PrimalFlow()` unless told otherwise; also `MirrorFlow()`, `RiemannianFlow()`, `Descent(..)`,
      `ProximalDescent(..)`.
    - `solver`: an explicit or implicit diffrax solver. Unless told otherwise `diffrax.Tsit5()`; but `RKC()`, which
      takes stiff flows in long steps, where rtol >= 1e-4 (so in float32) and the flow is stiff: t1 times the spectral
      radius of its Jacobian, measured at w0, is 350 or more. Inside `jit` and `vmap` the numbers of the flow are not
      known when the solver is chosen, and it is Tsit5: pass `RKC()` for a stiff flow there. Chosen so, the relative
      error of x at t1 is 1e-8 to 3e-4 at rtol 1e-4 (`python benchmarks/default_solver.py`). Just after a switch-off
      that of RKC is 1e-4 to 3e-3: for the transient itself ask for a tighter rtol. Descents have a solver of their own.
    - `rtol`, `atol`: error per step, relative and absolute, in the flow's coordinates, which are of order one. Unless
      told otherwise 1e-6 in float64 and 1e-4 in float32, and a hundredth of that.
    - `max_steps`: give up after so many steps, accepted or not; 100,000 unless told otherwise.

    **Returns:** a `Solution`.

    **Raises:** `ValueError` for arguments that do not fit, with the value and the remedy; `RuntimeError` with the
    advice of `RESULTS` when the flow fails and `throw` is set.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3), (5), (7).
    """
    refuse_unknown(how, "solve")
    require_kind(problem, Problem, "problem", "a Problem(g, h, alpha, objective), the first argument before w0")
    w0, given, t1, flow = as_weights(w0), t1, as_time_scalar(t1, "t1"), choose_flow(how)
    # The number that was given: under an outer jit the converted one is traced.
    endless = is_concrete(given) and bool(np.isposinf(np.asarray(given)))
    if not endless:
        require_positive(t1, "t1")
    problem.check(w0, after_switch_off(problem) if endless else t1)
    problem = problem.capture(w0)
    motion = flow.prepare(problem, w0)
    if endless:
        solution = solve_at_infinity(problem, motion, flow, adjoint, how)
        return require_success(solution, solution.result) if throw else solution
    like = eqx.filter_eval_shape(lambda motion: motion.initial(), motion)
    dtype, how = state_dtype(like), with_metrics_traced(how, motion, like)
    inputs = (problem, w0, t1, flow, dict(how))
    # Functions of the problem are captured, others may close over numbers that are batched.
    functions = callable(how.get("metrics")) or any(map(callable, jax.tree.leaves((flow, how.get("solver")))))
    chosen = choose_adjoint(inputs) if adjoint is None else adjoint
    reversible = adjoint is None and not functions and isinstance(chosen, StoredSteps)
    lanes = reversible and is_batched(inputs)
    options = make_options(flow, motion, dtype, t1, how, chosen)
    options = for_lanes(options) if reversible and has_lanes(inputs) else options
    with calling("the problem"):
        program = compiled(integrate, Effort.LESS, motion, options)
        if reversible and is_reversed_alone((motion, options)):
            solution = in_reverse(integrate, Effort.LESS, motion, options)
            solution = eqx.tree_at(lambda solution: solution.ts, solution, options.ts)  # known, if the save times are
        else:
            solution = in_blocks(program, motion, options) if lanes else program(motion, options)
    return require_success(solution, solution.result) if throw else solution
