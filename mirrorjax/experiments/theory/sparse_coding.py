"""Sparse codes of the Olivetti faces (Figs. 10 to 13): the effect of decay on codes by a flow, for a fixed dictionary.

Every face is its own lane: f(x) = |y - D x|^2 / 2, exactly, in the coordinates of `dictionary.py`, with as many
numbers as there are atoms. (a) x = u^4 - v^4: stronger decay makes the codes stationary sooner. (b) x = log u - log v:
stronger decay raises the nuclear norm, until the range is exhausted. (c) x = m w with constant decay ends at the
Lasso.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ... import data, plot
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
from ..core.experiment import Setting
from ..core.run import RunFolder
from .dictionary import (
    Codes,
    Dictionary,
    Reduced,
    Signals,
    accuracy,
    center,
    lasso,
    learn_dictionary,
    orthogonal_matching_pursuit,
    reduce,
    take,
    timed,
    update_dictionary,
)


@dataclass(frozen=True)
class Size:
    """The size of a preset: atoms, faces of each part, strengths of part (b), rounds of the alternating dictionary."""

    atoms: int
    faces: int
    log_faces: int
    lasso_faces: int
    log_strengths: tuple[float, ...]
    rounds: int


SIZES = {
    "paper": Size(128, 400, 100, 100, (0.0, 0.01, 0.1, 0.3, 0.5, 0.6), 3),
    "quick": Size(48, 60, 16, 30, (0.0, 0.1, 0.3, 0.5), 1),
}
POWER_STRENGTHS = (0.0, 0.1, 0.5, 1.0, 3.0)
LASSO_STRENGTHS = (0.1, 0.3)
HORIZON = 20.0
LASSO_HORIZON = 1e6  # the last codes to vanish do so as e^{-2 t slack}, and the smallest slack is about 1e-5
SETTLED = 0.01  # stationary: within this share of the final value from then on
AGREE = 1e-5
SHOWN = slice(0, 60, 10)  # faces in the picture: six persons


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
        return {"codes": x}


def run(folder: RunFolder, setting: Setting) -> None:
    """All parts, each written as soon as it is finished."""
    size = SIZES[setting.preset]
    faces = data.olivetti_faces()
    folder.console.print(f"faces from {faces.origin}", highlight=False, soft_wrap=True)
    signals, means = center(faces.images)
    dictionary = learn_dictionary(signals, size.atoms, setting.seed)
    reduced = reduce(signals, dictionary)
    power, seconds = timed(solve_power, take(reduced, size.faces), POWER_STRENGTHS)
    _report_power(folder, power, size, seconds)
    log = solve_log(take(reduced, size.log_faces), size.log_strengths)
    _report_log(folder, log, size)
    ends = solve_lasso(take(reduced, size.lasso_faces), LASSO_STRENGTHS)
    _report_lasso(folder, take(reduced, size.lasso_faces), *ends)
    pictures = [
        ("$u^4 - v^4$,\nno decay", power, 0),
        (f"$u^4 - v^4$,\ndecay {POWER_STRENGTHS[-1]:g}", power, -1),
        (f"$m w$,\ndecay {LASSO_STRENGTHS[0]:g}", ends[0], 0),
    ]
    codes = [(label, final_codes(dataset, index)) for label, dataset, index in pictures]
    figure = faces_figure(faces.images, means, dictionary, codes)
    folder.save_figure("fig13_faces", figure, "Fig. 13. Faces above their reconstructions from each set of codes.")
    rows = alternate(signals[: size.lasso_faces], dictionary, LASSO_STRENGTHS[0], size.rounds)
    folder.save_table("alternating", rows)
    folder.show(
        f"Alternating dictionary, penalty {2 * LASSO_STRENGTHS[0]:g} |x|_1", rows, ALTERNATING_COLUMNS, "alternating"
    )


POWER_COLUMNS = {
    "alpha": "alpha",
    "nuclear_norm": "nuclear norm",
    "mse": "MSE",
    "norm_stationary": "norm stationary at t",
    "mse_stationary": "MSE stationary at t",
    "failed": "failed",
}
LOG_COLUMNS = {
    "alpha": "alpha",
    "norm_at_1": "norm at t = 1",
    "norm_at_10": "at 10",
    "nuclear_norm": "at 20",
    "mse_at_10": "MSE at 10",
    "mse": "at 20",
    "failed": "failed",
    "status": "status",
}
LASSO_COLUMNS = {
    "penalty": "penalty",
    "method": "method",
    "mse": "MSE",
    "nonzeros": "nonzeros a face",
    "l1_norm": "|x|_1 a face",
    "seconds": "seconds",
    "difference": "|x - Lasso|",
}
ALTERNATING_COLUMNS = {"round": "round", "objective": "objective", "mse": "MSE", "nonzeros": "nonzeros a face"}


def solve_power(reduced: Reduced, strengths: Sequence[float]) -> Dataset:
    """(a) x = u^4 - v^4 from u = v = 0.5, up to t = 20."""
    ts = np.concatenate([[0.0], np.geomspace(0.05, HORIZON, 80)])
    coder = Coder(reduced, PowerDifference(2), (jnp.array(0.5), jnp.array(0.5)))
    grid = {"alpha": np.asarray(strengths), "face": Zip(target=reduced.targets)}
    # After the first moments the step is limited by stability, so a stabilized solver; 1e-4 is below what is plotted.
    options: Any = {"solver": RKC(), "rtol": 1e-4, "chunk": len(reduced.targets)}
    return with_norms(sweep(coder.lane, grid, t1=HORIZON, saveat=ts, metrics=coder.codes, **options), reduced)


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


def lasso_rows(reduced: Reduced, dataset: Dataset, seconds: float) -> list[dict[str, Any]]:
    """Flow, Lasso and orthogonal matching pursuit of the same sparsity, side by side, for each penalty."""
    rows = []
    for index, alpha in enumerate(dataset.alpha.values):
        exact, lasso_seconds = timed(lasso, reduced, 2 * float(alpha))
        nonzeros = max(round(float(np.mean(np.sum(exact != 0, axis=1)))), 1)
        greedy, greedy_seconds = timed(orthogonal_matching_pursuit, reduced, nonzeros)
        methods = (
            ("flow", final_codes(dataset, index), seconds / dataset.alpha.size),
            ("Lasso", exact, lasso_seconds),
            ("OMP", greedy, greedy_seconds),
        )
        for method, codes, time in methods:
            rows.append(
                {
                    "penalty": 2 * float(alpha),
                    "method": method,
                    **accuracy(reduced, codes),
                    "l1_norm": float(np.mean(np.sum(np.abs(codes), axis=1))),
                    "seconds": time,
                    "difference": float(np.max(np.abs(codes - exact))),
                }
            )
    return rows


def alternate(signals: Signals, dictionary: Dictionary, alpha: float, rounds: int) -> list[dict[str, Any]]:
    """Codes by the flow of (c) and updates of the dictionary in turn: both lower `|Y - D X|^2 / 2 + 2 alpha |X|_1`."""
    rows = []
    for number in range(rounds + 1):
        reduced = reduce(signals, dictionary)
        ends, _ = solve_lasso(reduced, [alpha])
        codes = final_codes(ends, 0)
        fit = float(reduced.mean_squared_error(codes)) * signals.size / 2
        objective = fit + 2 * alpha * float(np.sum(np.abs(codes)))
        rows.append({"round": number, "objective": objective, **accuracy(reduced, codes)})
        dictionary = update_dictionary(signals, dictionary, codes)
    return rows


def _report_power(folder: RunFolder, dataset: Dataset, size: Size, seconds: float) -> None:
    rows = power_rows(dataset)
    folder.save_dataset("power", dataset.drop_vars("codes"))
    folder.save_table("power", rows)
    figure = over_time_figure(dataset, "Stronger decay settles sooner: $x = u^4 - v^4$")
    folder.save_figure("fig10_power", figure, "Figs. 10, 11. Norm and error become stationary sooner for larger alpha.")
    folder.show(f"x = u^4 - v^4: {size.faces} faces, {size.atoms} atoms", rows, POWER_COLUMNS, "power")
    for key, name in (("norm_stationary", "nuclear norm"), ("mse_stationary", "MSE")):
        times = [row[key] for row in rows]
        folder.claim(
            f"larger alpha makes the {name} stationary sooner",
            paper="-",
            ours="t = " + ", ".join(f"{time:.3g}" for time in times),
            holds=all(np.diff(times) < 0),
        )
    task = f"{len(rows)} strengths x {size.faces} faces x {size.atoms} atoms"
    folder.claim("coding takes less than 2 minutes", paper="-", ours=f"{seconds:.0f} s for {task}", holds=seconds < 120)


def _report_log(folder: RunFolder, dataset: Dataset, size: Size) -> None:
    rows = log_rows(dataset)
    folder.save_dataset("log", dataset.drop_vars("codes"))
    folder.save_table("log", rows)
    figure = over_time_figure(dataset, r"Towards the end of the range: $x = \log u - \log v$")
    folder.save_figure("fig12_log", figure, "Fig. 12. The norm rises faster for larger alpha.")
    folder.show(f"x = log u - log v: {size.log_faces} faces, {size.atoms} atoms", rows, LOG_COLUMNS, "log")
    norms, errors = [row["norm_at_1"] for row in rows], [row["mse"] for row in rows]
    end = f"at t = {HORIZON:g}"
    folder.claim(
        "larger alpha raises the nuclear norm faster",
        paper="-",
        ours="at t = 1: " + ", ".join(f"{norm:.4g}" for norm in norms),
        holds=all(np.diff(norms) > 0),
    )
    shown = ", ".join(f"{error:.2e}" if np.isfinite(error) else "ended before" for error in errors)
    folder.claim(
        "every larger alpha costs reconstruction", paper="-", ours=f"MSE {end}: {shown}", holds=all(np.diff(errors) > 0)
    )
    worst = max((error for error in errors if np.isfinite(error)), default=np.nan)
    folder.claim(
        "alpha near the end of the range costs reconstruction",
        paper="-",
        ours=f"MSE {end} up to {worst:.2e}, without decay {errors[0]:.2e}",
        holds=worst > errors[0],
    )


def _report_lasso(folder: RunFolder, reduced: Reduced, dataset: Dataset, seconds: float) -> None:
    rows = lasso_rows(reduced, dataset, seconds)
    folder.save_dataset("lasso", dataset.drop_vars("codes"))
    folder.save_table("lasso", rows)
    folder.show(
        f"x = m w, decay never off: {len(reduced.targets)} faces, {reduced.atoms} atoms", rows, LASSO_COLUMNS, "lasso"
    )
    worst = max(row["difference"] for row in rows if row["method"] == "flow")
    folder.claim(
        "x = m w under constant decay ends at scikit-learn's Lasso",
        paper=f"codes within {AGREE:g}",
        ours=f"{worst:.1e}",
        holds=worst < AGREE,
    )


def over_time_figure(dataset: Dataset, title: str) -> Any:
    """Nuclear norm and reconstruction error of all codes over time, by strength."""
    after = dataset.isel(time=slice(1, None))
    panels = []
    for variable, name in (("nuclear_norm", "nuclear norm of the codes"), ("mse", "mean squared error a pixel")):
        lines = [
            plot.Line(after.time.values, after[variable].isel(alpha=index).values, f"{alpha:g}")
            for index, alpha in enumerate(after.alpha.values)
        ]
        heading = "Nuclear norm" if variable == "nuclear_norm" else "Reconstruction"
        panels.append(plot.Panel(lines, heading, "time t (flow)", name, x_log=True, y_log=variable == "mse"))
    return plot.line_panels(panels, title, r"decay $\alpha$")


def faces_figure(
    images: Float[np.ndarray, "n height width"],
    means: Float[np.ndarray, "n 1"],
    dictionary: Dictionary,
    codes: Sequence[tuple[str, Float[np.ndarray, "shown k"]]],
) -> Any:
    """Originals above what each set of codes reconstructs."""
    rows = [("original", images[SHOWN].astype(float))]
    for label, code in codes:
        drawn = range(len(images))[SHOWN]
        kept = [index for index in drawn if index < len(code)]
        flat = code[kept] @ dictionary.T + means[kept]
        rows.append((label, flat.reshape(-1, *images.shape[1:])))
    count = min(len(pictures) for _, pictures in rows)
    return plot.image_grid([(label, pictures[:count]) for label, pictures in rows], "Faces rebuilt from their codes")
