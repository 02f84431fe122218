"""Sparse codes of the Olivetti faces (Figs. 11 and 13): the effect of decay on codes by a flow, for a fixed dictionary.

Every face is its own lane: f(x) = |y - D x|^2 / 2, exactly, in the coordinates of `dictionary.py`, with as many
numbers as there are atoms. (a) x = u^4 - v^4: stronger decay makes the codes stationary sooner. (b) x = log u - log v:
stronger decay raises the nuclear norm, until the range is exhausted. (c) x = m w with constant decay ends at the
Lasso.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ... import data, plot
from ...runs.dataset import Dataset
from ..core.experiment import Setting
from ..core.run import RunFolder
from .code_variants import report_descent, report_dictionaries, report_powers
from .coding import HORIZON, final_codes, log_rows, power_rows, solve_lasso, solve_log, solve_power
from .dictionary import (
    Dictionary,
    Reduced,
    accuracy,
    center,
    lasso,
    learn_dictionary,
    orthogonal_matching_pursuit,
    reduce,
    take,
    timed,
)


@dataclass(frozen=True)
class Size:
    """The size of a preset: atoms, faces of each part, strengths of (b), rounds of updated dictionaries, powers k."""

    atoms: int
    faces: int
    log_faces: int
    lasso_faces: int
    log_strengths: tuple[float, ...]
    rounds: int
    powers: tuple[int, ...]


SIZES = {
    "paper": Size(128, 400, 100, 100, (0.0, 0.01, 0.1, 0.3, 0.5, 0.6), 3, (2, 3, 4)),
    # As many faces in each part but that of the logarithms: one compiled program serves several parts.
    "quick": Size(48, 30, 16, 30, (0.0, 0.1, 0.3, 0.5), 1, (2, 3)),
}
POWER_STRENGTHS = (0.0, 0.1, 0.5, 1.0, 3.0)
LASSO_STRENGTHS = (0.1, 0.3)
AGREE = 1e-5
SHOWN = slice(0, 60, 10)  # faces in the picture: six persons


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
    folder.save_figure(
        "faces", figure, "No figure of the paper. Faces above their reconstructions from each set of codes."
    )
    few = take(reduced, size.lasso_faces)
    report_powers(folder, few, size.powers)
    report_descent(folder, few)
    report_dictionaries(folder, signals, dictionary, (size.lasso_faces, size.log_faces), size.rounds)


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


def _report_power(folder: RunFolder, dataset: Dataset, size: Size, seconds: float) -> None:
    rows = power_rows(dataset)
    folder.save_dataset("power", dataset.drop_vars("codes"))
    folder.save_table("power", rows)
    figure = over_time_figure(dataset, "Stronger decay settles sooner: $x = u^4 - v^4$")
    folder.save_figure("fig11_power_codes", figure, POWER_CAPTION)
    folder.show(f"x = u^4 - v^4: {size.faces} faces, {size.atoms} atoms", rows, POWER_COLUMNS, "power")
    for key, name in (("norm_stationary", "nuclear norm"), ("mse_stationary", "MSE")):
        times = [row[key] for row in rows]
        folder.claim(
            f"larger alpha makes the {name} stationary sooner",
            key=f"power-{key}",
            paper="-",
            ours="t = " + ", ".join(f"{time:.3g}" for time in times),
            holds=all(np.diff(times) < 0),
            see=("fig11_power_codes", "power"),
        )
    task = f"{len(rows)} strengths x {size.faces} faces x {size.atoms} atoms"
    folder.claim("coding takes less than 2 minutes", paper="-", ours=f"{seconds:.0f} s for {task}", holds=seconds < 120)


def _report_log(folder: RunFolder, dataset: Dataset, size: Size) -> None:
    rows = log_rows(dataset)
    folder.save_dataset("log", dataset.drop_vars("codes"))
    folder.save_table("log", rows)
    figure = over_time_figure(dataset, r"Towards the end of the range: $x = \log u - \log v$")
    folder.save_figure("fig13_log_codes", figure, LOG_CAPTION)
    folder.show(f"x = log u - log v: {size.log_faces} faces, {size.atoms} atoms", rows, LOG_COLUMNS, "log")
    norms, errors = [row["norm_at_1"] for row in rows], [row["mse"] for row in rows]
    end = f"at t = {HORIZON:g}"
    folder.claim(
        "larger alpha raises the nuclear norm faster",
        key="log-norm-faster",
        paper="-",
        ours="at t = 1: " + ", ".join(f"{norm:.4g}" for norm in norms),
        holds=all(np.diff(norms) > 0),
        see=("fig13_log_codes", "log"),
    )
    shown = ", ".join(f"{error:.2e}" if np.isfinite(error) else "ended before" for error in errors)
    folder.claim(
        "every larger alpha costs reconstruction",
        key="log-costs-reconstruction",
        paper="-",
        ours=f"MSE {end}: {shown}",
        holds=all(np.diff(errors) > 0),
        see=("fig13_log_codes", "log"),
    )
    worst = max((error for error in errors if np.isfinite(error)), default=np.nan)
    folder.claim(
        "alpha near the end of the range costs reconstruction",
        key="log-range-costs",
        paper="-",
        ours=f"MSE {end} up to {worst:.2e}, without decay {errors[0]:.2e}",
        holds=worst > errors[0],
        see=("fig13_log_codes", "log"),
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
        key="lasso",
        paper=f"codes within {AGREE:g}",
        ours=f"{worst:.1e}",
        holds=worst < AGREE,
        see=("lasso",),
    )


POWER_CAPTION = (
    "Fig. 11. Nuclear norm and error of the codes x = u^4 - v^4, on logarithmic time: both become stationary sooner "
    "for larger alpha. R_a of this family is Fig. 10, which the experiment geometry draws."
)
LOG_CAPTION = (
    "Fig. 13. The same for x = log u - log v: the norm rises faster for larger alpha. Up to about t = 1 the curves lie "
    "on each other. One that ends early ends where a coordinate leaves the range. R_a of this family is Fig. 12."
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
