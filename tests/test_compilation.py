"""Functions that compute the same are compiled once, and different constants are never shared; the persistent cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import mirrorjax as mj
from mirrorjax import compilation
from mirrorjax.compilation import Effort, compiled as compiled_with, is_wanted, open_cache
from mirrorjax.nn.training import train
from mirrorjax.programs import Computed, as_program, interned, is_same

COMPILED = []


def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(kwargs.get("fun_name"))


jax.monitoring.register_event_duration_secs_listener(listen)
X = jnp.array([1.0, -0.5])


@pytest.fixture
def compiled():
    """Counts the compilations since the test began or the count was last asked for."""
    COMPILED.clear()

    def count():
        names = COMPILED.copy()
        COMPILED.clear()
        return names

    return count


def scaled(constant):
    return lambda x: jnp.sum(jnp.asarray(constant) * x**2)


def test_functions_that_compute_the_same_are_one_program():
    one, other = as_program(scaled([1.0, 2.0]), X), as_program(scaled([1.0, 2.0]), X)
    assert isinstance(one, Computed)
    assert one.program is other.program
    assert as_program(lambda x: jnp.sum(2.0 * x), X).program is as_program(lambda x: jnp.sum(2.0 * x), X).program


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x * 2.0, lambda x: x * 3.0),
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: x + 1, lambda x: x - 1),
        (lambda x: (x, x + 1), lambda x: (x + 1, x)),
        (lambda x: {"a": x}, lambda x: {"b": x}),
        (lambda x: (x, 1), lambda x: (x, 2)),
        (lambda x: jax.lax.map(lambda x: x * 2, x), lambda x: jax.lax.map(lambda x: x * 3, x)),
        (lambda x: jnp.cumsum(x), lambda x: jnp.cumsum(x, dtype=jnp.float32)),
    ],
    ids=["number", "minus zero", "operation", "order", "structure", "no array", "inside a loop", "dtype"],
)
def test_functions_that_compute_something_else_are_not(one, other):
    assert as_program(one, X).program is not as_program(other, X).program


def test_an_array_that_a_function_closes_over_is_an_argument_of_its_program():
    one, other = as_program(scaled([1.0, 2.0]), X), as_program(scaled([3.0, 4.0]), X)
    if one.constants:  # JAX may keep small arrays in the program, which then differs
        assert one.program is other.program
    assert one(X) == 1.0 + 2.0 * 0.25
    assert other(X) == 3.0 + 4.0 * 0.25
    assert jax.grad(other)(X)[0] == 6.0


def ruled(slope):
    @jax.custom_jvp
    def fn(x):
        return jnp.sum(x)

    fn.defjvp(lambda primals, tangents: (fn(*primals), slope * jnp.sum(tangents[0])))
    return fn


def test_rules_of_derivatives_are_part_of_a_program():
    one, same, other = (
        as_program(functools.partial(lambda fn, x: fn(x), ruled(slope)), X) for slope in (1.0, 1.0, 2.0)
    )
    assert not isinstance(one, Computed) or one.program is same.program
    assert jax.grad(one)(X)[0] == 1.0
    assert jax.grad(other)(X)[0] == 2.0
    assert as_program(lambda x: jax.nn.relu(x), X).program is as_program(lambda x: jax.nn.relu(x), X).program


def test_rules_of_functions_that_nobody_differentiates_are_not_asked_for():
    def unasked(kind, fn, *rules):
        known = kind(fn)
        getattr(known, "defvjp" if kind is jax.custom_vjp else "defjvp")(*rules)
        return lambda x: known(x)

    def never(*_):
        raise AssertionError("asked for")

    for kind, count in ((jax.custom_jvp, 1), (jax.custom_vjp, 2)):
        one, same, other = (
            as_program(unasked(kind, fn, *[never] * count), X, differentiable=False)
            for fn in (lambda x: jnp.sum(x), lambda x: jnp.sum(x), lambda x: jnp.max(x))
        )
        assert one.program is same.program is not other.program
        assert one(X) == jnp.sum(X)
    # They are not taken for those of functions that somebody differentiates.
    assert as_program(ruled(1.0), X, differentiable=False).program is not as_program(ruled(1.0), X).program


@pytest.mark.parametrize(
    "call",
    [
        lambda fn, x: jax.pure_callback(fn, X, x, vmap_method="sequential"),
        lambda fn, x: (jax.debug.callback(fn, x), x)[1],
        lambda fn, x: (jax.debug.print("{x}", x=x), x)[1],
    ],
    ids=["pure_callback", "debug.callback", "debug.print"],
)
def test_a_function_may_define_what_it_calls_back_to(call):
    """Each trace defines it again, which does not make the function impure; random numbers do."""
    random = np.random.default_rng(0)

    def traced(factor):
        return as_program(lambda x: factor() * call(lambda x: np.asarray(x), x), X)

    pure, impure = traced(lambda: 2.0), traced(random.random)
    assert is_same(pure, traced(lambda: 2.0))
    assert not is_same(impure, traced(random.random))
    np.testing.assert_array_equal(pure(X), 2 * X)


def test_lanes_and_metrics_and_maps_may_call_back():
    seen = []

    def watched(alpha):
        jax.debug.callback(lambda alpha: seen.append(float(alpha)), alpha)
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, mj.LeastSquares(X[None], X[:1])), (X, 0 * X)

    def norm(t, x, w):
        return {"norm": jax.pure_callback(np.linalg.norm, X[0], x, vmap_method="sequential")}

    ds = mj.sweep(watched, {"alpha": [0.1, 0.2]}, t1=0.5, metrics=norm)
    np.testing.assert_allclose(ds.norm[:, -1], np.linalg.norm(ds.x, axis=-1), rtol=1e-14)
    mapped = mj.map_grid(lambda alpha: watched(alpha)[1][0], {"alpha": [0.3, 0.4]})
    np.testing.assert_array_equal(mapped.value, [X, X])
    jax.effects_barrier()
    assert set(seen) == {0.1, 0.2, 0.3, 0.4}


def test_a_program_refuses_arguments_of_another_shape():
    with pytest.raises(ValueError, match="other shapes"):
        as_program(scaled([1.0, 2.0]), X)(jnp.ones(3))


def test_optimizers_made_alike_are_one():
    assert interned(optax.sgd(0.1, momentum=0.9)) is interned(optax.sgd(0.1, momentum=0.9))
    assert interned(optax.adam(0.1)) is not interned(optax.adam(0.2))
    schedule = optax.scale_by_schedule(lambda count: 0.1 * count)
    assert interned(schedule) is schedule


# What a cell of a notebook does when it runs again.


def sweep_again(data, optimizer=None):
    def lane(alpha):
        objective = mj.CustomObjective(lambda x: jnp.sum((x - data) ** 2))
        return mj.Problem(mj.Custom(lambda w: w[0] * w[1]), mj.WeightDecay(), alpha, objective), (X, X)

    flow = None if optimizer is None else mj.Descent(optimizer, 0.25)
    dataset = mj.sweep(
        lane, {"alpha": [0.1, 0.2]}, t1=1.0, flow=flow, progress=False, metrics=lambda t, x, w: {"sum": jnp.sum(x)}
    )
    return dataset["sum"].values


def test_a_sweep_of_a_lane_that_is_defined_again_does_not_compile(compiled):
    first = sweep_again(jnp.array([1.0, 2.0]))
    assert compiled()
    np.testing.assert_array_equal(sweep_again(jnp.array([1.0, 2.0])), first)
    assert not compiled()
    changed = sweep_again(jnp.array([3.0, 2.0]))
    assert not compiled(), "an array is an argument"
    assert np.all(np.abs(changed - first) > 0.01)


def test_a_descent_by_an_optimizer_that_is_made_again_does_not_compile(compiled):
    first = sweep_again(jnp.array([1.0, 2.0]), optimizer=optax.sgd(1.0))
    compiled()
    np.testing.assert_array_equal(sweep_again(jnp.array([1.0, 2.0]), optimizer=optax.sgd(1.0)), first)
    assert not compiled()


def solve_again(data, strength=0.1):
    problem = mj.Problem(
        mj.Custom(lambda w: w**2),
        mj.CustomRegularizer(lambda w: jnp.sum(w**2)),
        mj.CustomSchedule(lambda t: strength * jnp.exp(-t)),
        mj.CustomObjective(lambda x: jnp.sum((x - data) ** 2)),
    )
    return mj.solve(problem, X, t1=1.0, metrics=lambda t, x, w: jnp.sum(x)).metrics


def test_a_solve_of_functions_that_are_defined_again_does_not_compile(compiled):
    first = solve_again(jnp.array([1.0, 2.0]))
    compiled()
    np.testing.assert_array_equal(solve_again(jnp.array([1.0, 2.0])), first)
    assert not compiled()
    changed = solve_again(jnp.array([3.0, 2.0]))
    assert not compiled()
    assert abs(changed - first) > 0.01
    assert abs(solve_again(jnp.array([1.0, 2.0]), strength=1.0) - first) > 0.01


def test_a_map_of_a_function_that_is_defined_again_does_not_compile(compiled):
    def mapped(data):
        return mj.map_grid(lambda a: a * jnp.sum(data), {"a": [1.0, 2.0]}, progress=False)["value"].values

    np.testing.assert_array_equal(mapped(X), [0.5, 1.0])
    compiled()
    np.testing.assert_array_equal(mapped(X), [0.5, 1.0])
    assert not compiled()
    np.testing.assert_array_equal(mapped(2 * X), [1.0, 2.0])


def test_a_training_that_is_defined_again_does_not_compile(compiled):
    def trained(target):
        return train(
            lambda rate, seed: (optax.sgd(rate), {"w": X}, jax.random.key(seed)),
            {"rate": [0.1, 0.2], "seed": [0]},
            loss=lambda weights, batch: jnp.mean((weights["w"] - batch) ** 2),
            batch=lambda key: target + 0.0 * jax.random.normal(key, (2,)),
            metrics=lambda weights: {"norm": jnp.sum(weights["w"] ** 2)},
            steps=2,
            every=1,
            progress=False,
        )["norm"].values

    first = trained(jnp.ones(2))
    assert compiled()
    np.testing.assert_array_equal(trained(jnp.ones(2)), first)
    assert not compiled()
    assert np.all(trained(jnp.zeros(2))[..., -1] < first[..., -1])


def test_trainings_by_other_optimizers_share_what_was_compiled_of_the_metrics(compiled):
    def trained(optimizer):
        train(
            lambda rate: (optimizer(rate), {"w": X}, jax.random.key(0)),
            {"rate": [0.1, 0.2]},
            loss=lambda weights, batch: jnp.mean((weights["w"] - batch) ** 2),
            batch=lambda key: jax.random.normal(key, (2,)),
            metrics=lambda weights: {"sine": jnp.sum(jnp.sin(weights["w"]))},
            steps=2,
            every=1,
            progress=False,
        )
        return [name for name in compiled() if "on_devices" in name]

    assert len(trained(optax.sgd)) == 3  # the starts, the steps and the metrics
    assert len(trained(lambda rate: optax.sgd(rate, 0.9))) == 2


def test_a_solve_does_not_call_back_to_python():
    """JAX keeps no program in its persistent cache that does."""
    problem = mj.Problem(mj.Linear(), mj.WeightDecay(), mj.SwitchOff(0.1, 0.5), mj.LeastSquares(jnp.eye(2), X))

    def traced(t1, ts):
        return mj.solve(problem, X, t1=t1, saveat=ts, metrics=lambda t, x, w: {"sum": jnp.sum(x)}, throw=False)

    program = str(jax.make_jaxpr(lambda *numbers: traced(*numbers).metrics)(1.0, jnp.array([0.5, 1.0])))
    assert "while" in program
    assert "callback" not in program


@pytest.mark.parametrize("effort", Effort)
def test_a_program_is_compiled_with_any_effort_outside_of_other_transformations(effort):
    double = compiled_with(lambda x: 2 * x, effort)
    np.testing.assert_array_equal(double(X), 2 * X)
    np.testing.assert_array_equal(jax.jit(lambda x: compiled_with(lambda x: 2 * x, effort, x)(x))(X), 2 * X)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="efforts are those of a CPU")
def test_an_option_that_xla_does_not_know_leaves_the_others(monkeypatch):
    """XLA's options are no part of its interface, and one of ours went with jaxlib 0.11."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setitem(
        compilation._OPTIONS, Effort.LEAST, {"no_such_option": True, "xla_backend_optimization_level": 0}
    )
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        assert compilation._options.__wrapped__(Effort.LEAST) == {
            "compiler_options": {"xla_backend_optimization_level": 0}
        }
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def restored():
    """Puts JAX's settings of the persistent cache back."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_compilation_cache_max_size",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_persistent_cache_keeps_programs_in_a_folder(tmp_path, restored):
    folder = mj.use_compilation_cache(tmp_path / "kept")
    assert folder is not None
    assert folder.parent == tmp_path / "kept"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x * 1.2345)(X)
    assert list(folder.glob("*-cache"))
    assert mj.use_compilation_cache() == folder


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path, restored):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="compiled programs are not kept"):
        assert mj.use_compilation_cache(tmp_path / "file") is None
    with pytest.raises(OSError, match="file"):
        open_cache(tmp_path / "file")


@pytest.mark.parametrize(("value", "wanted"), [("off", False), ("0", False), ("", True), ("on", True)])
def test_an_environment_variable_turns_it_off(monkeypatch, value, wanted):
    monkeypatch.setenv("MIRRORJAX_COMPILATION_CACHE", value)
    assert is_wanted() == wanted
