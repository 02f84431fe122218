"""What moves a batch of lanes by a bounded amount of work: steps of diffrax's solvers, or RKC by single evaluations."""

from ..options import Options
from ..solvers.rkc import RKC
from .base import (
    AbstractStepper as AbstractStepper,
    Lane as Lane,
    Prepare as Prepare,
    change_where as change_where,
    over_lanes as over_lanes,
    part_of as part_of,
)
from .evaluations import RKCStepper
from .steps import DiffraxStepper


def choose_stepper(options: Options) -> AbstractStepper:
    """The stepper of a solver: RKC by single evaluations, every other one by the steps of diffrax."""
    return RKCStepper(options.solver) if isinstance(options.solver, RKC) else DiffraxStepper(options.solver)
