"""How a Problem moves: flows and motions, solvers, steppers, and solve()."""

from .flows import (
    Descent as Descent,
    MirrorFlow as MirrorFlow,
    PrimalFlow as PrimalFlow,
    ProximalDescent as ProximalDescent,
    RiemannianFlow as RiemannianFlow,
)
from .motion import AbstractFlow as AbstractFlow, AbstractMotion as AbstractMotion
from .solution import Point as Point, Solution as Solution
from .solve import solve as solve
from .solvers.rkc import RKC as RKC
