"""The table of closed forms of R_a: `register_legendre` adds to it, `closed_form` looks a pair up.

Each file in `families/` registers its own closed forms beside their classes, and a package of yours registers its own
in the same way. `Separable` has none on purpose: its psi is an integral of unknown functions, which the numeric path's
adaptive integration answers with an error estimate and a fixed quadrature would not. The normalisations are pinned by
integrating the parameter flow (tests/geometry).
"""

from collections.abc import Callable
from typing import Any

from ..problem import AbstractRegularizer, AbstractReparameterization
from ..problem.reparam import Weights
from .base import AbstractLegendre
from .points import as_finite_weights, require_pair

Build = Callable[[Any, Any, Weights], AbstractLegendre | None]

_FORMS: dict[tuple[type, type], Build] = {}


def register_legendre(G: type, H: type, build: Build) -> None:
    """Registers `build(g, h, w0)` as the closed form of R_a for g of class G and h of class H.

    The classes are matched exactly: a subclass does not inherit a closed form, because it may compute another g or h.

    **Arguments:** `G`: a class of reparameterizations; `H`: a class of regularizers; `build`: returns an
    `AbstractLegendre`, or `None` for numbers in g or h without a closed form (another depth, another scale), and raises
    `ValueError` for weights that have no R_a. The weights were accepted by `g.check` and `h.check` before.
    **Raises:** `ValueError` when G or H is not such a class, `build` is not callable, or the pair has a closed form.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Theorem 3.6, for what the function returned must be.
    """
    for given, kind, name in ((G, AbstractReparameterization, "G"), (H, AbstractRegularizer, "H")):
        if not isinstance(given, type) or not issubclass(given, kind):
            raise ValueError(f"{name} must be a subclass of {kind.__name__} (the class, not an object), got {given!r}")
    if not callable(build):
        raise ValueError(f"build must be a function of (g, h, w0), got {build!r}")
    if (G, H) in _FORMS:
        raise ValueError(f"{G.__name__} with {H.__name__} has a closed form already: {_FORMS[G, H]!r}")
    _FORMS[G, H] = build


def closed_form(g: AbstractReparameterization, h: AbstractRegularizer, w0: Weights) -> AbstractLegendre | None:
    """The closed form of R_a for the pair (g, h) from the weights w0, or `None` where there is none.

    **Arguments:** `g`, `h`: the pair; `w0`: the initial weights, a point of g. Traced weights are not read: points that
    would be refused get `RESULTS.invalid_weights` instead.
    **Returns:** an `AbstractLegendre`; `None` for a pair whose R_a needs the numeric path, or has none.
    **Raises:** `ValueError` when w0 does not fit g, or when the pair has a closed form that these weights do not admit.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12, Example 3.14, Theorem 3.15.
    """
    require_pair(g, h)
    w0 = as_finite_weights(w0)
    g.check(w0)
    h.check(w0)
    build = _FORMS.get((type(g), type(h)))
    return None if build is None else build(g, h, w0)
