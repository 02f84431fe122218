"""Derivatives through the flow, in reverse and forward mode, against central differences of fourth order."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mirrorjax.compilation import Effort
from mirrorjax.dynamics import solve
from mirrorjax.dynamics.adjoints import in_reverse, is_reversed_alone
from mirrorjax.problem import CosineDecay, Gram, Hadamard, LeastSquares, MatrixSensing, Problem, SwitchOff, WeightDecay

rng = np.random.default_rng(5)
HADAMARD = {
    "data": jnp.asarray(rng.normal(size=(2, 3))),
    "w0": (jnp.ones(3), jnp.array([0.2, -0.3, 0.0])),
}
GRAM = {
    "data": jnp.asarray(rng.normal(size=(4, 3, 3))),
    "w0": jnp.eye(3) + 0.1 * jnp.asarray(rng.normal(size=(3, 3))),
}
SCHEDULES = {"switched": SwitchOff, "cosine": CosineDecay}
# A case compiles for twenty seconds: a schedule with a jump and one without, each with another family.
CASES = [("hadamard", "switched"), ("gram", "cosine")]


def inputs(family):
    return {"alpha": jnp.array(0.4), "t_off": jnp.array(0.8), **(HADAMARD if family == "hadamard" else GRAM)}


def solved(p, family, schedule, adjoint=None, throw=True):
    """The solution as a function of all inputs."""
    data = p["data"]
    target = jnp.linspace(-1.0, 1.0, data.shape[0])
    if family == "hadamard":
        g, objective = Hadamard(), LeastSquares(data, target)
    else:
        g, objective = Gram(), MatrixSensing(data, target)
    problem = Problem(g, WeightDecay(), SCHEDULES[schedule](p["alpha"], p["t_off"]), objective)
    # Programs for derivatives grow with the steps that they must have room for.
    how = {"adjoint": adjoint, "max_steps": 256, "throw": throw}
    return solve(problem, p["w0"], t1=1.7, rtol=1e-10, atol=1e-12, **how)


def end(p, family, schedule, adjoint=None):
    """A smooth number made of the end point, as a function of all inputs."""
    sol = solved(p, family, schedule, adjoint)
    return jnp.sum(jnp.sin(sol.x[-1])) + sol.loss[-1]


@eqx.filter_jit
def forward(p, v, family, schedule):
    """The value, and its derivative along v in forward mode: one program also for the differences of values."""
    return jax.jvp(lambda p: end(p, family, schedule, diffrax.ForwardMode()), (p,), (v,))


ALPHAS, T_OFFS = jnp.array([0.1, 0.4, 0.4]), jnp.array([1.2, 0.8, jnp.inf])


@functools.cache
def reverse_lanes():
    """Gradients of three lanes of the hadamard case, by one program; the second lane is `inputs("hadamard")`."""
    fixed = {key: leaf for key, leaf in inputs("hadamard").items() if key not in ("alpha", "t_off")}
    slope = jax.vmap(
        lambda alpha, t_off: jax.grad(end)({**fixed, "alpha": alpha, "t_off": t_off}, "hadamard", "switched")
    )
    return jax.jit(slope)(ALPHAS, T_OFFS)


def reverse_gradient(p, family, schedule):
    if family == "hadamard":
        return jax.tree.map(lambda leaf: leaf[1], reverse_lanes())
    return eqx.filter_jit(jax.grad(lambda p: end(p, family, schedule)))(p)


def direction(p, key):
    """A unit-scale direction in the inputs named by `key`, zero in the others."""
    zero = jax.tree.map(jnp.zeros_like, p)
    noise = np.random.default_rng(1)
    zero[key] = jax.tree.map(lambda leaf: jnp.asarray(noise.normal(size=leaf.shape)), p[key])
    return zero


def differenced(p, v, family, schedule):
    def at(k):
        return forward(jax.tree.map(lambda leaf, move: leaf + k * step * move, p, v), v, family, schedule)[0]

    step = 1e-2 / 4
    return (8 * (at(1) - at(-1)) - at(2) + at(-2)) / (12 * step)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "schedule"), CASES)
def test_reverse_and_forward_against_finite_differences(family, schedule):
    p = inputs(family)
    reverse = reverse_gradient(p, family, schedule)
    for key in p:
        v = direction(p, key)
        slope = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(reverse), jax.tree.leaves(v), strict=True))
        # Fourth order in 2.5e-3: 4e-11 times fifth derivatives; the solver's 1e-10 a step, over 2.5e-3.
        np.testing.assert_allclose(slope, differenced(p, v, family, schedule), rtol=1e-5, atol=1e-7)
        # The same steps differentiated both ways, exactly.
        np.testing.assert_allclose(slope, forward(p, v, family, schedule)[1], rtol=1e-8, atol=1e-10)


def test_failed_lanes_have_no_derivative_and_spoil_no_other():
    """A sum that leaves the failed lanes out has the derivatives of the others alone; of a failed loss it is NaN."""
    p = inputs("hadamard")

    @jax.jit
    def slopes(alphas, data, masked):
        def total(alphas, data):
            def lane(alpha):
                return solved({**p, "alpha": alpha, "data": data}, "hadamard", "switched", throw=False).loss[-1]

            lanes = jax.vmap(lane)(alphas)
            return jnp.sum(jnp.where(masked & jnp.isnan(lanes), 0.0, lanes))

        return jax.grad(total, argnums=(0, 1))(alphas, data)

    alphas = jnp.array([0.4, -0.4, -0.1])
    good = slopes(jnp.full(3, 0.4), p["data"], True)
    masked, spoiled = slopes(alphas, p["data"], True), slopes(alphas, p["data"], False)
    np.testing.assert_allclose(masked[0], [good[0][0], 0.0, 0.0], rtol=1e-8)
    np.testing.assert_allclose(masked[1], good[1] / 3, rtol=1e-8)
    np.testing.assert_allclose(spoiled[0], [good[0][0], jnp.nan, jnp.nan], rtol=1e-8)
    assert jnp.all(jnp.isnan(spoiled[1]))


def at_strength(alpha):
    return end({**inputs("hadamard"), "alpha": alpha}, "hadamard", "switched")


@functools.cache
def differenced_slope():
    """The second derivative in alpha, by differences of the forward derivative, which other tests compile."""
    e, p = 1e-3, inputs("hadamard")
    v = {**jax.tree.map(jnp.zeros_like, p), "alpha": jnp.array(1.0)}
    slopes = [forward({**p, "alpha": jnp.array(0.4 + k * e)}, v, "hadamard", "switched")[1] for k in (-2, -1, 1, 2)]
    return (slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / (12 * e)


@pytest.mark.slow
@pytest.mark.parametrize("second", [jax.hessian, lambda f: jax.grad(jax.grad(f))])
def test_second_derivatives_need_no_adjoint(second):
    # Fourth order in 1e-3, and the solver's 1e-10 a step.
    np.testing.assert_allclose(jax.jit(second(at_strength))(0.4), differenced_slope(), rtol=1e-6)


@pytest.mark.slow
def test_gradients_under_jit_and_vmap():
    p, lanes = inputs("hadamard"), reverse_lanes()
    for i in range(2):
        at = {**p, "alpha": ALPHAS[i], "t_off": T_OFFS[i]}
        for key in ("alpha", "t_off"):
            v = {**jax.tree.map(jnp.zeros_like, p), key: jnp.array(1.0)}
            expected = differenced(at, v, "hadamard", "switched")
            np.testing.assert_allclose(lanes[key][i], expected, rtol=1e-5, atol=1e-7)
    # A switch-off that never comes moves nothing, and spoils no other derivative.
    np.testing.assert_array_equal(lanes["t_off"][2], 0.0)
    assert jnp.isfinite(lanes["alpha"][2])


def test_a_trial_step_that_overflows_does_not_spoil_the_gradient():
    """After a quiet phase a first, far too long step overflows and is rejected: 0 times NaN must not become NaN."""
    Z = jax.random.normal(jax.random.key(0), (40, 100))
    objective = LeastSquares(Z, Z @ jnp.zeros(100).at[:5].set(1.0))

    @jax.jit
    @jax.value_and_grad
    def loss(t_off):
        problem = Problem(Hadamard(), WeightDecay(), SwitchOff(0.3, t_off), objective)
        return solve(problem, (jnp.ones(100), jnp.zeros(100)), t1=60.0, rtol=1e-9).loss[-1]

    step = 1e-3
    f = [loss(30.0 + k * step)[0] for k in (-2, -1, 1, 2)]
    # Errors of 1e-9 a step, divided by the step, on a derivative of 0.01.
    np.testing.assert_allclose(loss(30.0)[1], (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step), rtol=1e-3)


def test_lanes_that_take_other_numbers_of_steps_do_not_spoil_each_others_gradients():
    """When the mild lane saves, the stiff one is evaluated there too, hundreds of its steps ahead, and overflows."""

    def last(stiffness, t_off):
        objective = LeastSquares(stiffness * jnp.array([[1.0, 0.5]]), stiffness[None])
        problem = Problem(Hadamard(), WeightDecay(), SwitchOff(0.3, t_off), objective)
        w0 = (jnp.ones(2), jnp.zeros(2))
        return solve(problem, w0, t1=30.0, solver=diffrax.Tsit5(), rtol=1e-4, throw=False).x[-1, 0]

    slope = jax.jit(jax.vmap(jax.grad(last, argnums=1), in_axes=(0, None)))
    t_off = jnp.asarray(10.0)
    # Beside a lane of the same stiffness, which is never at another time.
    alone = [slope(jnp.full(2, stiffness), t_off)[0] for stiffness in (1.0, 4.0)]
    assert np.all(np.isfinite(alone))
    np.testing.assert_array_equal(slope(jnp.array([1.0, 4.0]), t_off), alone)


def test_reverse_mode_is_two_programs_that_are_compiled_quickly():
    """`in_reverse` gives what JAX gives: values and slopes, of results that nothing depends on too."""

    def fn(args, scale):
        x, count = args
        return {"y": scale * jnp.sin(x), "n": count + 1, "unused": jnp.sqrt(x - x), "word": "kept"}

    known = []

    def loss(x, derived):
        assert is_reversed_alone(((x, jnp.array(1)), 3.0)) == derived
        out = in_reverse(fn, Effort.LESS, (x, jnp.array(1)), 3.0) if derived else fn((x, jnp.array(1)), 3.0)
        known.append((int(out["n"]), out["word"]))
        return jnp.sum(out["y"] ** 2)

    x = jnp.array([0.3, -1.0])
    value, slope = jax.value_and_grad(loss)(x, True)
    np.testing.assert_allclose(value, jnp.sum(9 * jnp.sin(x) ** 2), rtol=1e-14)
    np.testing.assert_allclose(slope, 9 * jnp.sin(2 * x), rtol=1e-14)
    assert known == [(2, "kept")]
    assert not is_reversed_alone(x)


@pytest.mark.parametrize(
    "transform",
    [
        lambda fn: jax.jit(jax.grad(fn)),
        lambda fn: jax.grad(jax.jit(fn)),
        lambda fn: jax.grad(lambda x: jax.grad(fn)(x)[0]),
        lambda fn: lambda x: jax.vmap(jax.grad(fn))(x[None]),
        lambda fn: lambda x: jax.jvp(fn, (x,), (x,)),
    ],
    ids=["in jit", "around jit", "twice", "in vmap", "forward"],
)
def test_other_transformations_are_told_apart_from_reverse_mode_alone(transform):
    seen = []

    def look(x):
        seen.append(is_reversed_alone(x))
        return jnp.sum(x**3)

    transform(look)(jnp.array([1.0, 2.0]))
    assert seen == [False]
