"""Objectives: value and gradient against numpy and autodiff, packed sensing matrices, bad data."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import OBJECTIVES, sensing
from sklearn.metrics import log_loss

from mirrorjax.problem import AbstractMeasured, CustomObjective, LeastSquares, Logistic, MatrixSensing

names = pytest.mark.parametrize("name", OBJECTIVES)


def point(shape, seed=20250428):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def built(name):
    entry = OBJECTIVES[name]
    return entry.build(*entry.data), point(entry.shape)


@cache
def everything(name):
    """f at a point, its derivatives there and along v, and at points near it and at multiples; by one program."""
    f, x = built(name)
    v, residuals = point(x.shape, 1), point(f.y.shape, 2) if isinstance(f, AbstractMeasured) else None
    near = jnp.asarray(np.asarray(x) + np.multiply.outer(STEP * np.array([1, -1, 2, -2]), np.asarray(v)))
    batch = jnp.asarray(np.multiply.outer([1.0, 2.0, -1.0], np.asarray(x)))

    @eqx.filter_jit
    def program(f, x, v, near, batch, r):
        found = {
            "value": f(x),
            "gradient": f.gradient(x),
            "derivative": jax.grad(f)(x),
            "curvature": jax.jvp(f.gradient, (x,), (v,))[1],
            "derived curvature": jax.jvp(jax.grad(f), (x,), (v,))[1],
            "near": jax.vmap(f)(near),
            "batch": jax.vmap(f.gradient)(batch),
            "loop": [f.gradient(batch[i]) for i in range(3)],
        }
        if r is None:
            return found
        z = f.measure(x)
        return found | {
            "measured": z,
            "adjoint": f.adjoint(r),
            "loss": f.loss(z),
            "slope": f.slope(z),
            "derived slope": jax.grad(f.loss)(z),
        }

    return f, np.asarray(x), np.asarray(v), residuals, program(f, x, v, near, batch, residuals)


STEP = 1e-3


@names
def test_value(name):
    entry = OBJECTIVES[name]
    f, x = built(name)
    f.check(jax.ShapeDtypeStruct(x.shape, x.dtype))
    # Sums of at most 40 products of numbers of order one.
    np.testing.assert_allclose(f(x), entry.reference(np.asarray(x), *entry.data), rtol=1e-13)
    np.testing.assert_allclose(everything(name)[-1]["value"], f(x), rtol=1e-13)


@names
def test_gradient_is_the_derivative(name):
    found = everything(name)[-1]
    np.testing.assert_allclose(found["gradient"], found["derivative"], rtol=1e-12, atol=1e-13)
    # Second derivatives exist both ways: the flow is differentiated through the gradient.
    np.testing.assert_allclose(found["curvature"], found["derived curvature"], rtol=1e-12, atol=1e-13)


@names
def test_gradient_against_finite_differences(name):
    _, _, v, _, found = everything(name)
    plus, minus, plus2, minus2 = np.asarray(found["near"])
    slope = (8 * (plus - minus) - plus2 + minus2) / (12 * STEP)
    # Fourth order in 1e-3, rounding 1e-16 / 1e-3, of numbers of order ten.
    np.testing.assert_allclose(np.sum(np.asarray(found["gradient"]) * v), slope, rtol=1e-9)


@names
def test_batched_by_vmap(name):
    found = everything(name)[-1]
    np.testing.assert_allclose(found["batch"], np.stack(found["loop"]), rtol=1e-12, atol=1e-13)


@names
def test_measurements(name):
    f, x, _, r, found = everything(name)
    if not isinstance(f, AbstractMeasured):
        pytest.skip("not a function of measurements")
    z = np.asarray(found["measured"])
    np.testing.assert_allclose(z, np.tensordot(OBJECTIVES[name].data[0], x, x.ndim), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.sum(r * z), np.sum(np.asarray(found["adjoint"]) * x), rtol=1e-12)
    np.testing.assert_allclose(found["loss"], found["value"], rtol=1e-14)
    np.testing.assert_allclose(found["slope"], found["derived slope"], rtol=1e-12, atol=1e-14)


@names
def test_wrong_parameters_are_refused(name):
    f, x = built(name)
    if name == "custom":
        with pytest.raises(ValueError, match="must return one floating-point scalar"):
            CustomObjective(lambda x: x).check(jax.ShapeDtypeStruct(x.shape, x.dtype))
        return
    with pytest.raises(ValueError, match=r"but g gives x of shape \(9,\)"):
        f.check(jax.ShapeDtypeStruct((9,), x.dtype))
    with pytest.raises(ValueError, match="holds float64 data, but g gives x in float32"):
        f.check(jax.ShapeDtypeStruct(x.shape, jnp.dtype("float32")))


def test_symmetric_matrices_are_stored_as_triangles():
    A, y = sensing(6, 4, 4, symmetric=True)
    f = MatrixSensing(A, y)
    assert f.features.shape == (6, 4 * 5 // 2)
    assert MatrixSensing(A, y, symmetric=False).features.shape == (6, 16)
    assert MatrixSensing(*sensing(6, 4, 4, symmetric=False)).features.shape == (6, 16)


def test_packed_and_whole_agree_also_at_asymmetric_points():
    A, y = sensing(6, 4, 4, symmetric=True)
    packed, whole = MatrixSensing(A, y), MatrixSensing(A, y, symmetric=False)
    X = point((4, 4))
    np.testing.assert_allclose(packed(X), whole(X), rtol=1e-13)
    np.testing.assert_allclose(packed.gradient(X), whole.gradient(X), rtol=1e-12, atol=1e-13)


def test_packed_matrices_can_be_traced():
    A, y = sensing(6, 4, 4, symmetric=True)
    X = point((4, 4))

    def value(A, symmetric):
        return MatrixSensing(A, y, symmetric=symmetric)(X)

    whole = np.asarray(jax.jit(jax.grad(lambda A: value(A, None)))(jnp.asarray(A)))
    packed = np.asarray(jax.jit(jax.grad(lambda A: value(A, True)))(jnp.asarray(A)))
    # Only upper triangles are read, so the symmetric parts of the derivatives agree.
    both = packed + packed.swapaxes(1, 2), whole + whole.swapaxes(1, 2)
    np.testing.assert_allclose(*both, rtol=1e-12, atol=1e-13)


def test_asymmetric_matrices_said_to_be_symmetric_are_refused():
    with pytest.raises(ValueError, match="said to be symmetric and is not"):
        MatrixSensing(*sensing(6, 4, 4, symmetric=False), symmetric=True)
    with pytest.raises(ValueError, match="said to be symmetric and is not"):
        MatrixSensing(*sensing(6, 3, 4, symmetric=False), symmetric=True)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_logistic_against_scikit_learn(scale):
    f, x = built("logistic")
    Z, y = OBJECTIVES["logistic"].data
    probability = 1 / (1 + np.exp(-scale * (Z @ np.asarray(x))))
    # scikit-learn takes the logarithm of 1 - probability, which keeps 1e-16 / 1e-9 of the digits at scale 10.
    np.testing.assert_allclose(f(scale * x), log_loss(y, probability), rtol=1e-6 if scale == 10 else 1e-13)


def test_logistic_does_not_overflow():
    f = Logistic(np.eye(2), np.array([1.0, -1.0]))
    x = jnp.array([-1e4, 1e4])
    np.testing.assert_allclose(f(x), 1e4, rtol=1e-15)
    np.testing.assert_allclose(f.gradient(x), [-0.5, 0.5], rtol=1e-15)
    np.testing.assert_allclose(f.gradient(-x), [0.0, 0.0], atol=1e-300)


@pytest.mark.parametrize(
    ("Z", "y", "words"),
    [
        (np.ones((3, 2)), np.ones(4), r"share their first, non-empty axis, got shapes \(3, 2\) and \(4,\)"),
        (np.ones((0, 2)), np.ones(0), r"non-empty axis, got shapes \(0, 2\)"),
        (np.ones(3), np.ones(3), r"got shapes \(3,\) and \(3,\)"),
        (np.ones((3, 2)), np.ones((3, 1)), r"got shapes \(3, 2\) and \(3, 1\)"),
        (np.full((3, 2), np.nan), np.ones(3), "Z holds NaN or infinite entries: 6 of them"),
        (np.ones((3, 2)), np.array([1.0, np.inf, 1.0]), "y holds NaN or infinite entries: 1 of them"),
        (np.ones((3, 2), np.float32), np.ones(3), "must have one dtype, got float32 and float64"),
        (np.ones((3, 2), complex), np.ones(3), "Z must be real and floating point, got dtype complex128"),
        (np.ones((3, 2, 2)), np.ones(3), r"Z must have shape \(n, d\), got \(3, 2, 2\)"),
    ],
)
@pytest.mark.parametrize("build", [LeastSquares, Logistic])
def test_bad_data_is_refused(build, Z, y, words):
    with pytest.raises(ValueError, match=words):
        build(Z, y)


def test_bad_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels must be -1 or \+1, got the values \[0. 1.\]"):
        Logistic(np.ones((2, 2)), np.array([0.0, 1.0]))


def test_sensing_refuses_vectors():
    with pytest.raises(ValueError, match=r"A must have shape \(m, n1, n2\), got \(3, 2\)"):
        MatrixSensing(np.ones((3, 2)), np.ones(3))


def test_whole_numbers_are_promoted():
    assert LeastSquares(np.array([[1, 2], [3, 4]]), np.array([1, 2])).Z.dtype == jnp.float64
