"""Coordinates of different depth, whose limit is a Bregman projection of the switch-off point and not argmin R_a."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...geometry import kkt_residual, legendre, predict_limit
from ...problem import Blocks, Hadamard, LeastSquares, Problem, SwitchOff, WeightDecay
from ...sweeps import sweep
from ..core.run import RunFolder

MEASUREMENTS, EACH = 4, 5  # coordinates of depth 2 and as many of depth 3
OFF, END, ALPHA = 1.0, 1e6, 0.3


def compare_blocks(folder: RunFolder, seed: int, how: dict[str, Any]) -> None:
    """Claims that the limit of blocks of depth 2 and 3 is the projection of the switch-off point, and no argmin.

    **Arguments:** `how`: the solver and the tolerances of the flow.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    Z = jax.random.normal(keys[0], (MEASUREMENTS, 2 * EACH))
    objective = LeastSquares(Z, Z @ jax.random.normal(keys[1], (2 * EACH,)))
    first = jax.random.uniform(keys[2], (2, EACH), minval=-0.3, maxval=0.3)
    w0 = (first[0], jnp.ones(EACH)), (first[1], jnp.ones(EACH), jnp.ones(EACH))
    g, h = Blocks(Hadamard(), Hadamard(3)), WeightDecay()

    def lane(alpha):
        return Problem(g, h, SwitchOff(alpha, OFF), objective), w0

    flow = sweep(
        lane,
        {"alpha": np.array([ALPHA])},
        t1=END,
        saveat=np.array([OFF, END]),
        metrics=lambda t, x, w: {"parameters": x},
        **how,
    )
    off, end = (jnp.asarray(each) for each in flow.parameters.values[0])
    R, a = legendre(g, h, w0), -ALPHA * OFF
    limit = predict_limit(R, objective, a, start=off)
    distance = float(jnp.linalg.norm(limit.x - end))
    folder.claim(
        "Blocks of depth 2 and 3 end at the Bregman projection of the switch-off point on the solutions",
        paper="-",
        ours=f"within {distance:.1e}",
        holds=distance < 1e-5,  # what the tolerances of the flow leave
    )
    residual = float(kkt_residual(R, objective, end, a))
    folder.claim(
        "Blocks of depth 2 and 3 do not end at the minimum of their R_a, as they would at one depth",
        paper="-",
        ours=f"KKT residual {residual:.2g}",
        holds=residual > 1e-2,
    )
