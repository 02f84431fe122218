"""How stiff a flow is, measured before it is integrated: the choice between a stabilized solver and an ordinary one.

An explicit solver of fifth order follows a flow that is not stiff in fewer steps than RKC, which is of second order,
and far more accurately. It is RKC that wins where stability and not accuracy limits the steps.
"""

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import freeze, is_concrete
from ..compilation import Effort, compiled
from .guards import Field, vector_field
from .motion import AbstractMotion, Time, state_dtype
from .solvers.rkc import RKC

# `diffrax.Tsit5` is stable for h rho <= 3.5, so a flow of t1 rho = 350 takes it 100 steps. RKC takes about as many at
# rtol 1e-4 for accuracy alone, see `python benchmarks/default_solver.py`.
STIFF_FROM = 350.0
# From here on an implicit solver may be the faster one in the space of the data. One of its steps, with Jacobian and
# factors, costs twenty of Tsit5 (40 measurements of 100 unknowns), and it takes some hundreds to any t1.
IMPLICIT_FROM = 1e5
# The solvers of flows that are not stiff, and of stiff ones of few variables.
ORDINARY, IMPLICIT = diffrax.Tsit5(), diffrax.Kvaerno5()


def stiffness(motion: AbstractMotion, t1: Time) -> Float[Array, ""]:
    """`t1 rho`, rho the spectral radius of the velocity's Jacobian at t = 0, by power iteration; NaN if undefined."""
    state = motion.initial()
    start, end = jnp.zeros((), state_dtype(state)), t1.astype(state_dtype(state))
    begun = RKC().init(diffrax.ODETerm(vector_field), start, end, state, Field(motion, state))
    return end * begun.radius


def motion_is_stiff(motion: AbstractMotion, t1: Time) -> bool:
    """True if stability limits the steps of an explicit solver, as measured at the initial state.

    A choice of a solver is made while Python runs. Inside `jit` and `vmap`, where the numbers of the flow are not known
    yet, the answer is False: an ordinary solver is right there too, if slow, while RKC may lose two digits.
    """
    frozen = freeze((motion, t1))
    if not is_concrete(frozen):
        return False
    measured = compiled(stiffness, Effort.LEAST, frozen)(*frozen)
    # A function in the problem may hold traced numbers that no leaf shows.
    return is_concrete(measured) and bool(measured >= STIFF_FROM)
