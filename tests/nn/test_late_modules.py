"""The modules of `mirrorjax.nn` that need flax or optax are attributes of the package, imported at their first use."""

import pytest

from mirrorjax import nn


@pytest.mark.parametrize("name", nn.LATE)
def test_late_modules_are_attributes(name):
    assert nn.__getattr__(name).__name__ == f"mirrorjax.nn.{name}"
    assert {name, "reparameterize"} <= set(dir(nn))


@pytest.mark.parametrize("name", nn.LATE_FUNCTIONS)
def test_late_functions_are_functions_and_stay_so(name):
    nn.__getattr__(nn.LATE_FUNCTIONS[name])  # an import of their module puts it beside them
    assert callable(getattr(nn, name))
    assert getattr(nn, name).__module__ == "mirrorjax.nn.training"
    assert name in dir(nn)


def test_other_attributes_are_refused():
    with pytest.raises(AttributeError, match=r"module mirrorjax\.nn has no attribute 'resnet'"):
        nn.__getattr__("resnet")
