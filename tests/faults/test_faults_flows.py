"""Bad inputs of the limit at t1 = inf, of steepest flows, of momentum and of the flow in the space of the data."""

import jax.numpy as jnp
import numpy as np
import optax
from faults_table import Refusal, table

import mirrorjax as mj

W0 = (jnp.ones(2), jnp.zeros(2))
DESCENT = optax.sgd(1.0)
TARGET = mj.LeastSquares(np.eye(2), np.ones(2))
SWITCHED = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(0.1, 1.0), TARGET)


def solve_custom(flow):
    """Solves by a flow with an objective that is not known to be one of measurements."""
    objective = mj.CustomObjective(lambda x: jnp.sum((x - 1) ** 2))
    return mj.solve(mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.1, objective), W0, t1=1.0, flow=flow)


def endless(problem=SWITCHED, w0=W0, **how):
    return mj.solve(problem, w0, **{"t1": jnp.inf, **how})


def steepest(q=1.5, g=None, h=None, w0=W0, **how):
    return mj.SteepestFlow(q, **how).legendre(mj.Hadamard() if g is None else g, h or mj.WeightDecay(), w0)


AT_INFINITY = [
    Refusal(
        "limit of a descent",
        lambda: endless(flow=mj.Descent(DESCENT, 0.1)),
        "the limit of DescentMotion at t1 = inf is not known",
    ),
    Refusal("limit with momentum", lambda: endless(flow=mj.MomentumFlow(0.1, 0.5)), "the limit of MomentumMotion"),
    Refusal(
        "limit of logistic loss",
        lambda: endless(mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.0, mj.Logistic(np.eye(2), np.ones(2)))),
        "Logistic has no interpolation point",
    ),
    Refusal(
        "limit of any f",
        lambda: endless(mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.0, mj.CustomObjective(jnp.sum))),
        "CustomObjective is not known to depend on x through linear measurements",
    ),
    Refusal("limit, saved nowhere", lambda: endless(saveat=[]), "saveat must be a non-empty one-dimensional array"),
    Refusal("limit, unsorted", lambda: endless(saveat=[jnp.inf, 1.0]), "saveat must be increasing without repeats"),
    Refusal(
        "limit of a steepest flow with coupled decay",
        lambda: endless(flow=mj.SteepestFlow(1.5, "coupled")),
        "order q = 1.5 with coupled decay is no mirror flow",
    ),
]

STEEPEST = [
    *[Refusal(f"q = {q}", lambda q=q: mj.SteepestFlow(q), r"q must lie in \[1, 2\].*got") for q in (0.9, 2.1, jnp.nan)],
    Refusal("R of other g", lambda: steepest(g=mj.Square()), "for Hadamard.. with WeightDecay.c. alone, got Square"),
    Refusal("R of depth 3", lambda: steepest(g=mj.Hadamard(3)), "got Hadamard of depth 3 with WeightDecay"),
    Refusal("R of other h", lambda: steepest(h=mj.L1()), "got Hadamard of depth 2 with L1"),
    Refusal(
        "R, balanced", lambda: steepest(w0=(W0[0], W0[0])), r"needs factors of different size, got w0 = \(1.0, 1.0"
    ),
    Refusal("R, coupled", lambda: steepest(decay="coupled"), "is no mirror flow, since decay acts inside the power"),
    *[
        Refusal(
            f"momentum of {gamma}, {beta}",
            lambda gamma=gamma, beta=beta: mj.MomentumFlow(gamma, beta),
            r"gamma must be positive|beta must lie in \[0, 1\)",
        )
        for gamma, beta in ((0.0, 0.5), (-1.0, 0.5), (jnp.nan, 0.5), (0.1, 1.0), (0.1, -0.1))
    ],
    Refusal(
        "DualFlow without measurements",
        lambda: solve_custom(mj.DualFlow()),
        "CustomObjective is no function of such; use LeastSquares",
    ),
]


@table(AT_INFINITY)
def test_limits(row):
    row.check()


@table(STEEPEST)
def test_other_flows(row):
    row.check()
