"""Maximum-margin classifiers for the norms that potentials have at infinity, by convex programs of scipy."""

import abc
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linprog, nnls

from ...geometry import AbstractLegendre

Values = Float[np.ndarray, "..."] | float  # numpy makes a number of one value


class AbstractHorizon(abc.ABC):
    """`phi(x)`, what a potential grows like at infinity, up to scale: convex, positive, `phi(s x) = s phi(x)`.

    A mirror flow on separable data with an exponential tail moves towards `argmin phi(x)` s.t. all margins are >= 1,
    where the potential's dual interval is the whole line.

    Source: Pesme, Dragomir, Flammarion (2024), "Implicit bias of mirror flow on separable data".
    """

    @abc.abstractmethod
    def size(self, x: Float[np.ndarray, "... d"]) -> Values:
        """`phi(x)`."""

    @abc.abstractmethod
    def solve(self, B: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
        """`argmin phi(x)` s.t. `B x >= 1`, B holding the points times their labels.

        **Raises:** `ValueError` where the points are not separable.
        """

    def share(self, B: Float[np.ndarray, "n d"], x: Float[np.ndarray, "... d"]) -> Values:
        """The margin `min_i (B x)_i / phi(x)` over the largest there is: 1 for the best direction, NaN for x = 0."""
        largest = 1 / self.size(self.solve(B))
        size = self.size(x)
        return np.min(x @ B.T, axis=-1) / np.where(size > 0, size, np.nan) / largest


@dataclass(frozen=True)
class Euclidean(AbstractHorizon):
    """`phi(x) = |x|_2`."""

    def size(self, x: Float[np.ndarray, "... d"]) -> Values:
        return np.linalg.norm(x, axis=-1)

    def solve(self, B: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
        """Least-distance programming as non-negative least squares (Lawson and Hanson, 1974, chapter 23)."""
        n, d = B.shape
        E, f = np.vstack([B.T, np.ones(n)]), np.append(np.zeros(d), 1.0)
        residual = E @ nnls(E, f)[0] - f
        # The residual vanishes exactly when the constraints contradict each other; it is of order 1 otherwise.
        if np.linalg.norm(residual) < 1e-10:
            raise ValueError("the points are not separable by a hyperplane through 0: there is no margin")
        return -residual[:d] / residual[d]


@dataclass(frozen=True)
class Polyhedral(AbstractHorizon):
    """`phi(x) = sum_i up_i max(x_i, 0) + down_i max(-x_i, 0)`, positive up and down: L1 where all are 1."""

    up: Float[np.ndarray, " d"]
    down: Float[np.ndarray, " d"]

    def size(self, x: Float[np.ndarray, "... d"]) -> Values:
        return np.sum(np.where(x > 0, self.up, self.down) * np.abs(x), axis=-1)

    def solve(self, B: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
        """A linear program in the positive and the negative part of x."""
        n, d = B.shape
        solved = linprog(np.concatenate([self.up, self.down]), A_ub=np.hstack([-B, B]), b_ub=-np.ones(n))
        if solved.status != 0:
            raise ValueError(f"there is no margin, the linear program says: {solved.message}")
        return solved.x[:d] - solved.x[d:]

    def within(self, coordinates: Bool[np.ndarray, " d"]) -> "Polyhedral":
        """The same of these coordinates alone."""
        return Polyhedral(self.up[coordinates], self.down[coordinates])


def separable_horizon(R: AbstractLegendre, a: float) -> Polyhedral:
    """The horizon function of an elementwise R_a: its slopes at infinity are the ends of the dual interval.

    Where those are infinite, R_a grows faster than linearly, like `|x_i| log |x_i|` in every coordinate for the
    families here (Hadamard), and only the equal weights are left: L1.
    """
    lower, upper = (np.asarray(end) for end in R.dual_interval(a))
    if np.all(np.isinf(lower)) and np.all(np.isinf(upper)):
        return Polyhedral(np.ones_like(upper), np.ones_like(upper))
    return Polyhedral(upper, -lower)
