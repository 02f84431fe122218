"""Texts of objects show their numbers, also under transformations, and are the same from run to run."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from mirrorjax.problem import LeastSquares
from mirrorjax.reprs import readable
from mirrorjax.runs.configuration import describe


class AbstractShape(eqx.Module):
    def __repr__(self) -> str:
        return readable(self)

    @abc.abstractmethod
    def area(self) -> Array:
        """The area."""


class Disc(AbstractShape):
    radius: Array

    def area(self) -> Array:
        return jnp.pi * self.radius**2


class Holder(eqx.Module):
    inside: Disc
    values: Any
    name: str = eqx.field(static=True)  # static: a word
    function: Callable | None = None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jnp.float32(0.2), "0.2"),
        (jnp.asarray(3.0), "3.0"),
        (jnp.asarray(1e-12), "1e-12"),
        (jnp.asarray(-jnp.inf), "-inf"),
        (jnp.asarray(1 / 3), "0.333333"),
        (jnp.asarray(7), "7"),
        (jnp.asarray(True), "True"),
        (jnp.asarray(0.5, jnp.bfloat16), "0.5"),
        (jnp.asarray([0.1, 2.0]), "[0.1, 2.0]"),
        (np.arange(3), "[0, 1, 2]"),
        (jnp.arange(7.0), "f64[7] in 0.0 .. 6.0"),
        (jnp.asarray([[1.0, jnp.nan]]), "f64[1,2] in nan .. nan"),
        (jnp.zeros((0, 3)), "f64[0,3]"),
        (jnp.ones((2, 2), complex), "c128[2,2]"),
        (jnp.ones((2, 2), bool), "bool[2,2]"),
        ((1, None, "word"), "(1, None, 'word')"),
    ],
)
def test_numbers_are_shown(value, text):
    assert readable(value) == text


def test_subclasses_inherit_the_text_and_other_modules_show_them_inside():
    disc = Disc(jnp.float32(0.25))
    assert repr(disc) == str(disc) == "Disc(radius=0.25)"
    holder = Holder(disc, jnp.ones((3, 4)), "h", jax.nn.softplus)
    assert readable(holder, width=40) == (
        "Holder(\n  inside=Disc(radius=0.25),\n  values=f64[3,4] in 1.0 .. 1.0,\n  name='h',\n"
        "  function=<function softplus>\n)"
    )


def test_tracers_keys_and_donated_arrays_are_shown_by_shape():
    texts = []
    jax.jit(lambda radius: texts.append(repr(Disc(radius))))(1.0)
    jax.vmap(lambda radius: texts.append(repr(Disc(radius))))(jnp.ones(2))
    assert texts == ["Disc(radius=f64[])"] * 2
    assert "key<fry>[]" in repr(Disc(jax.random.key(0)))
    gone = jnp.ones(3)
    gone.delete()
    assert repr(Disc(gone)) == "Disc(radius=f64[3])"


def test_objectives_show_their_data():
    objective = LeastSquares(np.eye(4, 2), np.array([1.0, 2.0, 3.0, 4.0]))
    assert repr(objective) == "LeastSquares(Z=f64[4,2] in 0.0 .. 1.0, y=[1.0, 2.0, 3.0, 4.0])"


def test_the_text_in_a_runs_configuration_does_not_depend_on_the_numbers():
    one, two = (describe(Disc(radius)) for radius in (jnp.zeros(()), jnp.ones(())))
    assert one["text"] == two["text"] == "Disc(radius=f64[])"
    assert one["sha256"] != two["sha256"]
