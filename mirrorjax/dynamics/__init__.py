"""How a Problem moves: flows, descents, solvers, and solve()."""

from .descent import Descent as Descent
from .descent import ProximalDescent as ProximalDescent
from .flows import AbstractFlow as AbstractFlow
from .flows import MirrorFlow as MirrorFlow
from .flows import PrimalFlow as PrimalFlow
from .flows import RiemannianFlow as RiemannianFlow
from .solution import Solution as Solution
from .solve import solve as solve
