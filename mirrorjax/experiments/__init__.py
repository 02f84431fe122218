"""The paper's experiments: one file each, one registry."""

from .convergence import EXPERIMENT as _convergence
from .depth import EXPERIMENT as _depth
from .geometry import EXPERIMENT as _geometry
from .grokking import EXPERIMENT as _grokking
from .matrix_sensing import EXPERIMENT as _matrix_sensing
from .run import Experiment as Experiment, RunFolder as RunFolder, Setting as Setting
from .separable import EXPERIMENT as _separable

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (_matrix_sensing, _geometry, _depth, _grokking, _convergence, _separable)
}
"""Every experiment by the name `mirrorjax reproduce` takes."""
