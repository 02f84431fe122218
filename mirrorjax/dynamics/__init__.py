"""How a Problem moves: flows, descents, solvers, and solve()."""

from .descent import Descent as Descent, ProximalDescent as ProximalDescent
from .flows import (
    AbstractFlow as AbstractFlow,
    MirrorFlow as MirrorFlow,
    PrimalFlow as PrimalFlow,
    RiemannianFlow as RiemannianFlow,
)
from .rkc import RKC as RKC
from .solution import Point as Point, Solution as Solution
from .solve import solve as solve
