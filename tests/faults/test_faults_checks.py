"""Conversions of arguments, and calls of a user's functions: the mechanisms below every room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults_table import Refusal, Right, table

from mirrorjax.calls import calling, require_numbers
from mirrorjax.checks import as_array, as_float, require_kind
from mirrorjax.results import RESULTS, require_success


def called(function, *arguments):
    """Calls a function under jit as the package calls a user's."""
    with calling("the lane"):
        return jax.jit(function)(*arguments)


def positive_part(x):
    return x if x > 0 else 0 * x


KEPT = []

REFUSALS = [
    Refusal("a string", lambda: as_array("a", "saveat"), "saveat must be a number or an array of numbers, got 'a'"),
    Refusal("an object", lambda: as_array(object(), "t1"), "t1 must be a number"),
    Refusal("None", lambda: as_array(None, "t1"), "t1 must be a number or an array of numbers, got None"),
    Refusal("a ragged list", lambda: as_array([[1.0], [1.0, 2.0]], "grid"), "grid must be a number or an array"),
    Refusal("a key", lambda: as_array(jax.random.key(0), "t1"), "got a random key"),
    Refusal("a complex number", lambda: as_float(1j, "a"), "a must be real"),
    Refusal("a boolean", lambda: as_float(True, "a"), "a must be real"),
    Refusal(
        "a class", lambda: require_kind(Right, Right, "flow", "a flow"), r"the class Right itself; call it: Right\(\.\."
    ),
    Refusal("another kind", lambda: require_kind(3, str, "name", "a name"), "name must be a name, got 3"),
    Refusal(
        "if on a tracer",
        lambda: called(positive_part, 1.0),
        r"the lane needs the value .*test_faults_checks.py, line \d+.*where",
    ),
    Refusal("numpy on a tracer", lambda: called(lambda x: np.sin(x), 1.0), "the lane needs the value"),
    Refusal("a tracer kept", lambda: (called(KEPT.append, 1.0), called(lambda x: x + KEPT[0], 2.0)), "pure function"),
    Refusal("a leaf of strings", lambda: require_numbers({"a": {"b": "x"}}, "metrics"), "metrics must .* 'x' at 'a/b'"),
    Refusal("a function", lambda: require_numbers(len, "metrics"), "metrics must return numbers"),
    Refusal("a failed status", lambda: require_success(1.0, RESULTS.diverged), "became infinite or NaN"),
]


@table(REFUSALS)
def test_refusals(row):
    row.check()


@pytest.mark.parametrize("value", [2**40, np.int64(2**40), [1, 2**40]])
def test_a_large_integer_is_kept_without_x64(value):
    with jax.enable_x64(False):
        np.testing.assert_allclose(as_float(value, "t_off"), np.asarray(value, np.float32))


def test_a_number_beyond_float32_is_refused_without_x64():
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"alpha = 1e\+300 exceeds float32; enable jax_enable_x64"),
    ):
        as_float(1e300, "alpha")


def test_infinities_and_short_dtypes_are_kept():
    assert as_float(np.inf, "t_off") == np.inf
    assert as_float(np.float16(1.5), "x").dtype == jnp.float16
    assert as_array(jnp.ones(2, jnp.bfloat16), "x").dtype == jnp.bfloat16
