"""The API reference lists every public name, and nothing else; the examples of the docstrings run."""

import re
from functools import reduce
from inspect import getdoc, ismodule
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mirrorjax as mj
from mirrorjax.nn.tensor_files import write_tensors

API = Path(__file__).parent.parent / "docs" / "api"


def listed() -> set[str]:
    text = "\n".join(page.read_text() for page in API.glob("*.md"))
    return set(re.findall(r"^   (mirrorjax\.\S+)$", text, flags=re.MULTILINE))


def public() -> set[str]:
    """The names of `mirrorjax` that are no rooms, and the names in the rooms `optim` and `nn`."""
    rooms = {"dynamics", "geometry", "nn", "optim", "problem", "results", "runs", "sweeps"}
    names = {f"mirrorjax.{name}" for name in dir(mj) if name not in rooms}
    for room in (mj.optim, mj.nn):
        own = {name for name, value in vars(room).items() if not (name.startswith("_") or ismodule(value))}
        names |= {f"{room.__name__}.{name}" for name in own - {"TYPE_CHECKING", "LATE", "LATE_FUNCTIONS", "Any"}}
    return names


def test_every_public_name_has_an_entry():
    missing = public() - listed()
    assert not missing


def entry(name: str) -> Any:
    return reduce(getattr, name.split(".")[1:], mj)


def test_every_entry_exists():
    for name in listed():
        entry(name)


def test_no_summary_ends_within_code():
    """A table of the reference shows a docstring up to the first full stop, and code may hold one: `a + .. + b`."""
    for name in listed():
        first = (entry(name).__doc__ or "").split("\n\n")[0]
        assert re.split(r"\.\s", first)[0].count("`") % 2 == 0, f"{name}: {first}"


def example(name: str) -> str:
    """The code under `Example:` in the docstring of a public object, "" if there is none."""
    found = re.search(r"^Example::?\n\n((?:    .*\n|\n)+)", (getdoc(entry(name)) or "") + "\n", flags=re.MULTILINE)
    return re.sub("^    ", "", found[1], flags=re.MULTILINE) if found else ""


# An example that goes on where that of another object ends.
AFTER = {"mirrorjax.optim.accumulated_bias": "mirrorjax.optim.track_bias"}


@pytest.fixture
def given(tmp_path, monkeypatch) -> dict[str, Any]:
    """The names that examples take for granted: the imports, a model, and a training of it; and the files they read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    kernel = np.random.default_rng(0).normal(size=(12, 36)).astype(np.float32)
    write_tensors("checkpoint-500/model.safetensors", {"transformer.h.0.attn.c_attn.weight": kernel})
    params = {"dense": {"kernel": jnp.asarray(kernel[:3, :2])}}
    _, weights = mj.nn.reparameterize(params, {"*/kernel": mj.Hadamard()})

    def train(weights: Any) -> Any:
        return jax.tree.map(lambda leaf: 0.9 * leaf, weights)

    mj.nn.save_weights("start.safetensors", weights)
    mj.nn.save_weights("end.safetensors", train(weights))
    m, w = jnp.ones(3), jnp.full(3, 0.5)
    pilot = mj.optim.pilot(optax.sgd(0.1), balance=1.0, width=0.1, t_off=5.0, step_size=0.1, mask="*/kernel")
    names = {"on_training_data": lambda params: jnp.float32(0.5), "state": pilot.init(weights), "nnx": nnx}
    names |= dict.fromkeys(("W_K", "W_Q"), jnp.ones((768, 768), jnp.float32))
    names |= {"params": params, "train": train, "m": m, "w": w, "gradients": (0.1 * m, 0.1 * w)}
    return names | {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "mj": mj, "nn": mj.nn, "optim": mj.optim}


@pytest.mark.parametrize("name", [name for name in sorted(listed()) if example(name)])
def test_the_example_of_a_docstring_runs(name, given):
    for part in (AFTER.get(name), name):
        if part is not None:
            exec(compile(example(part), f"example of {part}", "exec"), given)


def test_every_exercise_has_a_solution():
    """Its code runs when the site is built."""
    solved = re.findall(r"^## (\d\d) ", (API.parent / "solutions.md").read_text(), flags=re.MULTILINE)
    assert solved == [path.stem[:2] for path in sorted((API.parent.parent / "notebooks").glob("*.py"))]


@pytest.mark.slow
def test_the_page_of_examples_uses_every_public_name_and_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (API / "examples.md").read_text(), flags=re.DOTALL))
    used = {f"mirrorjax.{name}" for name in re.findall(r"\bmj\.([\w.]+)", code)}
    missing = {name for name in listed() if not any(each == name or each.startswith(f"{name}.") for each in used)}
    assert not missing
    exec(compile(code, "examples.md", "exec"), {})
