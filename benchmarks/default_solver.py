"""Stiffness, steps and errors at rtol 1e-4: which solver should a flow have by default?

    python benchmarks/default_solver.py [names]

For each problem: `t1 rho`, rho the spectral radius of the Jacobian at w0; the solver that this stiffness gives; and for
Tsit5 and RKC in float64 the steps and the relative error of x at t1, against Tsit5 at rtol 1e-11.
"""

import sys
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from work_problems import PROBLEMS

import mirrorjax as mj
from mirrorjax.dynamics.stiffness import STIFF_FROM, stiffness

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
OBJECTIVE = mj.LeastSquares(rng.normal(size=(3, 4)), rng.normal(size=3))
ONES = jnp.ones(4)


def squares(w: Any) -> jax.Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(w)), jnp.zeros(()))


def small(g: Any, h: Any, w0: Any, t1: float, t_off: float = 1.0) -> Callable[[], tuple]:
    return lambda: (mj.Problem(g, h, mj.SwitchOff(0.1, t_off), OBJECTIVE), w0, t1, mj.PrimalFlow())


def large(name: str) -> Callable[[], tuple]:
    setting = PROBLEMS[name]
    return lambda: (*setting.make(jnp.float64), setting.t1, setting.flow)


CUSTOM = mj.CustomRegularizer(squares)
POWER, CUBES = mj.PowerDifference(2), mj.PowerDifference(3)
ALL = {
    "u^4 - v^4, decay, t1 2": small(POWER, mj.WeightDecay(), (ONES, 0.8 * ONES), 2.0),
    "u^4 - v^4, compatible, t1 2": small(POWER, mj.Compatible(POWER), (ONES, 0.8 * ONES), 2.0),
    "u^4 - v^4, decay, t1 20": small(POWER, mj.WeightDecay(), (ONES, 0.8 * ONES), 20.0),
    "u^6 - v^6, decay, t1 2": small(CUBES, mj.WeightDecay(), (ONES, 0.9 * ONES), 2.0),
    "custom sinh w": small(mj.Custom(jnp.sinh), CUSTOM, 0.1 * ONES, 2.0),
    "custom w^3 + w": small(mj.Custom(lambda w: w**3 + w), CUSTOM, 0.1 * ONES, 5.0),
    "custom u v w": small(mj.Custom(lambda w: w[0] * w[1] * w[2]), CUSTOM, (0.3 * ONES, 0.5 * ONES, ONES), 5.0),
    "m w, t1 2": small(mj.Hadamard(), mj.WeightDecay(), (ONES, 0 * ONES), 2.0),
    "m w, tiny w0, t1 20": small(mj.Hadamard(), mj.WeightDecay(), (1e-3 * ONES, 0 * ONES), 20.0),
    "m w, t1 200": small(mj.Hadamard(), mj.WeightDecay(), (ONES, 0 * ONES), 200.0, 10.0),
    **{name: large(name) for name in ("sensing14", "hadamard", "mirror", "logistic", "product", "power")},
}


def main() -> None:
    print("| problem | t1 rho | default | Tsit5: steps, error | RKC: steps, error |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or ALL:
        problem, w0, t1, flow = ALL[name]()
        rho = float(stiffness(flow.prepare(problem, w0), jnp.asarray(t1)))

        def end(solver: Any, rtol: float, problem=problem, w0=w0, t1=t1, flow=flow) -> mj.Solution:
            return mj.solve(problem, w0, t1=t1, flow=flow, solver=solver, rtol=rtol, throw=False)

        truth, cells = end(diffrax.Tsit5(), 1e-11).x[-1], []
        for solver in (diffrax.Tsit5(), mj.RKC()):
            sol = end(solver, 1e-4)
            error = jnp.linalg.norm((sol.x[-1] - truth).ravel()) / jnp.linalg.norm(truth.ravel())
            cells.append(f"{int(sol.stats['steps'])}, {float(error):.1e}")
        default = "RKC" if rho >= STIFF_FROM else "Tsit5"
        print(f"| {name} | {rho:.3g} | {default} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
