"""Attributes of datasets in files of netCDF."""

import json

import numpy as np
import pytest
import xarray as xr
from small_runs import trained

from mirrorjax.runs.dataset import as_attribute

# Attributes.
SETTINGS = {
    "true": True,
    "none": None,
    "number": np.float32(0.5),
    "count": np.int64(2**40),
    "flag": np.bool_(False),
    "array": np.arange(3),
    "scalar": np.asarray(3),
    "nested": {"a": [1, None, {"b": True}], "c": np.float64(1.5)},
    "infinite": float("inf"),
    "word": "word",
    "empty": "",
    "complex": 1j,
    "function": len,
}


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy", "netcdf4"])
def test_any_setting_is_written_and_read_back(engine, tmp_path):
    if engine == "netcdf4":
        pytest.importorskip("netCDF4")
    dataset = xr.Dataset(attrs={name: as_attribute(value) for name, value in SETTINGS.items()})
    dataset.to_netcdf(tmp_path / "file.nc", engine=engine)
    with xr.open_dataset(tmp_path / "file.nc", engine=engine) as read:
        for name, value in dataset.attrs.items():
            assert read.attrs[name] == value, name
    assert json.loads(dataset.attrs["nested"]) == {"a": [1, None, {"b": True}], "c": 1.5}
    assert dataset.attrs["true"] == "true"
    assert dataset.attrs["number"] == 0.5
    assert dataset.attrs["scalar"] == 3


def test_the_dataset_of_a_training_is_written(tmp_path):
    dataset = trained(store=tmp_path / "run")
    dataset.to_netcdf(tmp_path / "file.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "file.nc", engine="h5netcdf") as read:
        assert read.attrs == dataset.attrs
        assert read.attrs["keep"] == "false"
