"""A user's package, built with `import mirrorjax` alone: a family with its closed form, a schedule, a regularizer, an
objective, a flow and an experiment. Nothing of the library is edited or reached into.
"""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import mirrorjax as mj

# The package ---------------------------------------------------------------------------------------------------------


class Exponential(mj.AbstractReparameterization):
    """`x = e^w > 0`, elementwise."""

    degree = property(lambda self: None)
    elementwise = property(lambda self: True)

    def __call__(self, w):
        return jnp.exp(w)

    def check(self, w):
        if not eqx.is_array(w):
            raise ValueError(f"Exponential takes one array, got {w!r}")


class SumOfExponentials(mj.AbstractRegularizer):
    """`h(w) = sum e^w`, which commutes with `Exponential`: grad h = grad g_i, coordinate by coordinate."""

    smooth: ClassVar[bool] = True
    degree = property(lambda self: None)
    elementwise = property(lambda self: True)

    def __call__(self, w):
        return jnp.sum(jnp.exp(w))


class ExponentialLegendre(mj.AbstractSeparableLegendre):
    """`psi = -log(e^{-w0} - mu - a)` and `Q_a = sum psi`, so `grad R_a(x) = e^{-w0} - a - 1/x`."""

    w0: Float[Array, "..."]

    def flow(self, mu, a):
        return -jnp.log(jnp.exp(-self.w0) - mu - a)

    def potential_terms(self, mu, a):
        return self.flow(mu, a)

    def dual_interval_at(self, a):
        upper = jnp.exp(-self.w0) - a
        return jnp.full_like(upper, -jnp.inf), upper


mj.register_legendre(Exponential, SumOfExponentials, lambda g, h, w0: ExponentialLegendre(w0))


class Triangle(mj.AbstractSchedule):
    """`alpha(t)` rises to `peak` at t = half and falls to 0 at t = 2 half."""

    peak: Float[Array, ""]
    half: Float[Array, ""]

    def strength(self, t):
        return self.peak * jnp.maximum(1 - jnp.abs(t / self.half - 1), 0)

    def integral(self, t):
        s = jnp.clip(t / self.half, 0, 2)
        return self.peak * self.half * jnp.where(s < 1, s**2 / 2, 1 - (2 - s) ** 2 / 2)

    @property
    def breakpoints(self):
        return jnp.stack([self.half, 2 * self.half])

    def valid(self, t1):
        return (self.peak >= 0) & jnp.isfinite(self.peak) & (self.half > 0)


class Huber(mj.AbstractMeasured):
    """`f(x) = sum huber(Z x - y)`, with the quadratic part up to 1."""

    Z: Float[Array, "n d"]
    y: Float[Array, " n"]

    def measure(self, x):
        return self.Z @ x

    def adjoint(self, r):
        return self.Z.T @ r

    def loss(self, z):
        r = jnp.abs(z - self.y)
        return jnp.sum(jnp.where(r < 1, r**2 / 2, r - 0.5))

    def slope(self, z):
        return jnp.clip(z - self.y, -1, 1)

    def check(self, x):
        if x.shape != self.Z.shape[1:]:
            raise ValueError(f"Huber is built for x of shape {self.Z.shape[1:]}, got {x.shape}")


class SignFlow(mj.AbstractFlow):
    """`dw/dt = -sign(grad)`, smoothed by tanh."""

    def prepare(self, problem, w0):
        return SignMotion(problem, w0)


class SignMotion(mj.AbstractMotion):
    problem: mj.Problem
    w0: Float[Array, "..."]

    def initial(self):
        return self.w0

    def velocity(self, t, state):
        return -jnp.tanh(10 * jax.grad(self.problem.loss)(state))

    def read(self, t, state):
        x = self.problem.g(state)
        return mj.Point(x, state, jnp.full_like(x, jnp.nan), self.problem.objective(x))

    def status(self, t, t1, state):
        return mj.RESULTS.successful

    def default_solver(self, *, is_stiff):
        return diffrax.Tsit5()


def run_experiment(folder, setting):
    x = np.linspace(0, 1, 3)
    folder.save_table("squares", [{"x": float(value), "square": float(value**2)} for value in x])
    folder.claim("The square of 1 is 1.", paper="1", ours="1", holds=True)


# The tests -----------------------------------------------------------------------------------------------------------

W0 = jnp.array([0.1, -0.3, 0.2])
Z = jnp.array([[1.0, 0.5, -0.2], [0.3, -1.0, 0.4]])


def problem(schedule: Any = 0.1):
    return mj.Problem(Exponential(), SumOfExponentials(), schedule, Huber(Z, jnp.array([1.5, -0.5])))


def test_the_family_is_measured_and_recovered():
    g, h = Exponential(), SumOfExponentials()
    report = mj.check(g, h, W0)
    assert report.verdict == mj.VERDICT.commuting
    closed, numeric = mj.legendre(g, h, W0), mj.legendre(g, h, W0, method="numeric")
    assert isinstance(closed, ExponentialLegendre)
    x, a = jnp.array([0.7, 1.2, 2.0]), -0.1
    np.testing.assert_allclose(closed.mirror_map(x, a), jnp.exp(-W0) - a - 1 / x, rtol=1e-12)
    # The numeric path integrates psi and inverts it, to about 1e-10.
    np.testing.assert_allclose(closed.mirror_map(x, a), numeric.mirror_map(x, a), rtol=1e-8)
    np.testing.assert_allclose(closed.value(x, a), numeric.value(x, a), rtol=1e-8)


def test_its_flows_agree_under_its_schedule_and_objective():
    schedule = Triangle(jnp.asarray(0.3), jnp.asarray(0.5))
    primal = mj.solve(problem(schedule), W0, t1=2.0, rtol=1e-9)
    mirror = mj.solve(problem(schedule), W0, t1=2.0, rtol=1e-9, flow=mj.MirrorFlow())
    np.testing.assert_allclose(primal.a[-1], -0.15, rtol=1e-12)
    # Two solves of 1e-9 a step over some hundred steps.
    np.testing.assert_allclose(mirror.x, primal.x, rtol=1e-6)
    np.testing.assert_allclose(mirror.mu, primal.mu, rtol=1e-6)


def test_its_flow_runs_in_solve_and_sweep():
    alone = mj.solve(problem(), W0, t1=1.0, flow=SignFlow())
    assert float(alone.loss[-1]) < float(problem().loss(W0))
    dataset = mj.sweep(lambda alpha: (problem(alpha), W0), {"alpha": [0.0, 0.1]}, t1=1.0, flow=SignFlow())
    assert set(dataset.status.values.tolist()) == {"successful"}
    np.testing.assert_allclose(dataset.x.isel(alpha=1), alone.x[-1], rtol=1e-9)


def test_a_subclass_does_not_inherit_a_closed_form():
    class Shifted(mj.Hadamard):
        def __call__(self, w):
            return mj.Hadamard.__call__(self, w) + 1.0

    with pytest.raises(ValueError, match="no closed form"):
        mj.legendre(Shifted(), mj.WeightDecay(), (jnp.ones(2), jnp.full(2, 0.3)), method="closed_form")


def test_its_experiment_runs_in_a_folder_with_a_report(tmp_path):
    experiment = mj.experiments.Experiment("squares", "Squares of three numbers.", run_experiment)
    mj.experiments.reproduce(experiment, tmp_path / "run")
    assert "The square of 1 is 1." in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "squares.csv").read_text().splitlines()[0] == "x,square"
