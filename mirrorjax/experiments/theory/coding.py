"""Codes of signals by flows: the lanes of each family, and what their tables say of them."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics import RKC, MirrorFlow
from ...problem import (
    AbstractReparameterization,
    Compatible,
    Constant,
    Hadamard,
    LogDifference,
    PowerDifference,
    Problem,
)
from ...runs import Zip
from ...runs.dataset import Dataset
from ...sweeps import sweep
from .dictionary import Codes, Reduced, timed

HORIZON = 20.0
LASSO_HORIZON = 1e6  # the last codes to vanish do so as e^{-2 t slack}, and the smallest slack is about 1e-5
SETTLED = 0.01  # stationary: within this share of the final value from then on


class Coder(eqx.Module):
    """The lanes of one family: every coordinate starts at the same `start`, h is the regularizer that fits g."""

    reduced: Reduced
    g: AbstractReparameterization
    start: tuple[Float[Array, ""], Float[Array, ""]]

    def lane(self, alpha, target):
        """Constant strength alpha, the code of one signal."""
        w0 = tuple(jnp.full(self.reduced.atoms, value) for value in self.start)
        return Problem(self.g, Compatible(self.g), Constant(alpha), self.reduced.objective(target)), w0

    def codes(self, t, x, w):
        """The codes, and the largest weight behind them."""
        return {
            "codes": x,
            "largest_weight": jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(w)])),
        }


def solve_power(reduced: Reduced, strengths: Sequence[float], k: int = 2, t1: float = HORIZON) -> Dataset:
    """(a) x = u^2k - v^2k from u = v = 0.5, up to t1."""
    ts = np.concatenate([[0.0], np.geomspace(0.0025 * t1, t1, 80)])
    coder = Coder(reduced, PowerDifference(k), (jnp.array(0.5), jnp.array(0.5)))
    grid = {"alpha": np.asarray(strengths), "face": Zip(target=reduced.targets)}
    # After the first moments the step is limited by stability, so a stabilized solver; 1e-4 is below what is plotted.
    options: Any = {"solver": RKC(), "rtol": 1e-4, "chunk": len(reduced.targets)}
    return with_norms(sweep(coder.lane, grid, t1=t1, saveat=ts, metrics=coder.codes, **options), reduced)


def solve_log(reduced: Reduced, strengths: Sequence[float], t1: float = HORIZON) -> Dataset:
    """(b) x = log u - log v from u = v = 5.

    In the weights' own coordinates the flow turns stiff as some u or v nears 0, so the mirror flow, by an implicit
    solver. At |x| of about 16 the dual variable cannot tell x any more in double precision: such a lane ends there,
    with the status `outside_dual_interval`.

    **Raises:** `ValueError` for strengths that run out of range before t1.
    """
    start = 5.0
    check_range(strengths, t1, start)
    ts = np.concatenate([[0.0, 1.0, 10.0], np.geomspace(0.05, t1, 40)])
    coder = Coder(reduced, LogDifference(), (jnp.array(start), jnp.array(start)))
    grid = {"alpha": np.asarray(strengths), "face": Zip(target=reduced.targets)}
    options: Any = {"flow": MirrorFlow(), "solver": diffrax.Kvaerno3(), "rtol": 1e-3, "max_steps": 2000}
    # A strength a chunk: those near exhaustion take many steps, and would hold up the others.
    options |= {"chunk": len(reduced.targets), "saveat": np.unique(ts[ts <= t1]), "metrics": coder.codes}
    return with_norms(sweep(coder.lane, grid, t1=t1, **options), reduced)


def check_range(strengths: Sequence[float], t1: float, start: float) -> None:
    """Refuse strengths at which x = log u - log v from u = v = start has no R_a any more at t1: alpha t1 >= start^2/2.

    Source: the paper's Example 3.14; U = u0^2 + 2 a must stay positive.
    """
    largest = start**2 / (2 * t1)
    if max(strengths) >= largest:
        raise ValueError(
            f"alpha = {max(strengths):g} runs LogDifference out of its range before t1 = {t1:g}: from u0 = v0 = "
            f"{start:g} it must stay below u0^2 / (2 t1) = {largest:g}; weaken the decay, or shorten t1"
        )


def solve_lasso(reduced: Reduced, strengths: Sequence[float]) -> tuple[Dataset, float]:
    """(c) x = m w from m = 1, w = 0 with h = m^2 + w^2, never switched off, until it is stationary; and the seconds."""
    coder = Coder(reduced, Hadamard(), (jnp.array(1.0), jnp.array(0.0)))
    grid = {"alpha": np.asarray(strengths), "face": Zip(target=reduced.targets)}
    options: Any = {"flow": MirrorFlow(), "solver": diffrax.Kvaerno3(), "rtol": 1e-5, "metrics": coder.codes}
    options |= {"chunk": len(reduced.targets), "saveat": np.geomspace(1.0, LASSO_HORIZON, 25)}
    return timed(lambda: with_norms(sweep(coder.lane, grid, t1=LASSO_HORIZON, **options), reduced))


def with_norms(dataset: Dataset, reduced: Reduced) -> Dataset:
    """The dataset with the nuclear norm of all codes together and their mean squared error, over time."""
    codes = dataset.codes.transpose("alpha", "time", "face", "codes_0").values
    whole = np.all(np.isfinite(codes), axis=(-2, -1))
    norms = np.sum(np.linalg.svd(np.where(whole[..., None, None], codes, 0.0), compute_uv=False), axis=-1)
    dims = ("alpha", "time")
    return dataset.assign(
        nuclear_norm=(dims, np.where(whole, norms, np.nan)), mse=(dims, reduced.mean_squared_error(codes))
    )


def final_codes(dataset: Dataset, index: int) -> Codes:
    """The codes (faces, atoms) at the end, for one strength; missing where a lane failed."""
    return dataset.x.isel(alpha=index).transpose("face", "x_0").values


def stationary_time(times: Float[np.ndarray, " time"], values: Float[np.ndarray, " time"]) -> float:
    """The first time from which on the values stay within `SETTLED` of the last one, relatively."""
    away = np.abs(values - values[-1]) > SETTLED * abs(values[-1])
    return float(times[np.max(np.flatnonzero(away)) + 1] if np.any(away) else times[0])


def power_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """One mapping a strength: final norm and error, and when each became stationary."""
    rows = []
    for index, alpha in enumerate(dataset.alpha.values):
        lane = dataset.isel(alpha=index)
        rows.append(
            {
                "alpha": float(alpha),
                "nuclear_norm": float(lane.nuclear_norm[-1]),
                "mse": float(lane.mse[-1]),
                "norm_stationary": stationary_time(lane.time.values, lane.nuclear_norm.values),
                "mse_stationary": stationary_time(lane.time.values, lane.mse.values),
                "failed": int(np.sum(lane.status.values != "successful")),
            }
        )
    return rows


def log_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """One mapping a strength: norm at t = 1 and 10 and at the end, and how many lanes ended before it."""
    rows = []
    for index, alpha in enumerate(dataset.alpha.values):
        lane = dataset.isel(alpha=index)
        failures = lane.status.values[lane.status.values != "successful"]
        rows.append(
            {
                "alpha": float(alpha),
                "norm_at_1": float(lane.nuclear_norm.sel(time=1.0)),
                "norm_at_10": float(lane.nuclear_norm.sel(time=10.0)),
                "mse_at_10": float(lane.mse.sel(time=10.0)),
                "nuclear_norm": float(lane.nuclear_norm[-1]),
                "mse": float(lane.mse[-1]),
                "failed": failures.size,
                "status": ", ".join(np.unique(failures)) or "ok",
            }
        )
    return rows
