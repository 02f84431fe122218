"""Variants of the codes of `sparse_coding.py`: other powers, gradient descent, and dictionaries learned with them.

The text of the paper explores several powers k at one strength, takes the step of gradient descent from a Lipschitz
bound, and updates the dictionary between the codes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from ...dynamics import Descent
from ...problem import PowerDifference
from ...runs import Zip
from ...runs.dataset import Dataset
from ...sweeps import sweep
from ..core.run import RunFolder
from .coding import Coder, final_codes, power_rows, solve_lasso, solve_log, solve_power
from .dictionary import Codes, Dictionary, Reduced, Signals, accuracy, reduce, update_dictionary

FIXED = 0.5  # the strength at which powers are compared, and dictionaries learned with the power family
LOG_FIXED, LASSO_FIXED = 0.1, 0.1
DESCENT_END = 2.0
CLOSE = 0.02  # the relative distance at which descent counts as following the flow


def report_powers(folder: RunFolder, reduced: Reduced, powers: Sequence[int]) -> None:
    """Records, for each k, the codes of x = u^2k - v^2k without decay and at one strength."""
    rows = []
    for k in powers:
        rows += [{"k": k, **row} for row in power_rows(solve_power(reduced, (0.0, FIXED), k))]
    folder.save_table("powers", rows)
    heads = {"k": "k", "alpha": "alpha", "nuclear_norm": "nuclear norm", "mse": "MSE"}
    heads |= {"norm_stationary": "norm stationary at t", "mse_stationary": "MSE stationary at t", "failed": "failed"}
    folder.show(f"x = u^2k - v^2k without decay and at alpha = {FIXED:g}", rows, heads, "powers")
    times = {row["k"]: [each["norm_stationary"] for each in rows if each["k"] == row["k"]] for row in rows}
    shown = ", ".join(f"k = {k}: {without:.3g} to {decayed:.3g}" for k, (without, decayed) in times.items())
    folder.claim(
        f"for every k, decay at strength {FIXED:g} makes the nuclear norm stationary sooner",
        key="power-every-k",
        paper="various values are explored",
        ours=f"stationary at t, {shown}",
        holds=all(decayed < without for without, decayed in times.values()),
        see=("powers",),
    )


def report_descent(folder: RunFolder, reduced: Reduced) -> None:
    """Records gradient descent with two Lipschitz bounds beside the flow: that of f in x, and that of f(g(w)) in w."""
    flow = solve_power(reduced, (0.0, FIXED), t1=DESCENT_END)
    curvature = float(np.linalg.norm(np.asarray(reduced.R), 2) ** 2)
    largest = float(flow.largest_weight.max())
    bounds = {"f in x": curvature, "f(g(w)) in w": weight_bound(reduced, curvature, largest)}
    rows = []
    for name, bound in bounds.items():
        descent = solve_descent(reduced, 1 / bound)
        gap = np.linalg.norm(descent.x.values - flow.x.values) / np.linalg.norm(flow.x.values)
        status = sorted({str(each) for each in descent.status.values.ravel()})
        rows.append({"bound": name, "step": 1 / bound, "distance": float(gap), "status": ", ".join(status)})
    folder.save_table("descent", rows)
    heads = {"bound": "Lipschitz bound of", "step": "step", "distance": "distance to the flow", "status": "status"}
    folder.show(f"Gradient descent on {len(reduced.targets)} faces, t = {DESCENT_END:g}", rows, heads, "descent")
    in_x, in_w = rows
    codes = f"codes within {in_w['distance']:.1e} of the flow's" if np.isfinite(in_w["distance"]) else in_w["status"]
    folder.claim(
        "gradient descent on the weights follows the flow with the step that the Lipschitz bound of f(g(w)) gives",
        key="descent-lipschitz",
        paper="step from the Lipschitz bound",
        ours=f"step {in_w['step']:.2g}: {codes}; with the bound of f in x, step {in_x['step']:.2g}: {in_x['status']}",
        holds=bool(in_w["distance"] < CLOSE),
        see=("descent",),
    )


def weight_bound(reduced: Reduced, curvature: float, largest: float, k: int = 2) -> float:
    """A bound of the Hessian of f(g(w)) while no weight exceeds `largest`: `|D^T D| |J J^T| + |grad f| |g''|`.

    x = u^2k - v^2k has `J J^T <= 2 (2k)^2 w^(4k-2)` and `|g''| <= 2k (2k-1) w^(2k-2)`. Descent from x = 0 lowers f, so
    that `|grad f| <= sqrt(2 |D^T D| f(0))`.
    """
    slope = float(np.sqrt(curvature) * np.max(np.linalg.norm(np.asarray(reduced.targets), axis=1)))
    metric = 2 * (2 * k) ** 2 * largest ** (4 * k - 2)
    return curvature * metric + slope * 2 * k * (2 * k - 1) * largest ** (2 * k - 2)


def solve_descent(reduced: Reduced, step: float) -> Dataset:
    """The codes of x = u^4 - v^4 by gradient descent, without decay and at the fixed strength."""
    coder = Coder(reduced, PowerDifference(2), (jnp.array(0.5), jnp.array(0.5)))
    grid = {"alpha": np.array([0.0, FIXED]), "face": Zip(target=reduced.targets)}
    end = step * max(np.floor(DESCENT_END / step), 1.0)  # whole steps
    how = {"max_steps": round(end / step), "chunk": 2 * len(reduced.targets)}
    return sweep(coder.lane, grid, t1=end, flow=Descent(optax.sgd(1.0), step), **how)


def report_dictionaries(
    folder: RunFolder, signals: Signals, dictionary: Dictionary, sizes: tuple[int, int], rounds: int
) -> None:
    """Records rounds of codes and updates of the dictionary, by each family.

    **Arguments:** `sizes`: the number of faces for the powers and products, and for the logarithms.
    """
    many, few = sizes
    families: dict[str, tuple[int, Callable[[Reduced], Codes]]] = {
        "m w": (many, lambda reduced: final_codes(solve_lasso(reduced, [LASSO_FIXED])[0], 0)),
        "u^4 - v^4": (many, lambda reduced: final_codes(solve_power(reduced, (FIXED,)), 0)),
        "log u - log v": (few, lambda reduced: final_codes(solve_log(reduced, (LOG_FIXED,)), 0)),
    }
    rows: list[dict[str, Any]] = []
    for family, (faces, code) in families.items():
        penalty = 2 * LASSO_FIXED if family == "m w" else None
        rows += [{"family": family, **row} for row in alternate(signals[:faces], dictionary, code, rounds, penalty)]
        folder.save_table("alternating", rows)
    heads = {"family": "x", "round": "round", "objective": "objective", "mse": "MSE", "nonzeros": "nonzeros a face"}
    folder.show("Codes and updates of the dictionary in turn", rows, heads, "alternating")
    for family in families:
        errors = np.array([row["mse"] for row in rows if row["family"] == family])
        folder.claim(
            f"updates of the dictionary lower the reconstruction error of the codes x = {family} in every round",
            key="dictionary-updates",
            paper="the dictionary is updated",
            ours="MSE " + ", ".join(f"{error:.2e}" for error in errors),
            holds=bool(np.all(np.diff(errors) < 0)),
            see=("alternating",),
        )


def alternate(
    signals: Signals, dictionary: Dictionary, code: Callable[[Reduced], Codes], rounds: int, penalty: float | None
) -> list[dict[str, Any]]:
    """Codes and updates of the dictionary in turn, from the codes of the first one on.

    **Arguments:** `code`: the codes of a reduced problem; `penalty`: the lambda of the objective
    `|Y - D X|^2 / 2 + lambda |X|_1` that the codes minimise, and that no round raises then; `None` where they minimise
    none, and the row has no objective.
    """
    rows = []
    for number in range(rounds + 1):
        reduced = reduce(signals, dictionary)
        codes = code(reduced)
        objective = None
        if penalty is not None:
            fit = float(reduced.mean_squared_error(codes)) * signals.size / 2
            objective = fit + penalty * _l1(codes)
        rows.append({"round": number, "objective": objective, **accuracy(reduced, codes)})
        dictionary = update_dictionary(signals, dictionary, codes)
    return rows


def _l1(codes: Float[np.ndarray, "n k"]) -> float:
    return float(np.sum(np.abs(codes)))
