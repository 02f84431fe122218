"""The paper's experiments: one file each, one registry."""

from .geometry import EXPERIMENT as _geometry
from .matrix_sensing import EXPERIMENT as _matrix_sensing
from .run import Experiment as Experiment, RunFolder as RunFolder, Setting as Setting
from .schedules import EXPERIMENT as _schedules
from .sparse_coding import EXPERIMENT as _sparse_coding

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (_matrix_sensing, _geometry, _sparse_coding, _schedules)
}
