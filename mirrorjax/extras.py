"""Says which extra of the package is missing where a feature needs a package that is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

# Modules whose package has another name where it is installed from.
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "orbax": "orbax-checkpoint"}


class MissingExtra(ModuleNotFoundError, ValueError):
    """A package of an extra is not installed. It is an error of imports, and a bad choice of input."""


@contextmanager
def needs(extra: str, feature: str) -> Iterator[None]:
    """Turns a failed import inside the block into one line that names the package and the extra that brings it.

    **Arguments:** `extra`: a name in `[project.optional-dependencies]`; `feature`: the subject of the sentence.
    **Raises:** `MissingExtra`, a `ModuleNotFoundError` and a `ValueError`, where another package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", __package__):
            raise
        package = PACKAGES.get(module, module)
        message = f"{feature} needs {package}, which is not installed; pip install 'mirrorjax[{extra}]'"
        raise MissingExtra(message, name=error.name) from None
