"""Problem: the four parts of a training run, and every check that needs two of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from .objective import AbstractObjective
from .regularizer import AbstractRegularizer
from .reparam import AbstractReparameterization, Weights
from .schedule import AbstractSchedule, Constant


def as_weights(w: PyTree) -> PyTree:
    """Weights with every leaf an array: Python floats and numpy arrays are taken as they are, nothing is cast."""
    return jax.tree.map(jnp.asarray, w)


class Problem(eqx.Module):
    """`min over w of f(g(w)) + alpha(t) h(w)`.

    **Arguments:** `g`: the reparameterization; `h`: the regularizer; `alpha`: its schedule, or a number for a constant
    strength; `objective`: f.
    **Raises:** `ValueError` when a part is not of its kind.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (2), (3).
    """

    g: AbstractReparameterization
    h: AbstractRegularizer
    alpha: AbstractSchedule
    objective: AbstractObjective

    def __init__(
        self,
        g: AbstractReparameterization,
        h: AbstractRegularizer,
        alpha: AbstractSchedule | ArrayLike,
        objective: AbstractObjective,
    ):
        schedule = alpha if isinstance(alpha, AbstractSchedule) else Constant(alpha)
        parts = {
            "g": (g, AbstractReparameterization, "a reparameterization such as Hadamard(), or Custom(fn)"),
            "h": (h, AbstractRegularizer, "a regularizer such as WeightDecay(), or CustomRegularizer(fn)"),
            "objective": (
                objective,
                AbstractObjective,
                "an objective such as LeastSquares(Z, y), or CustomObjective(fn)",
            ),
        }
        for name, (part, kind, advice) in parts.items():
            if not isinstance(part, kind):
                raise ValueError(f"{name} must be {advice}; got {part!r}")
        self.g, self.h, self.alpha, self.objective = g, h, schedule, objective

    def check(self, w0: PyTree, t1: Float[ArrayLike, ""]) -> None:
        """Raise `ValueError`, naming the value and the remedy, unless the parts fit these weights up to time t1."""
        self.g.check(w0)
        self.h.check(w0)
        self.objective.check(jax.eval_shape(self.g, w0))
        self.alpha.check(t1)

    def strength(self, t: Float[ArrayLike, ""], like: Float[Array, "..."]) -> Float[Array, ""]:
        """`alpha(t)` in the dtype of an array: schedules keep the precision of time, states may be shorter."""
        return self.alpha(jnp.asarray(t, float)).astype(like.dtype)

    def accumulated(self, t: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """`a_t = -int_0^t alpha(s) ds <= 0`, the regularization spent by time t."""
        return 0.0 - self.alpha.integral(jnp.asarray(t, float))  # not -0.0 before anything is spent

    def loss(self, w: Weights) -> Float[Array, ""]:
        """`f(g(w))`, without the regularizer."""
        return self.objective(self.g(w))
