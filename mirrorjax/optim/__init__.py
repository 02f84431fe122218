"""Optax transformations that bring the theory into a training loop. Importing this package imports optax."""

from ..paths import path_mask as path_mask
from .bias import BiasParts as BiasParts, accumulated_bias as accumulated_bias, track_bias as track_bias
from .clock import ClockState as ClockState
from .decay import (
    coupled_weight_decay as coupled_weight_decay,
    decoupled_weight_decay as decoupled_weight_decay,
    scheduled_weight_decay as scheduled_weight_decay,
    switch_off_adamw as switch_off_adamw,
    switch_off_sgd as switch_off_sgd,
)
from .hyperbolic import hyperbolic_gradient as hyperbolic_gradient, hyperbolic_step as hyperbolic_step
from .pilot import keep_zeros as keep_zeros, pilot as pilot, pilot_schedule as pilot_schedule
