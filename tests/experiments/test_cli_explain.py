"""What the command line says of R_a and of checkpoints: `explain`, `spectra` and `bias`."""

import numpy as np
import pandas as pd
import pytest

import mirrorjax as mj
from mirrorjax.nn.tensor_files import write_tensors


def test_explain_prints_the_effects_and_draws(mirrorjax, tmp_path):
    done = mirrorjax("explain", "hadamard", "-i", "1", "-i", "0.5", "--times", "3", "--out", "R.png")
    assert done.returncode == 0, done.stderr
    assert "-12.5" in done.stdout
    # argmin R_a = e^{4a} m0 w0 with c = 1: 0.5 at the start.
    assert "0.5" in done.stdout
    assert (tmp_path / "R.png").read_bytes().startswith(b"\x89PNG")


def test_explain_takes_a_family_of_the_user_and_writes_pages_and_drawings(mirrorjax, tmp_path):
    (tmp_path / "mine.py").write_text("import mirrorjax as mj\nfamily = mj.Hadamard()\n")
    outs = [argument for name in ("R.html", "R.svg", "R.pdf") for argument in ("--out", name)]
    done = mirrorjax("explain", "mine.py:family", "-i", "1", "-i", "0.5", "--times", "3", *outs)
    assert done.returncode == 0, done.stderr
    assert "mine.py:family, compatible regularizer" in done.stdout
    assert "Plotly.newPlot" in (tmp_path / "R.html").read_text(encoding="utf-8")
    assert (tmp_path / "R.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "R.svg").read_text(encoding="utf-8")


@pytest.fixture
def attention(tmp_path) -> list[str]:
    """Two checkpoints of one layer with two heads, in the layout of Llama."""
    kernels = np.random.default_rng(0).normal(size=(2, 2, 4, 4))
    for step, (query, key) in enumerate(kernels):
        (tmp_path / f"step-{step}").mkdir()
        at = "model.layers.0.self_attn"
        write_tensors(
            tmp_path / f"step-{step}" / "m.safetensors", {f"{at}.q_proj.weight": query, f"{at}.k_proj.weight": key}
        )
    return [f"step-{step}/m.safetensors" for step in range(2)]


def test_spectra_of_one_checkpoint_and_of_several(mirrorjax, attention, tmp_path):
    done = mirrorjax("spectra", attention[0], "--heads", "2", "--out", "one.png", "--out", "one.csv")
    assert done.returncode == 0, done.stderr
    one = pd.read_csv(tmp_path / "one.csv")
    assert list(one["head"]) == [0, 1]
    assert done.stdout.count("self_attn") == 2
    assert f"{one.effective_rank[1]:.4g}" in done.stdout
    several = mirrorjax("spectra", *attention, "--heads", "2", "--out", "all.svg", "--out", "all.csv")
    assert several.returncode == 0, several.stderr
    both = pd.read_csv(tmp_path / "all.csv")
    assert list(both["checkpoint"]) == ["step-0", "step-0", "step-1", "step-1"]
    assert f"{one.ratio.mean():.4g}" in several.stdout  # a row a checkpoint, with the mean over heads
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert "step-1" in (tmp_path / "all.svg").read_text(encoding="utf-8")


def test_bias_over_checkpoints(mirrorjax, tmp_path):
    start = {"k": (np.ones((3, 2)), np.full((3, 2), 0.5))}
    for step, factor in enumerate((1.0, 0.9, 0.5)):
        mj.nn.save_weights(tmp_path / f"{step}.npz", {"k": tuple(factor * one for one in start["k"])})
    done = mirrorjax("bias", "0.npz", "1.npz", "2.npz", "--out", "a.csv", "--out", "a.png")
    assert done.returncode == 0, done.stderr
    # u v shrinks by the square of the factor: a = log(factor^2) / 4.
    np.testing.assert_allclose(pd.read_csv(tmp_path / "a.csv")["median"], np.log([0.9, 0.5]) / 2, rtol=1e-12)
    assert f"{np.log(0.5) / 2:.4g}" in done.stdout


def test_explain_takes_weight_decay_for_a_family_without_a_regularizer_of_its_own(mirrorjax):
    """x = w under weight decay: R_a is quadratic, so that the exponent is 2, with the minimum at e^(2a) w0."""
    done = mirrorjax("explain", "linear", "-i", "1", "--alpha", "0.2", "--t-off", "5", "--times", "3")
    assert done.returncode == 0, done.stderr
    assert "linear, weight decay" in done.stdout
    assert f"{np.exp(-2):.4g}" in done.stdout
    assert done.stdout.count("2.0000") == 3


def test_explain_shows_the_spectra_of_matrices_and_the_first_of_several_coordinates(mirrorjax, tmp_path):
    given = "-i", "0.5", "--alpha", "0.1", "--t-off", "5", "--times", "3"
    gram, product = mirrorjax("explain", "gram", *given), mirrorjax("explain", "matrix-product", "-i", "1", *given)
    # argmin R_a = e^(4a) x_0 at a = -0.5, with x_0 = u^2 and m w.
    for done, words, start in ((gram, "one eigenvalue", 0.25), (product, "one singular value", 0.5)):
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert f"{np.exp(-2) * start:.4g}" in done.stdout
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp, mirrorjax as mj\nforms = mj.Quadratic(jnp.array([[[2., 0.], [0., 0.]], [[0., 0.], "
        "[0., 2.]]]))\nblocks = mj.Blocks(mj.Hadamard(), mj.Square())\n"
    )
    done = mirrorjax("explain", "mine.py:forms", "-i", "2", *given)
    assert done.returncode == 0, done.stderr
    assert "the first of 2 coordinates" in done.stdout
    assert f"{np.exp(-2) * 0.25:.4g} .. {np.exp(-2) * 4:.4g}" in done.stdout  # x = w^2, twice
    refused = mirrorjax("explain", "mine.py:blocks", *given)
    assert refused.returncode == 2
    assert "explain the family of one block" in " ".join(refused.stderr.split())


def test_explain_shows_the_clock_and_the_least_time_of_a_leak(mirrorjax):
    decay = "--weight-decay", "--alpha", "0.3", "--t-off", "50", "--times", "2", "--t1", "50"
    done = mirrorjax("explain", "power-difference-2", "-i", "1", "-i", "1", *decay)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    # x = u^4 - v^4: lambda = -2 (p - 2), clock e^(4a) at a = -15. From (1, 1) nu ends at 1/8, where x is infinite.
    assert "lambda = -4" in words
    assert f"{np.exp(-60):.6g}" in words
    assert f"{np.exp(60) / 8:.6g}" in words
    assert "at least so long" in words


def test_explain_says_when_the_range_is_exhausted(mirrorjax):
    done = mirrorjax("explain", "log-difference", "-i", "1", "-i", "1", "--alpha", "0.01", "--t-off", "100")
    assert done.returncode == 0
    assert "range_exhausted" in done.stdout
    assert "Weaken the decay" in " ".join(done.stdout.split())


def test_explain_beyond_all_numbers_says_which_rows_failed(mirrorjax):
    """At alpha = 1e300 the first row, before anything is spent, is right; the others have a status and no number."""
    done = mirrorjax("explain", "hadamard", "-i", "1", "-i", "0", "--alpha", "1e300", "--times", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("successful") == 1
    assert done.stdout.count("nan") == 4
