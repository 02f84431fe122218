"""The parts of a problem, g, h, alpha and f: pure functions of one point."""

from .blocks import Blocks as Blocks, Blockwise as Blockwise
from .differences import (
    AbstractDifference as AbstractDifference,
    ExpDifference as ExpDifference,
    LogDifference as LogDifference,
    PowerDifference as PowerDifference,
    Separable as Separable,
)
from .elementwise import Hadamard as Hadamard, Linear as Linear, Square as Square
from .integrated import CustomSchedule as CustomSchedule, FromOptax as FromOptax
from .matrix import Gram as Gram, MatrixProduct as MatrixProduct, Quadratic as Quadratic
from .named import families_by_name as families_by_name
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
    AbstractReparameterization as AbstractReparameterization,
    Admission as Admission,
    Custom as Custom,
)
from .schedule import (
    AbstractSchedule as AbstractSchedule,
    Constant as Constant,
    CosineDecay as CosineDecay,
    LinearDecay as LinearDecay,
    Piecewise as Piecewise,
    Sum as Sum,
    SwitchOff as SwitchOff,
)
