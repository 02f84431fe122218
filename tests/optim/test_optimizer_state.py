"""The state is a plain pytree: saved and continued bit for bit, mapped over lanes, sharded, injected."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import Array
from training import train, trainer

import mirrorjax as mj
from mirrorjax import optim

START = {"layer": {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)}, "bias": jnp.linspace(0.1, 0.2, 2)}


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(params: dict) -> Array:
    return jnp.sum(jnp.cos(3 * params["layer"]["kernel"])) + jnp.sum(params["bias"] ** 4)


OPTIMIZERS = {
    "adamw": lambda: optim.switch_off_adamw(1e-2, weight_decay=0.1, off_at=5, mask="*/kernel"),
    "sgd": lambda: optim.switch_off_sgd(1e-2, 0.9, weight_decay=0.1, off_at=5),
    "flow_time": lambda: optim.coupled_weight_decay(optax.sgd(1e-2), mj.SwitchOff(0.1, 0.05), step_size=1e-2),
    "ham": lambda: optim.hyperbolic_step(optax.adam(1e-2), 1.0, mj.CosineDecay(0.1, 0.05), step_size=1e-2),
    "pilot": lambda: optim.pilot(optax.adam(1e-2), balance=1.0, width=0.1, t_off=0.05, step_size=1e-2, mask="layer"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside orbax
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_and_restored_training_continues_bit_for_bit(name, tmp_path):
    half, optimizer = trainer(OPTIMIZERS[name](), loss, 4), OPTIMIZERS[name]()
    halfway = half(START, optimizer.init(START))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", halfway)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, halfway))
    expected = train(optimizer, loss, START, 8)
    for params, state in (halfway, restored):
        jax.tree.map(np.testing.assert_array_equal, half(params, state), expected)


def test_strengths_and_switch_off_times_are_lanes_of_one_compiled_loop():
    traces = []

    def lane(strength: Array, off_at: Array) -> dict:
        traces.append(strength)
        return train(optim.switch_off_adamw(1e-2, weight_decay=strength, off_at=off_at), loss, START, 6)[0]

    mapped = jax.jit(jax.vmap(lane))
    strengths, times = jnp.array([0.0, 0.1, 0.3]), jnp.array([3.0, 2.0, jnp.inf])
    lanes = mapped(strengths, times)
    mapped(2 * strengths, times)
    assert len(traces) == 1
    for i, (strength, off_at) in enumerate(zip(strengths, times, strict=True)):
        alone = train(optim.switch_off_adamw(1e-2, weight_decay=strength, off_at=off_at), loss, START, 6)[0]
        # Another program, whose sums may be fused otherwise: roundings of 6 steps.
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-13, atol=1e-15), lanes, alone)


def test_schedules_are_lanes_too():
    def lane(alpha: Array, t_off: Array) -> dict:
        decay = optim.coupled_weight_decay(optax.sgd(1e-2), mj.SwitchOff(alpha, t_off), step_size=1e-2)
        return train(decay, loss, START, 6)[0]

    lanes = jax.vmap(lane)(jnp.array([0.1, 0.3]), jnp.array([0.02, 0.04]))
    alone = lane(jnp.asarray(0.3), jnp.asarray(0.04))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-13, atol=1e-15), lanes, alone)


def test_the_derivative_with_respect_to_the_strength_is_that_of_differences():
    def final(strength: Array) -> Array:
        return loss(train(optim.switch_off_sgd(0.05, weight_decay=strength, off_at=4), loss, START, 8)[0])

    slope = jax.jacfwd(final)(jnp.asarray(0.2))
    h = 1e-5  # central differences: error h^2 and rounding 1e-16 / h, both below 1e-9
    np.testing.assert_allclose(slope, (final(jnp.asarray(0.2 + h)) - final(jnp.asarray(0.2 - h))) / (2 * h), rtol=1e-7)


def test_injected_hyperparameters_can_be_changed_in_the_state():
    optimizer = optax.inject_hyperparams(optim.switch_off_adamw)(1e-2, weight_decay=0.1, off_at=100)
    params, state = train(optimizer, loss, START, 3)
    state.hyperparams["off_at"] = jnp.asarray(0.0)
    switched, _ = train(optimizer, loss, params, 3, state)
    expected = train(optim.switch_off_adamw(1e-2, weight_decay=0.1, off_at=3), loss, START, 6)[0]
    jax.tree.map(np.testing.assert_array_equal, switched, expected)


SHARDED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from mirrorjax import optim
from training import train

assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("model",))
start = {{"w": jnp.linspace(-1.0, 1.0, 8), "b": jnp.ones(2)}}
loss = lambda p: jnp.sum(jnp.cos(3 * p["w"])) + jnp.sum(p["b"] ** 4)
optimizer = optim.switch_off_adamw(1e-2, weight_decay=0.1, off_at=2, mask="w")
one, _ = train(optimizer, loss, start, 4)
split = start | {{"w": jax.device_put(start["w"], NamedSharding(mesh, PartitionSpec("model")))}}
two, state = train(optimizer, loss, split, 4)
assert two["w"].sharding.spec == PartitionSpec("model"), two["w"].sharding
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, two)
"""


@pytest.mark.slow
def test_sharded_parameters_stay_sharded():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", SHARDED]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(mj.__file__).parent.parent)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
