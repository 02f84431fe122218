"""How every benchmark is run: in float64, compiled apart, and recorded with the machine, the versions and the commit.

Benchmarks are skipped unless asked for with `--benchmark-only`; the command is in README.md.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import pytest

pytest.importorskip("pytest_benchmark")
sys.path.insert(0, str(Path(__file__).parent))  # the benchmarks share modules with each other, and are no package

jax.config.update("jax_enable_x64", True)

BACKEND_COMPILE = "/jax/core/compile/backend_compile_duration"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("benchmark_only"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a benchmark: pass -n0 --benchmark-only"))


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a time depends on, in place of what says whose machine it was."""
    device = jax.devices()[0]
    machine_info.clear()
    machine_info.update(
        processor=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        device=f"{device.platform} ({device.device_kind})",
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "diffrax")},
    )


@pytest.hookimpl
def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    kept = {key: commit_info.get(key) for key in ("id", "dirty")}
    commit_info.clear()
    commit_info.update(kept)


@pytest.hookimpl
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Statistics stay, the single rounds go."""
    for record in output_json["benchmarks"]:
        record["stats"].pop("data", None)


def processor() -> str:
    """The processor's model, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


@pytest.fixture
def compiled(benchmark: Any) -> Callable[..., Callable]:
    """`compiled(fn, *args)`: fn compiled for these arguments; the seconds go to `extra_info["compile_seconds"]`."""

    def build(fn: Callable, *args: Any) -> Callable:
        start = time.perf_counter()
        executable = jax.jit(fn).lower(*args).compile()
        benchmark.extra_info["compile_seconds"] = time.perf_counter() - start
        return executable

    return build


@pytest.fixture
def measure(benchmark: Any, compiled: Callable[..., Callable]) -> Callable[..., Any]:
    """`measure(fn, *args)`: compile, time the runs until their results are there, and return the result."""

    def run(fn: Callable, *args: Any) -> Any:
        executable = compiled(fn, *args)
        return benchmark(lambda: jax.block_until_ready(executable(*args)))

    return run


@pytest.fixture
def measure_once(benchmark: Any) -> Callable[..., Any]:
    """`measure_once(warm, run)`: the seconds of `warm()` count as compilation; one timed `run()`, and its result.

    For runs of many seconds; `rounds` of them where one takes a fraction of a second. What is compiled in the timed run
    all the same is recorded too, as `recompiled_seconds`.
    """
    recompiled: list[float] = []

    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if event == BACKEND_COMPILE:
            recompiled.append(duration_secs)

    def measured(warm: Callable[[], Any], run: Callable[[], Any], rounds: int = 1) -> Any:
        start = time.perf_counter()
        jax.block_until_ready(warm())
        benchmark.extra_info["compile_seconds"] = time.perf_counter() - start
        jax.monitoring.register_event_duration_secs_listener(hear)
        value = benchmark.pedantic(run, rounds=rounds, iterations=1)
        jax.monitoring.unregister_event_duration_listener(hear)
        if recompiled:
            benchmark.extra_info["recompiled_seconds"] = sum(recompiled)
        return value

    return measured
