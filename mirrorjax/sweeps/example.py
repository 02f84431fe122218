"""The lane of `example.toml`, which `mirrorjax sweep --example` prints: five ones among 40 numbers, 20 measurements."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Hadamard, LeastSquares, Problem, SwitchOff, WeightDecay

SIZE, KNOWN, ONES = 40, 20, 5


def truth() -> Float[Array, " n"]:
    """The vector that is to be found: ones, then zeros."""
    return jnp.zeros(SIZE).at[:ONES].set(1.0)


def lane(alpha: Float[Array, ""], t_off: Float[Array, ""]) -> tuple[Problem, Any]:
    """Builds the problem and the initial weights of one lane: x = m w with weight decay alpha until t_off."""
    Z = jax.random.normal(jax.random.key(0), (KNOWN, SIZE))
    f = LeastSquares(Z, Z @ truth())
    return Problem(Hadamard(), WeightDecay(), SwitchOff(alpha, t_off), f), (jnp.ones(SIZE), jnp.zeros(SIZE))


def metrics(t: Float[Array, ""], x: Float[Array, " n"], w: Any) -> dict[str, Float[Array, ""]]:
    """The distance to the truth, and the L1 norm."""
    return {"error": jnp.linalg.norm(x - truth()), "l1": jnp.sum(jnp.abs(x))}
