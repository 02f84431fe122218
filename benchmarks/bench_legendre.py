"""A million mirror maps: by formula (Hadamard), and by bracketed inversion where none exists (power difference).

The residual recorded is that of the round trip, `max |grad Q_a(grad R_a(x)) - x| / |x|`. Where x is far out on a steep
inverse map, rounding of mu alone moves x by `eps |mu| J J^T`; `residual_in_eps` is the worst residual in that unit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import Array

import mirrorjax as mj

POINTS = 10**6

PAIRS = {
    "hadamard, closed form": (mj.Hadamard(), 0.1),
    "power difference k=3, bracketed": (mj.PowerDifference(3), 2.0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_million_mirror_maps(benchmark, measure: Callable, name: str):
    g, claimed_seconds = PAIRS[name]
    keys = jax.random.split(jax.random.key(0), 4)
    w0 = tuple(jax.random.uniform(key, (POINTS,), minval=0.5, maxval=1.5) for key in keys[:2])
    # Sizes from 1e-3 to 1e3 and both signs, each coordinate with initial weights of its own.
    x = jax.random.rademacher(keys[2], (POINTS,), float) * 10 ** jax.random.uniform(
        keys[3], (POINTS,), minval=-3, maxval=3
    )
    R, a = mj.legendre(g, mj.Compatible(g), w0), jnp.asarray(-0.5)
    mu = measure(lambda R, x, a: R.mirror_map(x, a), R, x, a)  # R as an argument: closed over, it is folded
    benchmark.extra_info.update(
        points=POINTS,
        points_per_second=POINTS / benchmark.stats.stats.median,
        claimed_seconds=claimed_seconds,
        **residuals(R, x, mu, a),
    )


def residuals(R: mj.AbstractLegendre, x: Array, mu: Array, a: Array) -> dict[str, float]:
    """The worst residual of the round trip: relative, and in units of what rounding of x and mu explains."""
    distance = jnp.abs(R.inverse_mirror_map(mu, a) - x)
    unit = jnp.finfo(x.dtype).eps * (jnp.abs(x) + jnp.abs(R.metric_vector(mu, mu, a)))
    return {
        "residual_relative": float(jnp.max(distance / jnp.abs(x))),
        "residual_in_eps": float(jnp.max(distance / unit)),
    }
