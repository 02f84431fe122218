"""The flat public namespace: every name of `mirrorjax` and the room it comes from.

`__init__.py` reads this file when it is imported, and type checkers read it too, so a public name is written once.
"""

from . import (
    data as data,
    dynamics as dynamics,
    experiments as experiments,
    geometry as geometry,
    nn as nn,
    optim as optim,
    plot as plot,
    problem as problem,
    results as results,
    runs as runs,
    sweeps as sweeps,
)
from .dynamics import (
    RKC as RKC,
    AbstractFlow as AbstractFlow,
    AbstractMotion as AbstractMotion,
    Descent as Descent,
    MirrorFlow as MirrorFlow,
    Point as Point,
    PrimalFlow as PrimalFlow,
    ProximalDescent as ProximalDescent,
    RiemannianFlow as RiemannianFlow,
    Solution as Solution,
    solve as solve,
)
from .geometry import (
    VERDICT as VERDICT,
    AbstractLegendre as AbstractLegendre,
    Limit as Limit,
    Recovered as Recovered,
    Report as Report,
    SpectralGram as SpectralGram,
    SpectralProduct as SpectralProduct,
    check as check,
    compatible_regularizers as compatible_regularizers,
    effects as effects,
    explain as explain,
    kkt_residual as kkt_residual,
    legendre as legendre,
    local_exponent as local_exponent,
    predict_limit as predict_limit,
    register_legendre as register_legendre,
)
from .problem import (
    L1 as L1,
    AbstractDifference as AbstractDifference,
    AbstractMeasured as AbstractMeasured,
    AbstractObjective as AbstractObjective,
    AbstractRegularizer as AbstractRegularizer,
    AbstractReparameterization as AbstractReparameterization,
    AbstractSchedule as AbstractSchedule,
    Compatible as Compatible,
    Constant as Constant,
    CosineDecay as CosineDecay,
    Custom as Custom,
    CustomObjective as CustomObjective,
    CustomRegularizer as CustomRegularizer,
    CustomSchedule as CustomSchedule,
    ExpDifference as ExpDifference,
    FromOptax as FromOptax,
    Gram as Gram,
    Hadamard as Hadamard,
    LeastSquares as LeastSquares,
    Linear as Linear,
    LinearDecay as LinearDecay,
    LogDifference as LogDifference,
    Logistic as Logistic,
    MatrixProduct as MatrixProduct,
    MatrixSensing as MatrixSensing,
    Piecewise as Piecewise,
    PowerDifference as PowerDifference,
    Problem as Problem,
    Quadratic as Quadratic,
    QuadraticForm as QuadraticForm,
    Separable as Separable,
    Square as Square,
    Sum as Sum,
    SwitchOff as SwitchOff,
    WeightDecay as WeightDecay,
)
from .results import RESULTS as RESULTS, status_name as status_name
from .runs import SweepReport as SweepReport, Zip as Zip, map_grid as map_grid, open_sweep as open_sweep
from .sweeps import sweep as sweep

__version__: str
