"""Problem: the four parts of a training run, and every check that needs two of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ..checks import as_array, as_time_scalar, refuted, require_kind
from ..reprs import readable
from .objective import AbstractObjective
from .regularizer import AbstractRegularizer
from .reparam import AbstractReparameterization, Weights
from .schedule import AbstractSchedule, Constant


def as_weights(w: PyTree) -> PyTree:
    """Converts every leaf to an array: Python floats and numpy arrays are taken as they are, nothing is cast.

    Raises `ValueError`, with the path of the leaf, for a leaf that is not an array of numbers.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: as_array(leaf, "w0" + jax.tree_util.keystr(path)), w)


class Problem(eqx.Module):
    """`min over w of f(g(w)) + alpha(t) h(w)`.

    **Arguments:** `g`: the reparameterization; `h`: the regularizer; `alpha`: its schedule, or a number for a constant
    strength, kept as the field `schedule`; `objective`: f.
    **Raises:** `ValueError` when a part is not of its kind.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (2), (3).
    """

    g: AbstractReparameterization
    h: AbstractRegularizer
    schedule: AbstractSchedule
    objective: AbstractObjective

    def __init__(
        self,
        g: AbstractReparameterization,
        h: AbstractRegularizer,
        alpha: AbstractSchedule | ArrayLike,
        objective: AbstractObjective,
    ):
        schedule = _as_schedule(alpha)
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
            require_kind(part, kind, name, advice)
        self.g, self.h, self.schedule, self.objective = g, h, schedule, objective

    def __repr__(self) -> str:
        return readable(self)

    def check(self, w0: PyTree, t1: Float[ArrayLike, ""]) -> None:
        """Raises `ValueError`, naming the value and the remedy, unless the parts fit these weights up to time t1."""
        self.g.check(w0)
        self.h.check(w0)
        self.objective.check(jax.eval_shape(self.g, w0))
        self.schedule.check(t1)
        t1 = as_time_scalar(t1, "t1")
        if refuted(lambda: _is_spent_finite(self.schedule, t1), eqx.filter(self.schedule, eqx.is_array), t1):
            raise ValueError(
                f"alpha is too strong: int_0^t1 alpha is {-self.accumulated(t1)} for t1 = {t1}; weaken it, or end it "
                "earlier"
            )

    def capture(self, w0: PyTree) -> "Problem":
        """This problem, with the traced numbers that users' functions close over as leaves.

        A compiled solve takes functions as constants, and a tracer cannot be one. Schedules do this when they are made.
        """
        g, h = self.g.capture(w0), self.h.capture(w0)
        return Problem(g, h, self.schedule, self.objective.capture(jax.eval_shape(self.g, w0)))

    def strength(self, t: Float[ArrayLike, ""], like: Float[Array, "..."]) -> Float[Array, ""]:
        """`alpha(t)` in the dtype of an array: schedules keep the precision of time, states may be shorter."""
        return self.schedule(jnp.asarray(t, float)).astype(like.dtype)

    def accumulated(self, t: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """`a_t = -int_0^t alpha(s) ds <= 0`, the regularization spent by time t."""
        return 0.0 - self.schedule.integral(jnp.asarray(t, float))  # not -0.0 before anything is spent

    def loss(self, w: Weights) -> Float[Array, ""]:
        """`f(g(w))`, without the regularizer."""
        return self.objective(self.g(w))


@eqx.filter_jit  # one program, where each operation would be one
def _is_spent_finite(schedule: AbstractSchedule, t1: Float[Array, ""]) -> Bool[Array, ""]:
    return jnp.isfinite(schedule.integral(jnp.asarray(t1, float)))


def _as_schedule(alpha: Any) -> AbstractSchedule:
    if isinstance(alpha, AbstractSchedule):
        return alpha
    if isinstance(alpha, type) and issubclass(alpha, AbstractSchedule):
        require_kind(alpha, AbstractSchedule, "alpha", "a schedule or a number")
    if callable(alpha):
        raise ValueError(
            f"alpha must be a schedule or a number, got the function {alpha!r}; wrap a function of the flow's time in "
            "CustomSchedule(fn, breakpoints=[...]), an optax schedule, which counts steps, in FromOptax(fn, step_size)"
        )
    return Constant(alpha)
