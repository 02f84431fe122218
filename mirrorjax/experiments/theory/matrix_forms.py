"""Flows of matrices and of quadratic forms against closed forms: the paper's Theorem 3.15, Eq. (17), and attention.

Each case integrates the flow of the weights with a decay that is switched off, and compares the mirror map of the
closed form at x_t with `-int grad f dt`, which the flow integrates beside the weights.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ...dynamics import solve
from ...geometry import AbstractLegendre, legendre
from ...geometry.families.spectral import SpectralGram, SpectralProduct
from ...problem import (
    AbstractObjective,
    AbstractRegularizer,
    AbstractReparameterization,
    Gram,
    LeastSquares,
    MatrixProduct,
    MatrixSensing,
    Problem,
    Quadratic,
    QuadraticForm,
    SwitchOff,
    WeightDecay,
)
from ...problem.reparam import Weights
from ..core.run import RunFolder

ALPHA, OFF, END = 0.3, 1.0, 3.0
AGREE = 1e-6  # two integrations of 1e-9 a step


class Case(NamedTuple):
    """A pair from one start with the closed form of its R_a, and the claim that it is one."""

    key: str
    statement: str
    where: str
    g: AbstractReparameterization
    h: AbstractRegularizer
    w0: Weights
    f: AbstractObjective
    R: AbstractLegendre


def claim_matrix_forms(folder: RunFolder, seed: int) -> None:
    """Records, for each case, that the flow of the weights is the mirror flow of its closed form."""
    for case in cases(np.random.default_rng(seed)):
        problem = Problem(case.g, case.h, SwitchOff(ALPHA, OFF), case.f)
        flow = solve(problem, case.w0, t1=END, saveat=jnp.array([OFF / 2, OFF, END]), rtol=1e-9)
        mirrored = [np.asarray(case.R.mirror_map(x, a)) for x, a in zip(flow.x, flow.a, strict=True)]
        worst = float(np.max(np.abs(np.stack(mirrored) - np.asarray(flow.mu))))
        folder.claim(case.statement, key=case.key, paper=case.where, ours=f"within {worst:.1e}", holds=worst < AGREE)


def cases(rng: np.random.Generator) -> list[Case]:
    """Commuting quadratic forms; X = U U^T with commuting measurements; X = K^T Q with aligned factors."""
    n = 4
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]

    def symmetric(spectrum: np.ndarray) -> np.ndarray:
        half = basis * spectrum @ basis.T / 2
        return half + half.T  # to the last digit

    forms = np.stack([symmetric(rng.normal(size=n)) for _ in range(2)])
    g, h = Quadratic(forms), QuadraticForm(symmetric(rng.uniform(0.5, 1.0, n)))
    w0 = jnp.asarray(rng.normal(size=n))
    quadratic = Case(
        "closed-form-quadratic",
        "the flow of commuting quadratic forms is the mirror flow of their closed form",
        "Theorem 3.15",
        *(g, h, w0, LeastSquares(jnp.array([[1.0, 0.5]]), jnp.array([0.3]))),
        legendre(g, h, w0, method="closed_form"),
    )
    measured = np.stack([symmetric(rng.normal(size=n)) for _ in range(2)])
    U0, decay = jnp.asarray(symmetric(rng.uniform(0.5, 1.0, n))), WeightDecay()
    gram = Case(
        "commuting-sensing",
        "X = U U^T with measurements that commute: the eigenvalues follow the form of x = w^2",
        "Eq. (17)",
        *(Gram(), decay, U0, MatrixSensing(measured, jnp.array([0.3, -0.2]))),
        SpectralGram(U0, decay.scale),
    )
    left, right, middle = (jnp.asarray(np.linalg.qr(rng.normal(size=(size, 3)))[0]) for size in (5, 4, 6))
    K, Q = (middle * jnp.array([1.0, 0.5, 0.8])) @ left.T, (middle * jnp.array([0.1, -0.9, 0.0])) @ right.T
    rows = jnp.einsum("ni,ki,mi->knm", left, jnp.asarray(rng.normal(size=(2, 3))), right)
    product = Case(
        "singular-values",
        "X = K^T Q with aligned factors, as in attention and LoRA: the singular values follow the form of x = m w",
        "single-layer attention",
        *(MatrixProduct(), decay, (K, Q), MatrixSensing(rows, jnp.array([0.7, -0.4]))),
        SpectralProduct(K, Q, left, right, decay.scale, True),
    )
    return [quadratic, gram, product]
