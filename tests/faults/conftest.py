"""Bad inputs are answered as a user sees them: without the checks of types that the rest of the suite runs with."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def unchecked_types():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
