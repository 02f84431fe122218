"""The bias that training with real optimizers accumulates: what decay, finite steps and noise each add to it.

Sparse regression by x = m w with decay that is switched off after a quarter of the time, so that the flow ends with
the same accumulated regularization a in all coordinates. Gradient descent, SGD, momentum and AdamW spend the same on
decay, and end with an a_i of their own in each coordinate, which `read_bias` reads off their weights. `track_bias` says
where it came from. A run whose mirror coordinates mu stay in range(Z^T) ends at the minimum of its own
`sum_i R_{a_i}(x_i)` among the solutions; how far mu is from that space says whether a run does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ... import plot
from ...geometry import legendre, predict_limit, read_bias
from ...optim import accumulated_bias, track_bias
from ...problem import Hadamard, LeastSquares, SwitchOff, WeightDecay
from ...runs import map_grid
from ...runs.dataset import Dataset
from ..core.experiment import Setting
from ..core.run import RunFolder
from .planted import COORDINATES, MEASUREMENTS, PLANTED, sparse_regression

G, H = Hadamard(), WeightDecay()
SPENT = -1.0  # the a of the flow
DECAYED = 0.25  # the share of the time with decay
SMALLER = (1.0, 0.5, 0.25)  # step sizes, as shares of the largest


@dataclass(frozen=True)
class Method:
    """An optimizer with the choices of its runs.

    `build`: learning rate -> optimizer; `largest`: the largest learning rate; `batch`: rows of the data a step, drawn
    anew, or all; `coupled`: the kind of decay; `time`, `quick_time`: the sum of its learning rates, by preset; `gain`:
    how far the weights move in a unit of that time, 1 / (1 - beta) for momentum; `cosine`: True for a learning rate
    that falls to 0; `label_noise`: the standard deviation of noise on the labels while there is decay.
    """

    name: str
    build: Callable[..., optax.GradientTransformation]
    largest: float
    batch: int
    coupled: bool
    time: float
    quick_time: float
    gain: float = 1.0
    cosine: bool = False
    label_noise: float = 0.0

    @property
    def step_sizes(self) -> Float[np.ndarray, " sizes"]:
        """The learning rates that are run, the largest first."""
        return self.largest * np.array(SMALLER)


METHODS = (
    Method("gradient descent", optax.sgd, 0.2, MEASUREMENTS, coupled=True, time=800.0, quick_time=120.0),
    Method("SGD", optax.sgd, 0.05, 4, coupled=True, time=800.0, quick_time=120.0),
    Method("SGD, noisy labels", optax.sgd, 0.05, 4, coupled=True, time=800.0, quick_time=120.0, label_noise=1.0),
    Method("momentum", partial(optax.sgd, momentum=0.9), 0.01, 8, coupled=True, time=80.0, quick_time=12.0, gain=10.0),
    Method("AdamW", optax.adam, 0.02, 8, coupled=False, time=20.0, quick_time=10.0, cosine=True),
)
SEEDS = {"paper": 5, "quick": 1}


def start() -> tuple[Array, Array]:
    """m = 1 and w = 0 in all coordinates, so that x starts at 0 and A at 1/2."""
    return jnp.ones(COORDINATES), jnp.zeros(COORDINATES)


def train(method: Method, time: float, seed: Array, step_size: Array) -> dict[str, Any]:
    """One run: the bias of its weights and the parts of it, one entry a coordinate, and the x where it ends."""
    objective, key = sparse_regression(seed).objective, jax.random.fold_in(jax.random.key(1), seed)
    count = jnp.round(time / step_size * (2 if method.cosine else 1)).astype(int)
    rate: Any = _cosine(step_size, count) if method.cosine else step_size
    alpha = SwitchOff(-SPENT / (DECAYED * time * method.gain), DECAYED * time)
    optimizer = track_bias(method.build(rate), alpha, step_size=rate, coupled=method.coupled, noise=True)

    def step(n: Array, carry: tuple) -> tuple:
        (m, w), state = carry
        mean = objective.gradient(m * w)
        noise = jnp.where(n.astype(float) < DECAYED * count.astype(float), method.label_noise, 0.0)
        some = mean
        if method.batch < MEASUREMENTS:
            some = _of_batch(objective, m * w, jax.random.fold_in(key, n), method.batch, noise)
        (drawn, expected) = ((slope * w, slope * m) for slope in (some, mean))
        updates, state = optimizer.update(drawn, state, (m, w), mean_gradient=expected)
        return optax.apply_updates((m, w), updates), state

    w, state = jax.lax.fori_loop(0, count, step, (start(), optimizer.init(start())))
    bias, parts = read_bias(G, H, start(), w), accumulated_bias(state)
    named = {"decay": parts.decay, "step": parts.step, "noise": parts.noise}
    return {"x": G(w), "mu": bias.mu, "a": bias.a, "bias_status": bias.result, **named}


def _cosine(step_size: Array, count: Array) -> Callable[[Array], Array]:
    return lambda n: step_size * (1 + jnp.cos(jnp.pi * n.astype(float) / count.astype(float))) / 2


def _of_batch(objective: LeastSquares, x: Array, key: PRNGKeyArray, size: int, noise: Array) -> Array:
    """The gradient of f on rows drawn with replacement and labels with noise: its mean is that of f."""
    first, second = jax.random.split(key)
    rows = jax.random.randint(first, (size,), 0, MEASUREMENTS)
    labels = objective.y[rows] + noise * jax.random.normal(second, (size,))
    return objective.Z[rows].T @ (objective.Z[rows] @ x - labels) / size


def run(folder: RunFolder, setting: Setting) -> None:
    """Every method in turn, written as soon as it is trained; the figures and the claims at the end."""
    seeds = np.arange(setting.seed, setting.seed + SEEDS[setting.preset])
    same = np.full(COORDINATES, SPENT)
    flows = {int(seed): own_limit(sparse_regression(int(seed)).objective, same) for seed in seeds}
    solved, rows = {}, []
    for method in METHODS:
        time = method.time if setting.preset == "paper" else method.quick_time
        grid = {"seed": seeds, "step_size": method.step_sizes}
        solved[method.name] = dataset = map_grid(partial(train, method, time), grid)
        folder.save_dataset(method.name.replace(",", "").replace(" ", "_").lower(), dataset)
        rows += [row for seed in seeds for row in table_rows(method, dataset.sel(seed=seed), flows[int(seed)])]
        folder.save_table("discrete", rows)
    first = [row for row in rows if row["seed"] == setting.seed]
    folder.show(f"Data seed {setting.seed}; the flow ends with a = {SPENT:g}", first, COLUMNS, "discrete")
    folder.console.print(NOTE, highlight=False, soft_wrap=True)
    folder.save_figure("bias", bias_figure(solved, setting.seed), BIAS_CAPTION)
    folder.save_figure("parts", parts_figure(rows), PARTS_CAPTION)
    _claim(folder, solved, rows)


COLUMNS = {
    "method": "method",
    "step_size": "step size",
    "decay": "decay",
    "step": "step",
    "noise": "noise",
    "a_low": "least a_i",
    "a_median": "median a_i",
    "a_high": "largest a_i",
    "fit": "|Zx - y|",
    "kkt": "KKT",
    "own": "to own min",
    "flow": "to flow's",
    "unreached": "no a_i",
}
NOTE = (
    "decay, step, noise: the parts of a_i, medians over coordinates; |Zx - y|: relative to |y|; KKT: the distance of "
    "mu from range(Z^T), relative to |mu|; to own min: |x - argmin of R with the run's own a_i| / |x|; to flow's: the "
    "same with the flow's a; no a_i: coordinates whose weights changed orthant"
)


def own_limit(objective: LeastSquares, a: np.ndarray) -> Float[np.ndarray, " d"]:
    """`argmin sum_i R_{a_i}(x_i)` s.t. `Z x = y`, NaN where the search did not converge."""
    return np.asarray(predict_limit(legendre(G, H, start()), objective, a).x)


def table_rows(method: Method, dataset: Dataset, flow: np.ndarray) -> list[dict[str, Any]]:
    """One mapping a step size, with the columns of discrete.csv, for one data seed."""
    seed = int(dataset.seed)
    objective = sparse_regression(seed).objective
    Z, y = np.asarray(objective.Z), np.asarray(objective.y)
    rows = []
    for lane in (dataset.sel(step_size=size) for size in method.step_sizes):
        x, a, mu = lane.x.values, lane.a.values, lane.mu.values
        reached = bool(np.all(lane.bias_status.values == "successful"))
        own = own_limit(objective, a) if reached else np.full_like(x, np.nan)
        distance = lambda other, x=x: float(np.linalg.norm(x - other) / np.linalg.norm(x))  # noqa: E731
        rows.append(
            {
                "method": method.name,
                "seed": seed,
                "step_size": float(lane.step_size),
                **{part: float(np.median(lane[part])) for part in ("decay", "step", "noise")},
                **{f"planted_{part}": float(np.mean(lane[part][:PLANTED])) for part in ("step", "noise")},
                "a_low": float(np.nanmin(a)),
                "a_median": float(np.nanmedian(a)),
                "a_high": float(np.nanmax(a)),
                "off_flow": float(np.nanmean(np.abs(a - SPENT))),
                "fit": float(np.linalg.norm(Z @ x - y) / np.linalg.norm(y)),
                "kkt": outside(Z, mu) if reached else float("nan"),
                "own": distance(own),
                "flow": distance(flow),
                "unreached": int(np.sum(lane.bias_status.values != "successful")),
            }
        )
    return rows


def outside(Z: np.ndarray, mu: np.ndarray) -> float:
    """The distance of mu from range(Z^T), relative to its length."""
    return float(np.linalg.norm(mu - Z.T @ np.linalg.lstsq(Z.T, mu)[0]) / np.linalg.norm(mu))


BIAS_CAPTION = (
    "The a_i that each method has accumulated, over all coordinates; dotted: the one a of the flow with the same "
    "decay. Smaller steps (darker) bring the a_i of every method but AdamW to that of the flow."
)
PARTS_CAPTION = (
    "Left: how far finite steps and noise move a beyond decay, in the mean over the planted coordinates. Right: how "
    "far mu is from range(Z^T), which is where it is when a run ends at the minimum of its own R."
)


def bias_figure(solved: Mapping[str, Dataset], seed: int) -> Any:
    """Histograms of a_i, a panel a method, a curve a step size, smallest first."""
    panels = []
    for method in METHODS:
        dataset = solved[method.name].sel(seed=seed)
        values = [dataset.a.sel(step_size=size).values for size in method.step_sizes[::-1]]
        edges = np.linspace(*_range([*values, np.array([SPENT])]), 41)
        lines = [
            _histogram(each[np.isfinite(each)], edges, label)
            for each, label in zip(values, ("a quarter", "a half", "largest"), strict=True)
        ]
        title = f"{method.name}, largest step {method.largest:g}"
        panels.append(plot.Panel(lines, title, r"$a_i$", "coordinates", events=[SPENT]))
    figure = plot.line_panels(panels, f"The bias of training; dotted: the flow's a = {SPENT:g}", "step size")
    for axis in figure.axes:
        axis.locator_params(axis="x", nbins=6)
    return figure


def _range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """An interval around all finite values, with a margin."""
    all_values = np.concatenate(values)
    low, high = np.nanmin(all_values), np.nanmax(all_values)
    margin = 0.05 * (high - low) + 1e-3
    return float(low - margin), float(high + margin)


def _histogram(values: np.ndarray, edges: np.ndarray, label: str) -> plot.Line:
    counts, _ = np.histogram(values, edges)
    return plot.Line(np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]]), label, filled=True)


def parts_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The parts of steps and noise on the planted coordinates, and the KKT residual, over the step size."""
    colors = plot.colors(len(METHODS))
    parts, residuals = [], []
    for method, color in zip(METHODS, colors, strict=True):
        own = [row for row in rows if row["method"] == method.name]
        sizes = np.array(SMALLER)

        def mean(key: str, own: list = own, method: Method = method) -> np.ndarray:
            each = [[abs(row[key]) for row in own if row["step_size"] == size] for size in method.step_sizes]
            # A run without an a_i somewhere has no residual.
            return np.array([np.mean([value for value in row if np.isfinite(value)] or [np.nan]) for row in each])

        parts.append(plot.Line(sizes, mean("planted_step"), f"{method.name}, steps", "-o", color))
        if method.batch < MEASUREMENTS:
            parts.append(plot.Line(sizes, mean("planted_noise"), f"{method.name}, noise", "--s", color))
        residuals.append(plot.Line(sizes, mean("kkt"), style="-o", color=color))
    size = "step size / the largest"
    panels = [
        plot.Panel(parts, "What steps and noise add to a", size, r"|part of $a_i$|, planted $i$", True, True),
        plot.Panel(residuals, r"Distance of $\mu$ from range($Z^T$)", size, "KKT residual", True, True),
    ]
    figure = plot.line_panels(panels, "Where the bias of training differs from that of the flow")
    for axis in figure.axes:
        axis.set_xticks(SMALLER, [f"{share:g}" for share in SMALLER])
        axis.set_xticks([], minor=True)
    return figure


def _claim(folder: RunFolder, solved: Mapping[str, Dataset], rows: Sequence[Mapping[str, Any]]) -> None:
    """Records what the theory says of each method, over all data seeds and step sizes."""
    parts = ("decay", "step", "noise")
    totals = {name: sum(each[part].values for part in parts) for name, each in solved.items()}
    summed = max(float(np.nanmax(np.abs(totals[name] - each.a.values))) for name, each in solved.items())
    folder.claim(
        "The parts of decay, steps and noise add up to the a_i that read_bias reads, in every run",
        paper="exact",
        ours=f"within {summed:.1e}",
        holds=summed < 1e-9,
    )
    _claim_decay(folder, solved)
    _claim_steps(folder, solved, rows)
    _claim_small_steps(folder, rows)
    _claim_limits(folder, rows)


def _claim_decay(folder: RunFolder, solved: Mapping[str, Dataset]) -> None:
    names = ("gradient descent", "SGD", "AdamW")
    spread = max(float(np.ptp(solved[name].decay.values, axis=-1).max()) for name in names)
    folder.claim(
        "Decay adds the same to every coordinate under gradient descent, SGD and AdamW",
        paper="exact",
        ours=f"spread below {spread:.1e}",
        holds=spread < 1e-9,
    )


def _claim_steps(folder: RunFolder, solved: Mapping[str, Dataset], rows: Sequence[Mapping[str, Any]]) -> None:
    descent = solved["gradient descent"]
    largest = float(descent.step.max())
    folder.claim(
        "Finite steps of gradient descent lower a_i in every coordinate",
        paper="log|1 - (eta g)^2| < 0",
        ours=f"the largest part is {largest:.1e}",
        holds=largest < 0,
        see=("bias", "discrete"),
    )
    parts = [_mean(rows, "gradient descent", "planted_step", index) for index in range(len(SMALLER))]
    ratios = [parts[0] / parts[1], parts[1] / parts[2]]
    folder.claim(
        "What small steps of gradient descent add to a halves with the step size",
        paper="first order in it",
        ours=f"falls by factors of {ratios[0]:.2f} and {ratios[1]:.2f}",
        holds=abs(ratios[1] - 2) < 0.25 and abs(ratios[1] - 2) < abs(ratios[0] - 2),
        see=("parts", "discrete"),
    )
    raised = min(_mean(rows, "AdamW", "planted_step", index) for index in range(len(SMALLER)))
    folder.claim(
        "Steps of AdamW raise the a_i of planted coordinates by more than decay lowers them",
        paper="-",
        ours=f"by {raised:.2f} at least, in the mean over them; decay {SPENT:g}",
        holds=raised > -SPENT,
        see=("parts", "discrete"),
    )
    step, noise = (_mean(rows, "SGD", key, 0) for key in ("planted_step", "planted_noise"))
    folder.claim(
        "Noise of SGD lowers the a_i of planted coordinates more than its steps do",
        paper="-",
        ours=f"noise {noise:.3f}, steps {step:.3f}, decay {SPENT:g}",
        holds=noise < step < 0,
        see=("parts", "discrete"),
    )


def _claim_small_steps(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    off = {method.name: [_mean(rows, method.name, "off_flow", index) for index in (0, -1)] for method in METHODS}
    ours = "; ".join(f"{name}: {large:.2g} to {small:.2g}" for name, (large, small) in off.items())
    approach = [small < 0.5 * large for name, (large, small) in off.items() if name != "AdamW"]
    folder.claim(
        "A quarter of the step size brings the a_i of every method to the flow's a, except those of AdamW",
        paper="-",
        ours=f"mean |a_i - a|: {ours}",
        holds=all(approach) and off["AdamW"][1] > 0.5 * off["AdamW"][0],
        see=("bias", "discrete"),
    )


def _claim_limits(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    worst = {name: _extreme(rows, name, max) for name in ("gradient descent", "SGD", "SGD, noisy labels")}
    folder.claim(
        "Gradient descent and SGD, with noisy labels too, end at the minimum of their own R, of one a_i a coordinate",
        paper="second order in the step size",
        ours="; ".join(f"{name}: KKT {kkt:.1e}, to own minimum {own:.1e}" for name, (kkt, own) in worst.items()),
        holds=all(kkt < 0.05 and own < 0.05 for kkt, own in worst.values()),
        see=("parts", "discrete"),
    )
    kkt, own = _extreme(rows, "AdamW", min)
    folder.claim(
        "AdamW does not end at the minimum of its own R, since it scales the gradient of each weight by itself",
        paper="-",
        ours=f"KKT residual at least {kkt:.2f}, distance to own minimum at least {own:.2f}",
        holds=kkt > 0.1,
        see=("parts", "discrete"),
    )
    own, flow = (_mean(rows, "SGD, noisy labels", key, 0) for key in ("own", "flow"))
    folder.claim(
        "The R with the own a_i of SGD on noisy labels says where it ends better than the R of the flow does",
        paper="-",
        ours=f"distance {own:.1e} against {flow:.1e}, relative to |x|",
        holds=own < 0.5 * flow,
        see=("discrete",),
    )


def _mean(rows: Sequence[Mapping[str, Any]], name: str, key: str, index: int) -> float:
    """The mean over seeds of a column at the step size of that index."""
    size = next(method.step_sizes[index] for method in METHODS if method.name == name)
    return float(np.mean([row[key] for row in rows if row["method"] == name and row["step_size"] == size]))


def _extreme(rows: Sequence[Mapping[str, Any]], name: str, choose: Callable) -> tuple[float, float]:
    """The extreme KKT residual and distance to the own minimum among a method's runs with an a_i everywhere."""
    chosen = [row for row in rows if row["method"] == name and not row["unreached"]]
    return choose(row["kkt"] for row in chosen), choose(row["own"] for row in chosen)
