"""The modules of `mirrorjax.nn` that import flax come with their annotations checked, too."""

from jaxtyping import install_import_hook
from typechecks import CHECKS

with install_import_hook("mirrorjax.nn", CHECKS):
    import mirrorjax.nn.tokens
    import mirrorjax.nn.training
    import mirrorjax.nn.weights  # noqa: F401
