"""The workloads of `bench_workloads.py`: what many users integrate, as lanes of a sweep and as a velocity by hand.

A velocity is what a careful user of diffrax writes for the same equations: products once, no dual variable, no guards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import mirrorjax as mj

Lane = Callable[[Array, Array], tuple[mj.Problem, Any]]


@dataclass(frozen=True)
class Workload:
    """Lanes over strengths and switch-off times, followed to t1.

    `velocity(alpha, w)` is -grad_w [f(g(w)) + alpha h(w)], written by hand; `parameters(w)` is g(w).
    """

    lane: Lane
    velocity: Callable[[Array, Any], Any]
    parameters: Callable[[Any], Array]
    start: Any
    alphas: np.ndarray
    t_offs: np.ndarray
    t1: float
    rtol: float

    @property
    def grid(self) -> dict[str, np.ndarray]:
        return {"alpha": self.alphas, "t_off": self.t_offs}

    @property
    def lanes(self) -> tuple[Array, Array]:
        """The strengths and the switch-off times of all lanes."""
        pairs = np.meshgrid(self.alphas, self.t_offs, indexing="ij")
        return jnp.asarray(pairs[0].ravel()), jnp.asarray(pairs[1].ravel())

    def plain(self, alpha: Array, t_off: Array) -> tuple[Array, Array]:
        """One lane by `diffrax.diffeqsolve`, its jump declared: x at t1 and the steps."""

        def field(t: Any, w: Any, args: Any) -> Any:
            strength = jnp.where(t < t_off, alpha, 0.0).astype(jax.tree.leaves(w)[0].dtype)
            return self.velocity(strength, w)

        control = diffrax.PIDController(rtol=self.rtol, atol=self.rtol / 100)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=self.t1,
            dt0=None,
            y0=self.start,
            stepsize_controller=diffrax.ClipStepSizeController(control, jump_ts=t_off[None]),
            max_steps=None,
        )
        w = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        return self.parameters(w), solution.stats["num_steps"]

    def solve(self, alpha: Array, t_off: Array) -> tuple[Array, Array]:
        """One lane by `mirrorjax.solve`."""
        problem, w0 = self.lane(alpha, t_off)
        solution = mj.solve(problem, w0, t1=self.t1, rtol=self.rtol, max_steps=10**6, throw=False)
        return solution.x[-1], solution.stats["steps"]

    def sweep(self, **how: Any) -> Any:
        return mj.sweep(self.lane, self.grid, t1=self.t1, rtol=self.rtol, max_steps=10**6, **how)


def data(n: int, d: int, dtype: Any) -> tuple[Array, Array]:
    """n Gaussian measurements of d unknowns, five of them one."""
    Z = jax.random.normal(jax.random.key(0), (n, d), float)
    y = Z @ jnp.zeros(d).at[:5].set(1.0)
    return Z.astype(dtype), y.astype(dtype)


def products(n: int, d: int, depth: int, dtype: Any = jnp.float64, side: int = 16, t1: float = 550.0) -> Workload:
    """Sparse regression by x = w_1 .. w_depth with weight decay, from (1, .., 1, 0)."""
    Z, y = data(n, d, dtype)
    f = mj.LeastSquares(Z, y)
    start = (*[jnp.ones(d, dtype)] * (depth - 1), jnp.zeros(d, dtype))

    def lane(alpha: Array, t_off: Array) -> tuple[mj.Problem, Any]:
        return mj.Problem(mj.Hadamard(depth), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f), start

    def parameters(w: Any) -> Array:
        x = w[0]
        for factor in w[1:]:
            x = x * factor
        return x

    def velocity(alpha: Array, w: Any) -> Any:
        slope = Z.T @ (Z @ parameters(w) - y) / n
        others = [parameters([other for j, other in enumerate(w) if j != i]) for i in range(depth)]
        return tuple(-slope * other - 2 * alpha * factor for other, factor in zip(others, w, strict=True))

    strongest = 0.3 if depth == 2 else 0.05  # stronger decay lets x of depth 3 die, see critical_strength
    rtol = 1e-6 if dtype == jnp.float64 else 1e-4
    alphas, t_offs = np.geomspace(strongest / 100, strongest, side), np.geomspace(t1 / 110, t1 / 11, side)
    return Workload(lane, velocity, parameters, start, alphas, t_offs, t1, rtol)


def powers(side: int) -> Workload:
    """Sparse regression by x = u^4 - v^4 with the regularizer that commutes with it, u^4 + v^4."""
    Z, y = data(40, 100, jnp.float64)
    f, g = mj.LeastSquares(Z, y), mj.PowerDifference(2)
    start = (jnp.ones(100), jnp.ones(100))

    def lane(alpha: Array, t_off: Array) -> tuple[mj.Problem, Any]:
        return mj.Problem(g, mj.Compatible(g), mj.SwitchOff(alpha, t_off), f), start

    def velocity(alpha: Array, w: Any) -> Any:
        u, v = w
        slope = Z.T @ (Z @ (u**4 - v**4) - y) / 40
        return -4 * u**3 * (slope + alpha), 4 * v**3 * (slope - alpha)

    alphas, t_offs = np.geomspace(3e-3, 0.3, side), np.geomspace(1.0, 10.0, side)
    return Workload(lane, velocity, lambda w: w[0] ** 4 - w[1] ** 4, start, alphas, t_offs, 100.0, 1e-6)


def logs(side: int) -> Workload:
    """Sparse regression by x = log u - log v with the regularizer that commutes with it, log u + log v."""
    Z, y = data(40, 100, jnp.float64)
    f, g = mj.LeastSquares(Z, y), mj.LogDifference()
    start = (2 * jnp.ones(100), 2 * jnp.ones(100))

    def lane(alpha: Array, t_off: Array) -> tuple[mj.Problem, Any]:
        return mj.Problem(g, mj.Compatible(g), mj.SwitchOff(alpha, t_off), f), start

    def velocity(alpha: Array, w: Any) -> Any:
        u, v = w
        slope = Z.T @ (Z @ (jnp.log(u) - jnp.log(v)) - y) / 40
        return -(slope + alpha) / u, (slope - alpha) / v

    alphas, t_offs = np.geomspace(1e-3, 0.1, side), np.geomspace(1.0, 5.0, side)
    return Workload(lane, velocity, lambda w: jnp.log(w[0]) - jnp.log(w[1]), start, alphas, t_offs, 100.0, 1e-6)


def labels(side: int) -> Workload:
    """Logistic regression on separable labels by x = m w, which grows for ever, to t = 1e6."""
    Z = jax.random.normal(jax.random.key(1), (40, 100))
    y = jnp.where(Z @ jnp.zeros(100).at[:5].set(2.0) > 0, 1.0, -1.0)
    f, start = mj.Logistic(Z, y), (jnp.ones(100), jnp.zeros(100))

    def lane(alpha: Array, t_off: Array) -> tuple[mj.Problem, Any]:
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), f), start

    def velocity(alpha: Array, w: Any) -> Any:
        m, v = w
        slope = Z.T @ (-y * jax.nn.sigmoid(-y * (Z @ (m * v)))) / 40
        return -slope * v - 2 * alpha * m, -slope * m - 2 * alpha * v

    alphas, t_offs = np.geomspace(1e-3, 0.1, side), np.geomspace(5.0, 50.0, side)
    return Workload(lane, velocity, lambda w: w[0] * w[1], start, alphas, t_offs, 1e6, 1e-6)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W2": lambda: products(40, 100, 2, side=32),
    "W2 float32": lambda: products(40, 100, 2, jnp.float32, side=32),
    "W3": lambda: products(100, 10_000, 2, side=6, t1=6.0),
    "W4": lambda: products(40, 100, 3, side=20),
    "W5 powers": lambda: powers(16),
    "W5 logs": lambda: logs(32),
    "W6": lambda: labels(32),
    # Of few lanes: what a sweep does before its first step counts.
    "W5 logs of 36 lanes": lambda: logs(6),
    "W6 of 36 lanes": lambda: labels(6),
}
