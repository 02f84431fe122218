"""The paper's experiments: one file each, one registry."""

from .matrix_sensing import EXPERIMENT as _matrix_sensing
from .run import Experiment as Experiment
from .run import RunFolder as RunFolder
from .run import Setting as Setting

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (_matrix_sensing,)}
