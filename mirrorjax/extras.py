"""Says which extra of the package is missing where a feature needs a package that is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

# Modules whose package has another name where it is installed from.
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "orbax": "orbax-checkpoint"}


@contextmanager
def needs(extra: str, feature: str) -> Iterator[None]:
    """Turns a failed import inside the block into one line that names the package and the extra that brings it.

    **Arguments:** `extra`: a name in `[project.optional-dependencies]`; `feature`: the subject of the sentence.
    **Raises:** `ValueError` where a module of another package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", __package__):
            raise
        package = PACKAGES.get(module, module)
        message = f"{feature} needs {package}, which is not installed; pip install 'mirrorjax[{extra}]'"
        raise ValueError(message) from error
