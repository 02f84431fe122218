"""The paper's experiments: one file each, one registry."""

from .convergence import EXPERIMENT as _convergence
from .depth import EXPERIMENT as _depth
from .geometry import EXPERIMENT as _geometry
from .grokking import EXPERIMENT as _grokking
from .matrix_sensing import EXPERIMENT as _matrix_sensing
from .run import Experiment as Experiment, RunFolder as RunFolder, Setting as Setting
from .schedules import EXPERIMENT as _schedules
from .separable import EXPERIMENT as _separable
from .sparse_coding import EXPERIMENT as _sparse_coding

_ALL = (_matrix_sensing, _geometry, _depth, _sparse_coding, _schedules, _grokking, _convergence, _separable)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
"""Every experiment by the name `mirrorjax reproduce` takes."""
