"""mirrorjax: how explicit regularization shapes implicit bias, as a differentiable simulation engine.

The names of the flat public namespace stand in `__init__.pyi`, and each is imported when it is first used: importing
`mirrorjax` loads neither jax nor any other large package, computes nothing and sets no global flag. For float64, which
the theory wants, call `jax.config.update("jax_enable_x64", True)` first.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version(__name__)
    return _load(name)
