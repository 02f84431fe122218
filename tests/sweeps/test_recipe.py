"""A sweep in a TOML file: what it says is what `sweep` gets; what is wrong in it is named."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import mirrorjax as mj
from mirrorjax.sweeps.recipe import read_recipe, single_precision

GOOD = {
    "lane": '"lanes.py:lane"',
    "metrics": '"sweep_problems:norm"',
    "t1": "8.0",
    "saveat": "{ linspace = [0.0, 8.0, 3] }",
    "rtol": "1e-5",
    "flow": '"mirror"',
    "grid.alpha": "{ geomspace = [0.05, 5.0, 3] }",
    "grid.t_off": "[1.0, 4.0]",
}


def write(folder: Path, **changes: str | None) -> Path:
    (folder / "lanes.py").write_text("from sweep_problems import lane\n")
    entries = {key: value for key, value in (GOOD | changes).items() if value is not None}
    file = folder / "sweep.toml"
    file.write_text("\n".join(f"{key} = {value}" for key, value in entries.items()))
    return file


def test_is_the_sweep_it_describes(tmp_path):
    from sweep_problems import ALPHAS, T_OFFS, lane, norm

    file = write(tmp_path)
    assert not single_precision(file)
    dataset = read_recipe(file).sweep(tmp_path / "run", resume=False)
    arguments = {"t1": 8.0, "saveat": [0.0, 4.0, 8.0], "rtol": 1e-5, "flow": mj.MirrorFlow(), "metrics": norm}
    direct = mj.sweep(lane, {"alpha": np.geomspace(0.05, 5.0, 3), "t_off": T_OFFS}, **arguments)
    np.testing.assert_allclose(direct.alpha, ALPHAS, rtol=1e-15)
    xr.testing.assert_equal(dataset, direct)
    xr.testing.assert_identical(read_recipe(file).sweep(tmp_path / "run", resume=True), dataset)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t1": None}, "the entry 't1' is missing"),
        ({"tl": "8.0"}, r"unknown entries \['tl'\]; there are: lane"),
        ({"lane": '"lanes.py"'}, 'lane must be "file.py:function"'),
        ({"lane": '"other.py:lane"'}, "cannot be loaded: .*other.py"),
        ({"lane": '"lanes.py:line"'}, "cannot be loaded: .*line"),
        ({"metrics": '"no_such_module:norm"'}, "cannot be loaded: .*no_such_module"),
        ({"saveat": "{ logspace = [0, 1, 2] }"}, "saveat must be a list of numbers or one of linspace, geomspace"),
        ({"grid.alpha": "{ geomspace = [0.0, 1.0, 3] }"}, "grid.alpha = .*: Geometric sequence cannot include zero"),
        ({"grid.alpha": None, "grid.t_off": None}, r"give either \[grid\]"),
        ({"zip.alpha": "[1.0]"}, r"give either \[grid\]"),
        ({"flow": '"dual"'}, "flow must be one of primal, mirror, riemannian, got 'dual'"),
        ({"t1": "= 8"}, "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        read_recipe(write(tmp_path, **changes))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none.toml cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")
