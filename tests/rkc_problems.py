"""Equations for the tests of RKC, and solves of them."""

from typing import Any

import diffrax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev
from scipy.integrate import solve_ivp

from mirrorjax.dynamics.solvers.rkc import RKC
from mirrorjax.dynamics.solvers.rkc_coefficients import DAMPING


def integrate(field, y0, t1, *, solver=None, rtol=1e-6, atol=1e-9, jumps=None, args=None, t0=0.0, **options) -> Any:
    """An adaptive solve from t0 to t1, with the solver's state saved."""
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    if jumps is not None:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.asarray(jumps))
    options = {"saveat": diffrax.SaveAt(t1=True, solver_state=True), "stepsize_controller": controller} | options
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), solver or RKC(), t0, t1, options.pop("dt0", None), y0, args, **options
    )


def march(field, y0, t1, num_steps, *, solver=None, **options) -> Any:
    """A solve by equal steps."""
    controller = diffrax.ConstantStepSize()
    dt0 = t1 / num_steps
    return integrate(field, y0, t1, solver=solver, stepsize_controller=controller, dt0=dt0, **options)


def oracle(field, y0, t1, t0=0.0):
    """scipy's DOP853 near rounding."""
    return solve_ivp(field, (t0, t1), np.asarray(y0), method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]


def polynomials(s):
    """`T_s`, `w_0`, `w_1` and the coefficients a_s, b_s from numpy."""
    T, w0 = Chebyshev([0] * s + [1]), 1 + DAMPING / s**2
    first, second = T.deriv(1)(w0), T.deriv(2)(w0)
    b = second / first**2
    return T, w0, first / second, 1 - b * T(w0), b


def pendulum(t, y, args=None):
    """Nonlinear, non-autonomous and mildly stiff."""
    return jnp.stack([y[1] - 0.3 * y[0] ** 3, -jnp.sin(y[0]) - 2.0 * y[1] + jnp.cos(2 * t)])


def heat(size):
    """`u_t = u_xx` on (0, 1) with u = 0 at both ends, and its exact semi-discrete solution."""
    scale = (size + 1) ** 2

    def field(t, u, args):
        padded = jnp.pad(u, 1)
        return scale * (padded[2:] - 2 * u + padded[:-2])

    modes = np.arange(1, size + 1)
    S = np.sqrt(2 / (size + 1)) * np.sin(np.pi * np.outer(modes, modes) / (size + 1))
    rates = -4 * scale * np.sin(np.pi * modes / (2 * (size + 1))) ** 2
    return field, lambda u, t: S @ (np.exp(rates * t) * (S @ u))
