"""How a `Problem` moves: one file a kind of flow."""

from .descent import Descent as Descent, ProximalDescent as ProximalDescent
from .mirror import MirrorFlow as MirrorFlow, RiemannianFlow as RiemannianFlow
from .primal import PrimalFlow as PrimalFlow, WeightFlow as WeightFlow
