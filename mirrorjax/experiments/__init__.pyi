"""The public names of `mirrorjax.experiments` and the files they come from; `__init__.py` reads this file."""

from . import core as core, networks as networks, theory as theory
from .core.experiment import Experiment as Experiment, Setting as Setting
from .core.report import write_report as write_report
from .core.reproduce import reproduce as reproduce, reproduce_all as reproduce_all
from .core.run import RunFolder as RunFolder
from .table import EXPERIMENTS as EXPERIMENTS, register_experiment as register_experiment
