"""Weight decay and the rank of a product of matrices: a 5 x 5 example and single-layer attention.

Weight decay on both factors of X = A B does two things, at rates of its own. It removes the imbalance A^T A - B B^T,
which gradient flow without decay keeps, as e^(-2 lambda t), whatever the loss. And it lowers singular values of X by a
soft threshold, because |A|^2 + |B|^2 of balanced factors is twice the nuclear norm of X. Both are seen on the example
of Kobayashi et al., whose limit is known, and on the keys and queries of an attention layer whose values are frozen.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ... import plot
from ...problem import CustomObjective, MatrixProduct, Problem, WeightDecay
from ...problem.reparam import Weights
from ...runs.dataset import Dataset
from ...sweeps.flows import sweep
from ..core.experiment import Setting
from ..core.run import RunFolder

TARGET = np.array([0.2, 0.4, 0.6, 0.8, 1.0])  # the singular values of D
STRENGTHS = np.array([0.0, 0.3, 0.7, 1.1, 1.5])  # lambda / 2 is none of them
HORIZON = {"paper": 100.0, "quick": 60.0}

TOKENS, WIDTH, SEQUENCES = 6, 8, 16
TEACHER = 6 * 0.5 ** np.arange(WIDTH)  # the singular values of its K^T Q
DECAYS = np.array([0.0, 0.03, 0.1, 0.3])
ATTENTION_HORIZON = {"paper": 400.0, "quick": 100.0}
TIMES = 61


def run(folder: RunFolder, setting: Setting) -> None:
    """The example, then attention; tables, figures and claims of both."""
    small = solve_example(setting)
    folder.save_dataset("example", small)
    rows = _ends(small)
    folder.save_table("example", rows)
    folder.show(
        f"|A B - D|^2 + lambda/2 (|A|^2 + |B|^2), 5 x 5, at t = {HORIZON[setting.preset]:g}", rows, COLUMNS, "example"
    )
    folder.save_figure("example", example_figure(small), EXAMPLE_CAPTION)
    _claim_example(folder, small, rows)
    attention = solve_attention(setting)
    folder.save_dataset("attention", attention)
    rows = _attention_ends(attention)
    folder.save_table("attention", rows)
    folder.show("Keys and queries of single-layer attention, at the end", rows, ATTENTION_COLUMNS, "attention")
    folder.save_figure("attention", attention_figure(attention), ATTENTION_CAPTION)
    _claim_attention(folder, attention, rows)


COLUMNS = {
    "lambda": "lambda",
    "singular": "singular values",
    "predicted": "(d - lambda/2)_+",
    "rate": "rate of the imbalance",
}
ATTENTION_COLUMNS = {
    "lambda": "lambda",
    "loss": "loss",
    "rate": "rate of the imbalance",
    "alignment": "alignment",
    "rank": "effective rank",
}


def measured(t: Any, x: Float[Array, "n m"], w: Weights) -> dict[str, Array]:
    """Returns the numbers that are saved of X = A B at each time.

    `imbalance`: |A^T A - B B^T|; `singular`: the singular values of X; `alignment`: twice the nuclear norm of X over
    |A|^2 + |B|^2, which is at most 1, and 1 exactly for balanced factors; `rank`: e to the entropy of the singular
    values.
    """
    first, second = w
    values = jnp.linalg.svd(x, compute_uv=False)
    share = values / jnp.sum(values)
    return {
        "imbalance": jnp.linalg.norm(first.T @ first - second @ second.T),
        "singular": values,
        "alignment": 2 * jnp.sum(values) / (jnp.sum(first**2) + jnp.sum(second**2)),
        "rank": jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0))),
    }


def solve_example(setting: Setting) -> Dataset:
    """`|A B - D|^2 + lambda/2 (|A|^2 + |B|^2)` for each lambda, from one Gaussian start."""
    rng = np.random.default_rng(setting.seed)
    start = tuple(jnp.asarray(0.2 * rng.normal(size=(5, 5))) for _ in range(2))
    target = jnp.diag(jnp.asarray(TARGET))

    def lane(decay: Array) -> tuple[Problem, Weights]:
        objective = CustomObjective(lambda X: jnp.sum((X - target.astype(X.dtype)) ** 2))
        return Problem(MatrixProduct(transpose=False), WeightDecay(0.5), decay, objective), start

    return _swept(lane, STRENGTHS, HORIZON[setting.preset])


def attend(M: Float[Array, "n n"], S: Float[Array, "tokens n"], V: Float[Array, "n n"]) -> Float[Array, "tokens n"]:
    """`softmax(S M S^T / sqrt(n)) S V`, the output of one attention head on the tokens S."""
    return jax.nn.softmax(S @ M @ S.T / S.shape[1] ** 0.5, axis=1) @ S @ V


def solve_attention(setting: Setting) -> Dataset:
    """The flow of K and Q, M = A B = K^T Q, towards the outputs of a head whose singular values halve; V is frozen."""
    rng = np.random.default_rng(setting.seed + 1)
    tokens = jnp.asarray(rng.normal(size=(SEQUENCES, TOKENS, WIDTH)))
    V = jnp.asarray(rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5)
    left, right = (np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2))
    teacher = jnp.asarray((left * TEACHER) @ right)
    outputs = jax.jit(jax.vmap(functools.partial(attend, teacher, V=V)))(tokens)
    start = tuple(jnp.asarray(0.5 * rng.normal(size=(WIDTH, WIDTH))) for _ in range(2))

    def loss(M: Float[Array, "n n"]) -> Float[Array, ""]:
        dtype = M.dtype
        produced = jax.vmap(lambda S: attend(M, S, V.astype(dtype)))(tokens.astype(dtype))
        return jnp.sum((produced - outputs.astype(dtype)) ** 2) / SEQUENCES

    def lane(decay: Array) -> tuple[Problem, Weights]:
        return Problem(MatrixProduct(transpose=False), WeightDecay(0.5), decay, CustomObjective(loss)), start

    return _swept(lane, DECAYS, ATTENTION_HORIZON[setting.preset])


def _swept(lane: Callable, decays: np.ndarray, horizon: float) -> Dataset:
    times = np.array([0.0, *np.geomspace(0.05, horizon, TIMES)])
    return sweep(lane, {"decay": decays}, t1=horizon, saveat=times, metrics=measured, progress=False)


def rate_of(times: np.ndarray, imbalance: np.ndarray) -> float:
    """The rate at which the imbalance falls: the slope of its logarithm, down to 1e-6 of its start."""
    kept = imbalance > 1e-6 * imbalance[0]
    return float(-np.polyfit(times[kept], np.log(imbalance[kept]), 1)[0])


def _ends(dataset: Dataset) -> list[dict[str, Any]]:
    """One mapping a lambda, with the columns of example.csv."""
    rows = []
    for decay in STRENGTHS:
        lane = dataset.sel(decay=decay)
        ends = lane.singular.isel(time=-1).values
        predicted = np.maximum(TARGET[::-1] - decay / 2, 0)
        rows.append(
            {
                "lambda": float(decay),
                "singular": ", ".join(f"{value:.3f}" for value in ends),
                "predicted": ", ".join(f"{value:.3f}" for value in predicted),
                "rate": rate_of(lane.time.values, lane.imbalance.values),
                "error": float(np.max(np.abs(ends - predicted))),
                "kept": int(np.sum(ends > 1e-3)),
                "expected": int(np.sum(predicted > 0)),
            }
        )
    return rows


def _claim_example(folder: RunFolder, dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    _claim_rate(folder, rows, "The imbalance A^T A - B B^T falls as e^(-2 lambda t)", "2 lambda", "example")
    first = dataset.imbalance.sel(decay=0.0).values
    drift = float(np.max(np.abs(first / first[0] - 1)))
    folder.claim(
        "Without decay the imbalance stays as it was at the start",
        paper="conserved",
        ours=f"drift {drift:.1e}",
        holds=drift < 1e-5,
        see=("example",),
    )
    error = max(row["error"] for row in rows)
    folder.claim(
        "The singular values of A B end at (d - lambda/2)_+",
        paper="soft threshold",
        ours=f"largest difference {error:.1e}",
        holds=error < 1e-3,
        see=("example",),
    )
    folder.claim(
        "The rank at the end is the number of d above lambda/2",
        paper=", ".join(str(row["expected"]) for row in rows),
        ours=", ".join(str(row["kept"]) for row in rows),
        holds=all(row["kept"] == row["expected"] for row in rows),
        see=("example",),
    )


def _claim_rate(folder: RunFolder, rows: list[dict[str, Any]], statement: str, paper: str, name: str) -> None:
    """Claims that the imbalance of every lane with decay, all but the first, falls at the rate 2 lambda.

    **Arguments:** `name`: that of the figure and of the table.
    """
    apart = max(abs(row["rate"] / (2 * row["lambda"]) - 1) for row in rows[1:])
    folder.claim(
        statement,
        paper=paper,
        ours=f"rates within {apart:.1e} of it",
        holds=apart < 1e-3,
        see=(name,),
    )


def _attention_ends(dataset: Dataset) -> list[dict[str, Any]]:
    rows = []
    for decay in DECAYS:
        lane = dataset.sel(decay=decay)
        end = lane.isel(time=-1)
        rows.append(
            {
                "lambda": float(decay),
                "loss": float(end.loss),
                "rate": rate_of(lane.time.values, lane.imbalance.values),
                "alignment": float(end.alignment),
                "rank": float(end["rank"]),
            }
        )
    return rows


def _claim_attention(folder: RunFolder, dataset: Dataset, rows: list[dict[str, Any]]) -> None:
    statement = "The imbalance of keys and queries falls as e^(-2 lambda t) through the softmax as well"
    _claim_rate(folder, rows, statement, "2 lambda, for any loss of K^T Q", "attention")
    strongest = rows[-1]
    folder.claim(
        "Under the strongest decay the factors end balanced, so that decay is a nuclear norm of K^T Q",
        paper="alignment 1",
        ours=f"{strongest['alignment']:.6f}; without decay {rows[0]['alignment']:.3f}",
        holds=strongest["alignment"] > 1 - 1e-4 and rows[0]["alignment"] < 0.95,
        see=("attention",),
    )
    ranks = [row["rank"] for row in rows]
    folder.claim(
        "The effective rank of K^T Q at the end falls as decay grows",
        paper="falls",
        ours=", ".join(f"{value:.2f}" for value in ranks),
        holds=bool(np.all(np.diff(ranks) < 0)),
        see=("attention",),
    )


EXAMPLE_CAPTION = (
    "Left: the imbalance of the factors falls at the rate 2 lambda (dotted), whatever the loss does. Right: the "
    "singular values of A B for lambda = 0.7 end at (d - 0.35)_+ (dashed)."
)
ATTENTION_CAPTION = (
    "Keys and queries of single-layer attention with frozen values. Their imbalance falls at the rate 2 lambda; as it "
    "does, twice the nuclear norm of K^T Q approaches |K|^2 + |Q|^2 (alignment 1), and the effective rank falls."
)
SHOWN = 0.7


def _over_time(dataset: Dataset, variable: str, first: int = 0) -> list[plot.Line]:
    """One curve a lambda, from the save time `first` on: on a logarithmic axis t = 0 has no place."""
    return [
        plot.Line(
            dataset.time.values[first:], dataset[variable].sel(decay=decay).values[first:], f"{decay:g}", color=color
        )
        for decay, color in zip(dataset.decay.values, plot.colors(dataset.decay.size), strict=True)
    ]


def _laws(dataset: Dataset) -> list[plot.Line]:
    """`e^(-2 lambda t)` times the imbalance at the start, drawn over the measured curves."""
    times, start = dataset.time.values, float(dataset.imbalance.isel(decay=0, time=0))
    return [
        plot.Line(times, start * np.exp(-2 * decay * times), style=":", color="black") for decay in dataset.decay.values
    ]


def example_figure(dataset: Dataset) -> Any:
    """Imbalance over time for each lambda, and all singular values for one."""
    lane = dataset.sel(decay=SHOWN)
    ends = np.maximum(TARGET[::-1] - SHOWN / 2, 0)
    times, color = lane.time.values[1:], plot.colors(len(STRENGTHS))[list(STRENGTHS).index(SHOWN)]
    values = [plot.Line(times, lane.singular.values[1:, i], color=color) for i in range(len(TARGET))]
    values += [plot.Line(times, np.full(times.size, end), style="--", color="black") for end in ends]
    panels = [
        _imbalance_panel(dataset, "the factors", r"$|A^\top A - B B^\top|$"),
        plot.Panel(
            values, rf"singular values of $AB$ at $\lambda$ = {SHOWN:g}", "time t", "singular value", x_log=True
        ),
    ]
    return plot.line_panels(panels, "Weight decay balances the factors and thresholds the product", "lambda")


def _imbalance_panel(dataset: Dataset, factors: str, formula: str) -> plot.Panel:
    """The imbalance over time beside the law of each lambda."""
    lines = _over_time(dataset, "imbalance") + _laws(dataset)
    return plot.Panel(lines, f"imbalance of {factors}", "time t", formula, y_log=True, floor=1e-8)


def attention_figure(dataset: Dataset) -> Any:
    """Imbalance, alignment, effective rank and loss over time."""
    panels = [
        _imbalance_panel(dataset, "keys and queries", r"$|K K^\top - Q Q^\top|$"),
        plot.Panel(
            _over_time(dataset, "alignment", 1),
            "alignment",
            "time t",
            r"$2|K^\top Q|_* / (|K|^2 + |Q|^2)$",
            x_log=True,
            level=1.0,
        ),
        plot.Panel(
            _over_time(dataset, "rank", 1), "effective rank", "time t", r"effective rank of $K^\top Q$", x_log=True
        ),
        plot.Panel(_over_time(dataset, "loss", 1), "loss", "time t", "loss", x_log=True, y_log=True),
    ]
    return plot.line_panels(panels, "Single-layer attention with frozen values", "lambda")
