"""The abstract class of g and h: functions of the weights that state how they scale and which coordinates they mix."""

import abc

import equinox as eqx

from ..reprs import readable


class AbstractOfWeights(eqx.Module):
    """A function of the weights, `g` or `h`. The flow chooses its coordinates by the two facts stated here."""

    @property
    @abc.abstractmethod
    def degree(self) -> int | None:
        """Degree p of positive homogeneity, `fn(r w) = r^p fn(w)` for r > 0; `None` where the function has none."""

    @property
    @abc.abstractmethod
    def elementwise(self) -> bool:
        """True if the function acts coordinate by coordinate.

        For g: coordinate i of x depends on coordinate i of each factor only. For h: a sum over coordinates of functions
        of that coordinate of each factor.
        """

    def __repr__(self) -> str:
        return readable(self)
