"""What is being solved: g, h, alpha and f, pure functions of one point."""

from .matrix import Gram as Gram, MatrixProduct as MatrixProduct, Quadratic as Quadratic
from .objective import (
    AbstractMeasured as AbstractMeasured,
    AbstractObjective as AbstractObjective,
    CustomObjective as CustomObjective,
    LeastSquares as LeastSquares,
    Logistic as Logistic,
    MatrixSensing as MatrixSensing,
)
from .problem import Problem as Problem
from .regularizer import (
    L1 as L1,
    AbstractRegularizer as AbstractRegularizer,
    Compatible as Compatible,
    CustomRegularizer as CustomRegularizer,
    QuadraticForm as QuadraticForm,
    WeightDecay as WeightDecay,
)
from .reparam import (
    AbstractDifference as AbstractDifference,
    AbstractReparameterization as AbstractReparameterization,
    Custom as Custom,
    ExpDifference as ExpDifference,
    Hadamard as Hadamard,
    Linear as Linear,
    LogDifference as LogDifference,
    PowerDifference as PowerDifference,
    Separable as Separable,
    Square as Square,
)
from .schedule import (
    AbstractSchedule as AbstractSchedule,
    Constant as Constant,
    CosineDecay as CosineDecay,
    FromOptax as FromOptax,
    LinearDecay as LinearDecay,
    Piecewise as Piecewise,
    Sum as Sum,
    SwitchOff as SwitchOff,
)


def families_by_name():
    """Temporary, until the families say their own names."""
    return {
        "hadamard": Hadamard,
        "square": Square,
        "square-difference": PowerDifference,
        "power-difference-2": lambda: PowerDifference(2),
        "power-difference-3": lambda: PowerDifference(3),
        "log-difference": LogDifference,
        "exp-difference": ExpDifference,
    }
