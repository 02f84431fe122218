"""A pair (g, h) with its start: the families that experiments compare."""

from dataclasses import dataclass

import jax.numpy as jnp

from ...dynamics import RKC
from ...problem import AbstractRegularizer, AbstractReparameterization
from ...problem.reparam import Weights


@dataclass(frozen=True)
class Family:
    """A pair from one start, the same for all coordinates.

    `name`, `title`: of the family; `g`, `h`: the pair; `start`: one number a factor; `solver`: where the default solver
    of the flow does not do.
    """

    name: str
    title: str
    g: AbstractReparameterization
    h: AbstractRegularizer
    start: tuple[float, ...]
    solver: RKC | None = None

    def weights(self, d: int) -> Weights:
        """The initial weights of d coordinates."""
        factors = tuple(jnp.full(d, value) for value in self.start)
        return factors[0] if len(factors) == 1 else factors
