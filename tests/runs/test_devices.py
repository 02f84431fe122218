"""Lanes over four forced devices and over two processes: the numbers of one, and no collectives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sweep_problems import ALPHAS, T_OFFS, lane, norm

import mirrorjax as mj

HERE = Path(__file__).parent.parent
PREAMBLE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import jax
jax.config.update("jax_enable_x64", True)
"""
SWEEP = """
import numpy as np
import mirrorjax as mj
from sweep_problems import ALPHAS, T_OFFS, lane, norm
grid = {"alpha": ALPHAS, "t_off": T_OFFS}
"""
# Final points alone, whose lanes are tried for their arrival: XLA's factors of several matrices would wait for ever.
BESIDES = """
late = mj.sweep(lane, {"alpha": np.linspace(0.05, 0.5, 64), "t_off": [1.0]}, t1=200.0)
assert set(late.status.values.ravel()) == {"successful"} and np.all(late.loss.values < 1e-8)
try:
    mj.sweep(lane, grid, t1=8.0, flow=mj.DualFlow())
except ValueError as error:
    assert "Kvaerno5 is implicit" in str(error) and "devices=" in str(error)
else:
    raise AssertionError("an implicit solver on four devices")
try:
    mj.map_grid(lambda s: {"factor": jax.numpy.linalg.cholesky(s * jax.numpy.eye(3))}, {"s": np.arange(1.0, 9.0)})
except ValueError as error:
    assert "use cholesky, for which 4 devices" in str(error) and "devices=jax.devices()[:1]" in str(error)
else:
    raise AssertionError("a factor on four devices")
"""
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)
ARGUMENTS = {"t1": 8.0, "saveat": [0.0, 8.0], "metrics": norm}


def python(script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PREAMBLE + script, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment, **pipes)


def on_cpus(number: int) -> str:
    """XLA's flags of this process, which compiles in little time, and so many devices."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={number}"


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_four_devices_agree_with_one_without_collectives(tmp_path):
    script = f"""{SWEEP}
assert jax.device_count() == 4
ds = mj.sweep(lane, grid, t1=8.0, saveat=[0.0, 8.0], metrics=norm)
ds.to_netcdf(sys.argv[1], engine="h5netcdf")
{BESIDES}"""
    written = tmp_path / "programs"
    flags = f"{on_cpus(4)} --xla_dump_to={written} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*on_devices.*"
    finish(python(script, str(tmp_path / "four.nc"), XLA_FLAGS=flags))
    texts = [file.read_text() for file in written.glob("*after_optimizations.txt")]
    assert any("num_partitions=4" in text for text in texts), "no program of the sweep was written"
    assert not [word for text in texts for word in COLLECTIVES if word in text]
    one = mj.sweep(lane, {"alpha": ALPHAS, "t_off": T_OFFS}, **ARGUMENTS)
    with xr.open_dataset(tmp_path / "four.nc", engine="h5netcdf") as four:
        for name in ("x", "loss", "norm"):
            # Other batch sizes than in this process: rounding, times a few tens of steps.
            np.testing.assert_allclose(four[name], one[name], rtol=1e-8, atol=1e-12)
        assert set(four.status.values.ravel()) == {"successful"}


@pytest.mark.slow
def test_two_processes_share_the_lanes_and_a_folder(tmp_path):
    script = f"""
address, process, store = sys.argv[1:]
jax.config.update("jax_disable_most_optimizations", True)  # as in this process
jax.distributed.initialize(address, num_processes=2, process_id=int(process))
{SWEEP}
ds = mj.sweep(lane, grid, t1=8.0, saveat=[0.0, 8.0], metrics=norm, store=store, chunk=2)
print(int((ds.status == "successful").sum()))
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    store = str(tmp_path / "run")
    both = [python(script, address, str(process), store) for process in range(2)]
    solved = [int(finish(process)) for process in both]
    assert min(solved) >= 3  # each its own half; the later one also sees what the other has written
    assert sorted(path.name for path in (tmp_path / "run").glob("process-*")) == ["process-000", "process-001"]
    merged = mj.open_sweep(store)
    one = mj.sweep(lane, {"alpha": ALPHAS, "t_off": T_OFFS}, **ARGUMENTS)
    assert set(merged.status.values.ravel()) == {"successful"}
    np.testing.assert_allclose(merged.x, one.x, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("devices", [[], ["cpu"]])
def test_devices_must_be_devices(devices):
    with pytest.raises(ValueError, match="devices must be a non-empty sequence of jax devices"):
        mj.sweep(lane, {"alpha": ALPHAS, "t_off": T_OFFS}, devices=devices, **ARGUMENTS)
