"""mirrorjax: how explicit regularization shapes implicit bias, as a differentiable simulation engine.

The flat public namespace. Importing it computes nothing and sets no global flag; for float64, which the theory wants,
call `jax.config.update("jax_enable_x64", True)` first.
"""

from .dynamics import Descent as Descent
from .dynamics import MirrorFlow as MirrorFlow
from .dynamics import PrimalFlow as PrimalFlow
from .dynamics import ProximalDescent as ProximalDescent
from .dynamics import RiemannianFlow as RiemannianFlow
from .dynamics import Solution as Solution
from .dynamics import solve as solve
from .problem import L1 as L1
from .problem import Compatible as Compatible
from .problem import Constant as Constant
from .problem import CosineDecay as CosineDecay
from .problem import Custom as Custom
from .problem import CustomObjective as CustomObjective
from .problem import CustomRegularizer as CustomRegularizer
from .problem import ExpDifference as ExpDifference
from .problem import FromOptax as FromOptax
from .problem import Gram as Gram
from .problem import Hadamard as Hadamard
from .problem import LeastSquares as LeastSquares
from .problem import Linear as Linear
from .problem import LinearDecay as LinearDecay
from .problem import LogDifference as LogDifference
from .problem import Logistic as Logistic
from .problem import MatrixProduct as MatrixProduct
from .problem import MatrixSensing as MatrixSensing
from .problem import Piecewise as Piecewise
from .problem import PowerDifference as PowerDifference
from .problem import Problem as Problem
from .problem import Quadratic as Quadratic
from .problem import QuadraticForm as QuadraticForm
from .problem import Separable as Separable
from .problem import Square as Square
from .problem import Sum as Sum
from .problem import SwitchOff as SwitchOff
from .problem import WeightDecay as WeightDecay
from .results import RESULTS as RESULTS
from .results import status_name as status_name
from .sweep import Zip as Zip
from .sweep import sweep as sweep
