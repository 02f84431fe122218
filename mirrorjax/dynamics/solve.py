"""solve(): one problem, checked, started and integrated; it raises where `sweep` records a status."""

import diffrax
import equinox as eqx
from jaxtyping import ArrayLike, PyTree

from ..checks import Numbers
from ..problem import Problem
from ..problem.problem import as_weights
from ..results import RESULTS
from .flows.continuous import AbstractFlow
from .integrate import integrate
from .options import Metrics, Solver, as_time_scalar, make_options
from .solution import Solution


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
    - `solver`: any explicit or implicit diffrax solver. Unless told otherwise `RKC()`, which takes stiff flows in long
      steps, where rtol >= 1e-4 (so in float32), and `diffrax.Tsit5()` where it is tighter (so in float64). Just after a
      switch-off RKC is right to 1e-4 .. 3e-3 at rtol 1e-4, at the end to 1e-6 .. 1e-4: for the transient itself ask for
      a tighter rtol. Descents bring their own.
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
    w0, t1 = as_weights(w0), as_time_scalar(t1, "t1")
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
