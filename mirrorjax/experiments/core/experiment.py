"""`Experiment`, an entry of the table of experiments, and `Setting`, the choices of one run.

Neither needs jax, so that the command line lists experiments without loading it.
"""

import importlib
import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from ...extras import needs

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Setting:
    """The user's choices for a run: the preset, the seed of the data, and the floating-point precision in bits.

    **Raises:** `ValueError` for a seed that is not a whole number of 32 bits, which is what every generator of random
    numbers takes, or for bits other than 32 and 64.
    """

    preset: str
    seed: int
    bits: int

    def __post_init__(self) -> None:
        try:
            seed = operator.index(self.seed)  # whole numbers of NumPy too, which JSON does not know
        except TypeError:
            seed = -1
        if isinstance(self.seed, bool) or not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {self.seed!r}")
        object.__setattr__(self, "seed", seed)
        if self.bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, got {self.bits!r}")


@dataclass(frozen=True)
class Experiment:
    """An experiment: a function that writes its results into a run folder, with its name and its presets.

    **Arguments:** `name`: the name that `mirrorjax reproduce` takes, also the name of its folder; `summary`: one line
    of help; `run`: a function of the `RunFolder` and the `Setting`, or its place as the text `"module:function"`, which
    is imported when the experiment runs; `seed`: the seed it has unless another is chosen; `presets`: the sizes that
    `run` knows, the full size first; `extra`: the extra of mirrorjax that brings the packages that `run` imports.
    **Raises:** `ValueError` for a text that is no place of a function, or no preset.
    """

    name: str
    summary: str
    run: Callable[..., None] | str
    seed: int = 0
    presets: tuple[str, ...] = ("paper", "quick")
    extra: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.run, str) and not all(self.run.partition(":")):
            raise ValueError(f'run of {self.name!r} must be a function or "module:function", got {self.run!r}')
        if not self.presets:
            raise ValueError(f"{self.name!r} needs at least one preset, got {self.presets!r}")

    def load(self) -> Callable[..., None]:
        """The function that runs the experiment, imported where it is given as a text.

        **Raises:** `ValueError`, in one line, where a package of the `extra` is not installed.
        """
        if not isinstance(self.run, str):
            return self.run
        module, _, function = self.run.partition(":")
        with needs(self.extra, self.name) if self.extra else nullcontext():
            return getattr(importlib.import_module(module), function)
