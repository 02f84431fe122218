"""Optax transformations that bring the theory into a training loop. Importing this package imports optax."""

from ..paths import path_mask as path_mask
from .bias import BiasParts as BiasParts, accumulated_bias as accumulated_bias, track_bias as track_bias
from .clock import ClockState as ClockState, current_strength as current_strength
from .decay import (
    coupled_weight_decay as coupled_weight_decay,
    decoupled_weight_decay as decoupled_weight_decay,
    scheduled_weight_decay as scheduled_weight_decay,
    switch_off_adamw as switch_off_adamw,
    switch_off_sgd as switch_off_sgd,
)
from .hyperbolic import hyperbolic_gradient as hyperbolic_gradient, hyperbolic_step as hyperbolic_step
from .masks import matrices as matrices
from .pilot import (
    RuleState as RuleState,
    has_collapsed as has_collapsed,
    keep_zeros as keep_zeros,
    pilot as pilot,
    pilot_decay as pilot_decay,
    pilot_schedule as pilot_schedule,
)
