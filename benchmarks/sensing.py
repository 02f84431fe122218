"""The sweep that every way of `bench_sweep.py` computes: one set of data, one grid of lanes, one truth.

Matrix sensing of the paper's section 5: X = U U^T from U = I, n x n of rank r, 3nr measurements, decay of strength
alpha until `12.5 / alpha`, alpha geometric from 0.02 to 20, up to t = 1250.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np

import mirrorjax as mj
from mirrorjax.experiments.theory.matrix_sensing import HORIZON, STEP, TOTAL, Data, Size, make_data

SEED = 2
RANK = {10: 2, 20: 2, 50: 5, 100: 5}
WEAKEST, STRONGEST = 0.02, 20.0
KNOWN = np.array([0.02, 0.2, 2.0, 20.0])  # the strengths whose exact end is computed
ALONE = 0.2  # the strength of ways that take one lane: descent of step 0.25 is stable there
TRUTH_RTOL = 1e-9

__all__ = ["ALONE", "HORIZON", "STEP", "TOTAL", "Case"]


@dataclass(frozen=True, eq=False)
class Case:
    """`lanes` strengths on n x n matrices, in float32; a count of 3k + 1 holds the four known strengths."""

    n: int
    lanes: int
    exact: Data  # in float64
    data: Data  # in float32

    @cached_property
    def alphas(self) -> np.ndarray:
        return np.array([ALONE]) if self.lanes == 1 else np.geomspace(WEAKEST, STRONGEST, self.lanes)

    @property
    def t_offs(self) -> np.ndarray:
        return TOTAL / self.alphas

    @property
    def y(self) -> np.ndarray:
        return np.array(self.data.objective.y)

    @property
    def packed(self) -> np.ndarray:
        """(m, n(n+1)/2): A_jk for j <= k, those off the diagonal twice, so that `<A, X>` takes X_jk as it is."""
        rows, columns = np.triu_indices(self.n)
        return np.array(self.data.objective.features) * np.where(rows == columns, 1, 2).astype(np.float32)

    @property
    def dense(self) -> np.ndarray:
        """(m, n^2), as it would be drawn and written down by hand."""
        rows, columns = np.triu_indices(self.n)
        A = np.zeros((self.y.size, self.n, self.n), np.float32)
        A[:, rows, columns] = A[:, columns, rows] = np.array(self.data.objective.features)
        return A.reshape(self.y.size, -1)

    def lane(self, alpha, t_off):
        """The lane function of `mirrorjax.sweep`."""
        problem = mj.Problem(mj.Gram(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), self.data.objective)
        return problem, jnp.eye(self.n, dtype=jnp.float32)

    @property
    def grid(self) -> mj.Zip:
        return mj.Zip(alpha=self.alphas, t_off=self.t_offs)

    @cached_property
    def truth(self) -> np.ndarray:
        """X at the end of the exact flow for the known strengths: float64, rtol 1e-9."""

        def end(alpha):
            problem = mj.Problem(mj.Gram(), mj.WeightDecay(), mj.SwitchOff(alpha, TOTAL / alpha), self.exact.objective)
            return mj.solve(problem, jnp.eye(self.n), t1=HORIZON, rtol=TRUTH_RTOL, throw=False).last.x

        return np.array(jax.jit(jax.vmap(end))(jnp.asarray(KNOWN)))

    def error(self, alphas: np.ndarray, X: np.ndarray) -> dict[str, float]:
        """Largest `|X - truth|_F / |truth|_F` over the known strengths among the finite lanes, and how many are not."""
        known, lane = np.nonzero(np.isclose(KNOWN[:, None], alphas[None], rtol=1e-6))
        difference = np.linalg.norm(X[lane] - self.truth[known], axis=(1, 2))
        errors = difference / np.linalg.norm(self.truth[known], axis=(1, 2))
        finite = np.isfinite(errors)
        return {
            "relative_error": float(np.max(errors[finite])),
            "diverged": int(np.sum(~np.isfinite(X).all(axis=(1, 2)))),
        }


@cache
def make_case(n: int, lanes: int) -> Case:
    exact = make_data(Size(n, RANK[n], heat=0), SEED)
    return Case(n, lanes, exact, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), exact))
