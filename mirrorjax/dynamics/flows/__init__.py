"""How a `Problem` moves: one file a kind of flow."""

from .descent import Descent as Descent, ProximalDescent as ProximalDescent
from .dual import DualFlow as DualFlow
from .mirror import MirrorFlow as MirrorFlow, RiemannianFlow as RiemannianFlow
from .momentum import MomentumFlow as MomentumFlow
from .primal import PrimalFlow as PrimalFlow, WeightFlow as WeightFlow
from .steepest import SteepestFlow as SteepestFlow
