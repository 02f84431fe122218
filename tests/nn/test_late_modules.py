"""The modules of `mirrorjax.nn` that need flax or optax are attributes of the package, imported at their first use."""

import pytest

from mirrorjax import nn


@pytest.mark.parametrize("name", nn.LATE)
def test_late_modules_are_attributes(name):
    assert nn.__getattr__(name).__name__ == f"mirrorjax.nn.{name}"
    assert {name, "reparameterize"} <= set(dir(nn))


def test_other_attributes_are_refused():
    with pytest.raises(AttributeError, match=r"module mirrorjax\.nn has no attribute 'resnet'"):
        nn.__getattr__("resnet")
