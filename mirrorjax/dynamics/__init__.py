"""How a Problem moves: flows, descents, solvers, and solve()."""

from .flows.continuous import (
    AbstractFlow as AbstractFlow,
    MirrorFlow as MirrorFlow,
    PrimalFlow as PrimalFlow,
    RiemannianFlow as RiemannianFlow,
)
from .flows.descent import Descent as Descent, ProximalDescent as ProximalDescent
from .solution import Point as Point, Solution as Solution
from .solve import solve as solve
from .solvers.rkc import RKC as RKC
