"""The training loop of networks: lanes together, one at a time and in runs of their own; the cost of the tracker.

The lanes are those of `mirrorjax reproduce lora --preset quick`, and of a model so small that a step is mostly the
starting of programs. Whole runs are timed from call to result, after a first run that compiles.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mirrorjax.experiments.networks import adapters, lora
from mirrorjax.experiments.networks.adapters import Adapter, Corpus, Parts
from mirrorjax.nn.gpt2 import GPT2, GPT2Config
from mirrorjax.nn.tasks import Decay, decay_grid
from mirrorjax.nn.training import train

LANES, STEPS = 8, 240
QUICK = dataclasses.replace(lora.SIZES["paper"].adapter, records=25, seeds=3)  # as in the records
RECORDS_EVERY = QUICK.steps // QUICK.records
MODELS = {
    "quick": QUICK,
    "tiny": dataclasses.replace(
        QUICK,
        model=GPT2Config(vocabulary=65, context=16, layers=1, width=16, heads=2),
        length=16,
        batch=2,
        rank=2,
    ),
}


@pytest.fixture(autouse=True)
def loose_dtypes() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):
        yield


@cache
def parts(name: str) -> Parts:
    """The adaptation of a model that was not pretrained: what a step costs does not depend on it."""
    size = MODELS[name]
    graph, params = nnx.split(GPT2(size.model, rngs=nnx.Rngs(0)), nnx.Param)
    return adapters.assemble(size, corpus(size), graph, params)


def corpus(size: Adapter) -> Corpus:
    tokens = np.random.default_rng(0).integers(0, size.model.vocabulary, 200_000).astype(np.uint8)
    return adapters.corpus(tokens, tokens)


def run(name: str, lanes: range, chunk: int) -> None:
    """Train these lanes, one weight decay each, without records on the way."""
    decays = [Decay(0.01 * lane) for lane in lanes]
    adaptation: dict[str, Any] = parts(name)._asdict() | {"metrics": None}
    train(grid=decay_grid(decays, [0]), steps=STEPS, every=STEPS, chunk=chunk, progress=False, **adaptation)


def in_sequence(name: str) -> None:
    for lane in range(LANES):
        run(name, range(lane, lane + 1), 1)


def in_sequence_compiled_anew(name: str) -> None:
    for lane in range(LANES):
        jax.clear_caches()
        run(name, range(lane, lane + 1), 1)


WAYS: dict[str, Callable[[str], None]] = {
    "8 runs": in_sequence,
    "8 runs, each compiled": in_sequence_compiled_anew,
    "one run, a lane at a time": lambda name: run(name, range(LANES), 1),
    "one run, lanes together": lambda name: run(name, range(LANES), LANES),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_eight_lanes(benchmark: Any, measure_once: Callable, name: str, way: str) -> None:
    """Seconds of 240 steps of 8 lanes; the rate is of the operations that the compiler counts in a lane's gradient."""
    measure_once(lambda: WAYS[way](name), lambda: WAYS[way](name))
    seconds = benchmark.stats.stats.total / (LANES * STEPS)
    gradient, start = compiled_gradient(name)
    operations = gradient.cost_analysis()["flops"]
    benchmark.extra_info.update(
        milliseconds_a_step=1e3 * seconds,
        gflops=operations / seconds / 1e9,
        milliseconds_of_the_gradient=1e3 * typical(lambda: gradient(*start)),
    )


def compiled_gradient(name: str) -> tuple[Any, tuple]:
    adaptation = parts(name)
    _, weights, key = adaptation.lane(jnp.float32(0.01), jnp.float32(10), jnp.asarray(0))
    start = (weights, adaptation.batch(key))
    return jax.jit(jax.grad(adaptation.loss)).lower(*start).compile(), start


def typical(run: Callable[[], Any], times: int = 30) -> float:
    """The median of the seconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def test_tracker(benchmark: Any) -> None:
    """One measurement of the spectra of all products, as a share of the steps between two in the quick preset."""
    gradient, start = compiled_gradient("quick")
    adaptation = parts("quick")
    track = jax.jit(lambda weights: adaptation.metrics(weights)["ratio"]).lower(start[0]).compile()
    # In turns, so that what else the machine does falls on both alike.
    pairs = [(typical(lambda: track(start[0]), 5), typical(lambda: gradient(*start), 5)) for _ in range(40)]
    benchmark.pedantic(lambda: jax.block_until_ready(track(start[0])), rounds=50, iterations=1, warmup_rounds=3)
    measurement, step = (statistics.median(each) for each in zip(*pairs, strict=True))
    benchmark.extra_info.update(
        products=len(adaptation.loss.network.split.factors(start[0])),
        milliseconds_a_look=1e3 * measurement,
        milliseconds_a_gradient=1e3 * step,
        share_of_the_steps=measurement / (RECORDS_EVERY * step),
    )
