"""Bias: the (mu, a) of each coordinate of trained weights, and the steps that every family's reading shares."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import is_concrete
from ..results import RESULTS, select, status_name

Values = Float[Array, "..."]
Move = tuple[Values, Values]  # one factor at the start, and after training


class Bias(eqx.Module):
    """The bias that a training run has accumulated, one entry a coordinate; `mirrorjax.read_bias` returns it.

    - `mu`: the dual variable, shaped like x = g(w).
    - `a`: the accumulated regularization, shaped like x. Under the flow every entry is `a_t = -int_0^t alpha`. Finite
      steps, noise and the optimizer move the entries apart, and an entry may be positive.
    - `result`: a `RESULTS`, one status a coordinate: `successful`; `other_orthant`, `balanced`, `diverged` and
      `invalid_weights` say why no flow leads from w0 to w; `overflow`; `not_converged`. Both floats are NaN unless the
      status is successful.
    """

    mu: Values
    a: Values
    result: RESULTS

    @property
    def ok(self) -> Bool[Array, "..."]:
        """True for each coordinate whose status is successful."""
        return self.result == RESULTS.successful

    def __repr__(self) -> str:
        if not is_concrete(self):
            return f"Bias(mu, a and result of shape {self.a.shape}, traced)"
        names, counts = np.unique(status_name(self.result), return_counts=True)
        statuses = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True)) or "no coordinates"
        a, mu = (np.asarray(part)[np.asarray(self.ok)] for part in (self.a, self.mu))
        if not a.size:
            return f"Bias({statuses})"
        shares = np.quantile(a.astype(float), [0, 0.25, 0.5, 0.75, 1])
        low, first, middle, third, high = (f"{share:.4g}" for share in shares)
        return (
            f"Bias(a: {low} to {high}, median {middle}, middle half {first} to {third}; "
            f"mu: {float(mu.min()):.4g} to {float(mu.max()):.4g}; {statuses})"
        )


def orthant_status(*moves: Move) -> RESULTS:
    """The status of factors that keep their sign along every flow, and that no flow leads to or away from 0."""
    everywhere = jnp.ones(moves[0][0].shape, bool)
    result = select(everywhere, RESULTS.successful, RESULTS.successful)
    for start, end in moves:
        result = select(jnp.sign(start) == jnp.sign(end), result, RESULTS.other_orthant)
    for start, end in moves:
        result = select((start == 0) | (end == 0), RESULTS.balanced, result)
    return finite_status(*moves, result=result)


def finite_status(*moves: Move, result: RESULTS | None = None) -> RESULTS:
    """The given status, `successful` by default, except where a factor is not finite."""
    everywhere = jnp.ones(moves[0][0].shape, bool)
    result = select(everywhere, RESULTS.successful if result is None else result, RESULTS.successful)
    for _, end in moves:
        result = select(jnp.isfinite(end), result, RESULTS.diverged)
    for start, _ in moves:
        result = select(jnp.isfinite(start), result, RESULTS.invalid_weights)
    return result


def require_start(condition: Bool[Array, "..."], result: RESULTS) -> RESULTS:
    """The given status, and `invalid_weights` where the condition on the start fails and nothing else is wrong."""
    return select(condition | (result != RESULTS.successful), result, RESULTS.invalid_weights)


def bias_of(moves: tuple[Move, Move], read: Callable[..., tuple[Values, Values]], result: RESULTS) -> Bias:
    """The `Bias` with `(mu, a) = read(*moves)`, which is evaluated only where the status is successful.

    Elsewhere every factor is replaced by 1 before, so that a bad coordinate poisons no derivative of a good one.
    """
    ok = result == RESULTS.successful
    safe = ((jnp.where(ok, start, 1.0), jnp.where(ok, end, 1.0)) for start, end in moves)
    mu, a = read(*safe)
    result = select(jnp.isfinite(mu) & jnp.isfinite(a) | ~ok, result, RESULTS.overflow)
    ok = result == RESULTS.successful
    return Bias(jnp.where(ok, mu, jnp.nan), jnp.where(ok, a, jnp.nan), result)


def from_times(plus: Values, minus: Values, scale: Float[Array, ""]) -> tuple[Values, Values]:
    """`(mu, a)` of the times that the two factors have flowed, `mu + c a` and `-mu + c a`."""
    # Halved before they are added, so that two long times do not overflow.
    return plus / 2 - minus / 2, (plus / 2 + minus / 2) / scale.astype(plus.dtype)
