"""Names of tensors, patterns over them, and the message when one names nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mirrorjax.paths import is_named, leaf_names, path_mask, select

TREE = {"blocks": [{"kernel": jnp.ones(2), "bias": jnp.ones(1)}, {"kernel": jnp.ones(2)}], "head": jnp.ones(3)}
NAMES = ["blocks/0/bias", "blocks/0/kernel", "blocks/1/kernel", "head"]


def test_names_are_the_keys_joined():
    assert leaf_names(TREE) == NAMES
    assert leaf_names(eqx.nn.Linear(2, 3, key=jax.random.key(0))) == ["weight", "bias"]


def test_flax_states_have_the_names_of_plain_dictionaries():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert leaf_names(state) == leaf_names(nnx.to_pure_dict(state)) == ["bias", "kernel"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/kernel", NAMES[1:3]),
        ("blocks/0/*", NAMES[:2]),
        ("blocks/0", NAMES[:2]),
        ("blocks", NAMES[:3]),
        ("*", NAMES),
        ("blocks/[1-9]/kernel", NAMES[2:3]),
        ("head", NAMES[3:]),
        ("kernel", []),
        ("locks", []),
    ],
)
def test_a_pattern_names_a_tensor_or_a_subtree(pattern, expected):
    assert [name for name in NAMES if is_named(name, pattern)] == expected


def test_a_mask_is_a_tree_of_booleans():
    assert path_mask(["head", "*/bias"])(TREE) == {
        "blocks": [{"kernel": False, "bias": True}, {"kernel": False}],
        "head": True,
    }


def test_a_pattern_that_names_nothing_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'blocks/1/kernels': the nearest of 4 are blocks/1/kernel, blocks/0/kernel"):
        select(NAMES, ["head", "blocks/1/kernels"])
    with pytest.raises(ValueError, match="the tree has no tensors"):
        path_mask("head")({})
