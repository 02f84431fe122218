"""How a Problem moves: flows and motions, solvers, steppers, and solve()."""

from .flows import (
    Descent as Descent,
    DualFlow as DualFlow,
    MirrorFlow as MirrorFlow,
    MomentumFlow as MomentumFlow,
    PrimalFlow as PrimalFlow,
    ProximalDescent as ProximalDescent,
    RiemannianFlow as RiemannianFlow,
    SteepestFlow as SteepestFlow,
)
from .motion import AbstractFlow as AbstractFlow, AbstractMotion as AbstractMotion
from .solution import Point as Point, Solution as Solution
from .solve import solve as solve
from .solvers.rkc import RKC as RKC
