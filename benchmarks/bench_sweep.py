"""A sweep of matrix sensing against every other way to compute it, in one run: time, accuracy, share of the machine.

Sizes come from the environment, so that a larger machine can run larger ones (the defaults in brackets):
`BENCH_LANES` [1,4,16,64,256] and `BENCH_N` [10,20,50,100], which the scaling takes, and `BENCH_DEVICES` [1].
"""

import inspect
import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import competitors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sensing import ALONE, HORIZON, KNOWN, Case, make_case

import mirrorjax as mj

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other packages


def sizes(name: str, default: str) -> list[int]:
    return [int(value) for value in os.environ.get(name, default).split(",")]


LANES, NS = sizes("BENCH_LANES", "1,4,16,64,256"), sizes("BENCH_N", "10,20,50,100")
DEVICES = sizes("BENCH_DEVICES", "1")
N, MAIN, SCALED = 50, 64, 16
# As loose as an error of X of 2e-4 at the end allows, with room: what the others are compared at.
LOOSE = {"solver": mj.RKC(), "rtol": 1e-2}
SWEEPS: dict[str, dict[str, Any]] = {
    "mirrorjax, default": {},
    "mirrorjax, RKC at rtol 1e-3": LOOSE | {"rtol": 1e-3},
    "mirrorjax, RKC at rtol 1e-2": LOOSE,
}
ONE, FEW, ALL = np.array([ALONE]), KNOWN, make_case(N, MAIN).alphas
# What takes one lane, or seconds a lane, is not asked for more lanes than it takes to see its rate.
OTHERS: dict[str, tuple[Callable[..., competitors.Run], np.ndarray]] = {
    "PyTorch descent, autograd": (competitors.torch_descent, ONE),
    "PyTorch descent, analytic": (competitors.torch_analytic, ONE),
    "PyTorch descent, analytic, batched, packed A": (competitors.torch_batched, ALL),
    "torchdiffeq dopri5": (competitors.torchdiffeq_dopri5, FEW),
    "torchode tsit5": (competitors.torchode_tsit5, FEW[FEW != ALONE]),  # it gives up on the lane of strength 0.2
    "scipy RK45": (competitors.scipy_rk45, ONE),
    "diffrax Tsit5 under vmap, dense A": (partial(competitors.diffrax_vmap, packed=False), ALL),
    "diffrax Tsit5 under vmap, packed A": (partial(competitors.diffrax_vmap, packed=True), ALL),
    "jaxopt mirror descent": (competitors.jaxopt_mirror_descent, ONE),
}
RATE_ROUNDS = 5


@cache
def rate(*shapes: tuple[int, ...]) -> float:
    """float32 operations a second in the product of matrices of these shapes, the best of a few rounds."""
    left, right = (jax.random.normal(jax.random.key(index), shape, jnp.float32) for index, shape in enumerate(shapes))
    product = jax.jit(lambda left, right: jnp.matmul(left, right, precision="highest")).lower(left, right).compile()
    seconds = []
    for _ in range(RATE_ROUNDS + 1):
        start = time.perf_counter()
        jax.block_until_ready(product(left, right))
        seconds.append(time.perf_counter() - start)
    batch = int(np.prod(shapes[0][:-2]))
    return 2 * batch * shapes[0][-2] * shapes[0][-1] * shapes[1][-1] / min(seconds)


def shapes_of(one: Case) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The products of one velocity for all lanes."""
    m, p = one.y.size, one.n * (one.n + 1) // 2
    square = (one.lanes, one.n, one.n)
    return {
        "measure": ((m, p), (p, one.lanes)),
        "adjoint": ((p, m), (m, one.lanes)),
        "batched": (square, square),
    }


def floor_seconds(one: Case) -> float:
    """Seconds a lane and velocity that its products alone take here: two packed ones, two of n^3, `U U^T` and `G U`."""
    flops = {name: 2 * np.prod(left) * right[-1] for name, (left, right) in shapes_of(one).items()}
    times = {name: flops[name] / rate(*shapes) for name, shapes in shapes_of(one).items()}
    return (times["measure"] + times["adjoint"] + 2 * times["batched"]) / one.lanes


def velocity_flops(one: Case) -> int:
    """`2 (2 m p) + 2 (2 n^3)` a lane."""
    return 4 * one.y.size * one.n * (one.n + 1) // 2 + 4 * one.n**3


@pytest.mark.benchmark(group="products")
@pytest.mark.parametrize("name", ["measure", "adjoint", "batched", "square 2048"])
def test_products(benchmark, name: str):
    """What this machine makes of the products of the sweep, by themselves, and of one large square one."""
    shapes = shapes_of(make_case(N, MAIN)) | {"square 2048": ((2048, 2048), (2048, 2048))}
    gflops = benchmark.pedantic(lambda: rate.__wrapped__(*shapes[name]), rounds=1) / 1e9
    benchmark.extra_info.update(gflops=gflops)


def run_sweep(one: Case, t1: float, options: dict[str, Any]) -> Any:
    return mj.sweep(one.lane, one.grid, t1=t1, **options)


def measured_sweep(benchmark: Any, measure_once: Callable, one: Case, options: dict[str, Any]) -> Any:
    """Run once to compile, run once, and record the time and how uneven the lanes are.

    A short horizon would not compile all: a long sweep changes to a program on which XLA spends more effort.
    """
    dataset = measure_once(lambda: run_sweep(one, HORIZON, options).x.values, lambda: run_sweep(one, HORIZON, options))
    assert bool((dataset.status == "successful").all())
    benchmark.extra_info.update(
        n=one.n,
        lanes=one.lanes,
        seconds_a_lane=benchmark.stats.stats.median / one.lanes,
        steps=float(dataset.steps.mean()),
        slowest_over_mean=float(dataset.steps.max() / dataset.steps.mean()),
    )
    return dataset


@pytest.mark.benchmark(group="matrix sensing")
@pytest.mark.parametrize("name", SWEEPS)
def test_sweep(benchmark, measure_once: Callable, name: str):
    """Beside the time: the work, and which share of the time its products alone would take."""
    one = make_case(N, MAIN)
    dataset = measured_sweep(benchmark, measure_once, one, SWEEPS[name])
    seconds, evaluations = benchmark.extra_info["seconds_a_lane"], dataset.attrs["work"] / one.lanes
    benchmark.extra_info.update(
        evaluations=evaluations,
        efficiency=dataset.attrs["efficiency"],
        gflops=evaluations * velocity_flops(one) / seconds / 1e9,
        share_of_products=evaluations * floor_seconds(one) / seconds,
        **one.error(one.alphas, dataset.x.values),
    )


@pytest.mark.benchmark(group="matrix sensing")
@pytest.mark.parametrize("name", OTHERS)
def test_other(benchmark, measure_once: Callable, name: str):
    """The same by other packages. What an absent package would have to do is skipped."""
    build, alphas = OTHERS[name]
    one, built = make_case(N, MAIN), []
    try:
        X, evaluations = measure_once(lambda: built.append(build(one, alphas)), lambda: built[0]())
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    benchmark.extra_info.update(
        n=N,
        lanes=alphas.size,
        seconds_a_lane=benchmark.stats.stats.median / alphas.size,
        evaluations=float(evaluations),
        **one.error(alphas, X),
    )


@pytest.mark.benchmark(group="lanes")
@pytest.mark.parametrize("lanes", LANES)
def test_lanes(benchmark, measure_once: Callable, lanes: int):
    measured_sweep(benchmark, measure_once, make_case(N, lanes), LOOSE)


@pytest.mark.benchmark(group="n")
@pytest.mark.parametrize("n", NS)
def test_n(benchmark, measure_once: Callable, n: int):
    measured_sweep(benchmark, measure_once, make_case(n, SCALED), LOOSE)


@pytest.mark.benchmark(group="devices")
@pytest.mark.parametrize("devices", DEVICES)
def test_devices(benchmark, measure_once: Callable, devices: int):
    """Run with `XLA_FLAGS=--xla_force_host_platform_device_count=4` and `BENCH_DEVICES=1,2,4`."""
    if "devices" not in inspect.signature(mj.sweep).parameters:
        pytest.skip("this sweep takes no devices")
    if devices > jax.device_count():
        pytest.skip(f"{jax.device_count()} devices, not {devices}")
    measured_sweep(benchmark, measure_once, make_case(N, MAIN), LOOSE | {"devices": jax.devices()[:devices]})
    benchmark.extra_info.update(devices=devices)
