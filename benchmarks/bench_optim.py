"""Times the tools of training loops: switch-off AdamW against optax.adamw, and the spectra of attention.

Two programs of nearly equal cost are timed in turns, so that what else the machine does falls on both alike. The record
keeps the median of the ratios of neighbours with its 95 % confidence interval, and, free of any clock, the ratios of
what the compiler counts in both programs: operations, and bytes moved.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from mirrorjax import nn, optim

WIDTH, LAYERS, BATCH = 1296, 3, 64  # three layers of 1296 x 1296 are 5 million parameters
PAIRS = int(os.environ.get("BENCH_PAIRS", "1500"))  # one pair differs by tens of per cent on a busy machine
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "theirs": lambda: optax.adamw(1e-3, weight_decay=0.1),
    "ours": lambda: optim.switch_off_adamw(1e-3, weight_decay=0.1, off_at=PAIRS),
    "theirs again": lambda: optax.adamw(1e-3, weight_decay=0.1),
}


def network() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return {f"w{i}": jax.random.normal(k, (WIDTH, WIDTH), jnp.float32) / WIDTH**0.5 for i, k in enumerate(keys)}


def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    for layer in params.values():
        x = jax.nn.gelu(x @ layer)
    return jnp.mean((x - 1) ** 2)


def make_step(optimizer: optax.GradientTransformation, x: jax.Array) -> tuple[Callable, Any]:
    """One compiled training step, its parameters and state updated in place, and where it starts."""

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params = network()
    start = (params, optimizer.init(params))
    return jax.jit(step, donate_argnums=(0, 1)).lower(*start).compile(), start


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = jax.block_until_ready(run())
    return time.perf_counter() - start, value


def in_turns(steps: dict[str, Callable], carries: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of each step, `PAIRS` of each, first one leading and then the other."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(PAIRS + 3):
        order = list(steps) if turn % 2 else list(reversed(steps))
        for name in order:
            taken, carries[name] = timed(lambda name=name: steps[name](*carries[name]))
            seconds[name].append(taken)
    return {name: taken[3:] for name, taken in seconds.items()}  # the first ones warm the caches


def median_ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """The median ratio of neighbours, and the order statistics that enclose the true one in 95 of 100 cases."""
    ratios = sorted(one / other for one, other in zip(above, below, strict=True))
    half = round(0.98 * len(ratios) ** 0.5)  # 1.96 standard deviations of a binomial of n trials at 1/2
    middle = len(ratios) // 2
    low, high = ratios[max(middle - half, 0)], ratios[min(middle + half, len(ratios) - 1)]
    return {"ratio": statistics.median(ratios), "ratio_low": low, "ratio_high": high}


def counted(steps: dict[str, Any], against: str) -> dict[str, float]:
    """Ratios of the compiler's own counts of the two programs."""
    ours, theirs = (steps[name].cost_analysis() for name in (against, "theirs"))
    return {"operations": ours["flops"] / theirs["flops"], "bytes": ours["bytes accessed"] / theirs["bytes accessed"]}


@pytest.mark.parametrize("against", ["ours", "theirs again"])
def test_step_against_adamw(benchmark, against: str):
    """The ratio of step times to optax.adamw's; `theirs again` is one program twice, for its resolution."""
    x = jax.random.normal(jax.random.key(1), (BATCH, WIDTH), jnp.float32)
    steps, carries = {}, {}
    with jax.numpy_dtype_promotion("standard"):
        for name in ("theirs", against):
            steps[name], carries[name] = make_step(OPTIMIZERS[name](), x)
    measured = benchmark.pedantic(lambda: in_turns(steps, carries), rounds=1, iterations=1)
    benchmark.extra_info.update(
        median_ratio(measured[against], measured["theirs"]),
        fastest=min(measured[against]) / min(measured["theirs"]),
        **counted(steps, against),
        step_seconds=statistics.median(measured[against]),
        step_seconds_adamw=statistics.median(measured["theirs"]),
        pairs=PAIRS,
        parameters=LAYERS * WIDTH**2,
    )


# (layers, embedding, heads): ViT-tiny, and GPT-2 small.
@pytest.mark.parametrize(("layers", "d", "heads"), [(12, 192, 3), (12, 768, 12)])
def test_spectra_of_attention(benchmark, measure: Callable, layers: int, d: int, heads: int):
    """Every head of every layer, from the factors; the record holds the seconds of an SVD of one formed product."""
    key, query = (jax.random.normal(jax.random.key(i), (layers, d, d), jnp.float32) / d**0.5 for i in range(2))

    def spectra(key: jax.Array, query: jax.Array) -> dict[str, jax.Array]:
        return nn.product_spectrum(*nn.attention_factors(key, query, heads)).summary()

    measure(spectra, key, query)
    one = jax.jit(lambda a, b: jnp.linalg.svd(a @ b, compute_uv=False))
    factors = [factor[0, 0] for factor in nn.attention_factors(key, query, heads)]
    jax.block_until_ready(one(*factors))
    seconds, _ = timed(lambda: one(*factors))
    benchmark.extra_info.update(products=layers * heads, rank=d // heads, seconds_formed=seconds * layers * heads)
