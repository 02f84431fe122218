"""The rank experiment: the numbers it saves of a product, and the claims of the quick run."""

import jax.numpy as jnp
import numpy as np
import pytest

from mirrorjax.experiments.theory.rank import TEACHER, WIDTH, attend, measured, rate_of


def test_numbers_of_balanced_and_of_unbalanced_factors():
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(np.linalg.qr(rng.normal(size=(4, 4)))[0]) for _ in range(2))
    values = jnp.array([4.0, 1.0, 1.0, 1.0])
    balanced = left * jnp.sqrt(values)[None], jnp.sqrt(values)[:, None] * right
    found = measured(0.0, balanced[0] @ balanced[1], balanced)
    np.testing.assert_allclose(found["singular"], values, rtol=1e-12)
    np.testing.assert_allclose([found["imbalance"], found["alignment"]], [0.0, 1.0], atol=1e-12)
    share = values / 7
    np.testing.assert_allclose(found["rank"], np.prod(share**-share), rtol=1e-12)
    scaled = 2 * balanced[0], balanced[1] / 2
    found = measured(0.0, scaled[0] @ scaled[1], scaled)
    np.testing.assert_allclose(found["alignment"], 2 / (4 + 1 / 4), rtol=1e-12)


def test_attention_of_no_keys_is_the_mean_of_the_values():
    rng = np.random.default_rng(0)
    S, V = (jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(3, 3))))
    mean = (S @ V).mean(axis=0)
    np.testing.assert_allclose(attend(jnp.zeros((3, 3)), S, V), np.tile(mean, (5, 1)), rtol=1e-12)


def test_the_rate_leaves_out_what_is_below_the_solver_s_error():
    times = np.linspace(0, 10, 50)
    assert rate_of(times, np.maximum(np.exp(-3 * times), 1e-7)) == pytest.approx(3.0)
    assert TEACHER.size == WIDTH


@pytest.mark.slow
def test_quick(run_quick):
    folder = run_quick("rank")
    assert [claim.statement for claim in folder.claims if not claim.holds] == []
    assert {path.stem for path in folder.path.glob("*.png")} == {"example", "attention"}
