"""Results that stay in the files of a run: their entries are read, from files that are mapped, when they are used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from xarray.backends import BackendArray
from xarray.core.indexing import ExplicitIndexer, IndexingSupport, LazilyIndexedArray, explicit_indexing_adapter

from .archive import Shape, map_array


class Stored:
    """One result of all lanes, in the archives of groups.

    **Arguments:** `name`, `like`: of the result, for one lane; `files`: number of a group -> its archive, for those
    that are whole; `groups`: the lanes of the groups of the run, in the order of their archives; `missing`: the value
    of lanes that are in no archive.
    """

    def __init__(
        self, name: str, like: Shape, files: Mapping[int, Path], groups: list[Int[np.ndarray, " _"]], missing: Any
    ):
        self.name, self.like, self.files, self.groups, self.missing = name, like, files, groups, missing

    def labelled(self, shape: tuple[int, ...]) -> LazilyIndexedArray:
        """Returns the result as an array over the dimensions of a grid, for a dataset."""
        return LazilyIndexedArray(_Gathered(self, shape))

    def take(self, lanes: Int[np.ndarray, "..."], rest: tuple[Any, ...]) -> np.ndarray:
        """Returns the entries `rest` of the results of these lanes, all different, as an array (*lanes, ...)."""
        wanted, order = lanes.ravel(), np.argsort(lanes, axis=None)
        shape = np.broadcast_to(False, self.like.shape)[rest].shape
        found = np.full((wanted.size, *shape), self.missing, self.like.dtype)
        for number, path in self.files.items():
            group = self.groups[number]
            rows = np.flatnonzero(np.isin(group, wanted, assume_unique=True))
            if rows.size:
                mapped = map_array(path, self.name, Shape(self.like.dtype, (group.size, *self.like.shape)))
                found[order[np.searchsorted(wanted, group[rows], sorter=order)]] = mapped[(rows, *rest)]
        return found.reshape((*lanes.shape, *shape))


class _Gathered(BackendArray):
    """A stored result over the dimensions of a grid, as xarray asks for its entries."""

    def __init__(self, stored: Stored, grid: tuple[int, ...]):
        self._stored, self._grid = stored, grid
        self.shape, self.dtype = (*grid, *stored.like.shape), stored.like.dtype

    def __getitem__(self, key: ExplicitIndexer) -> np.ndarray:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.BASIC, self._get)

    def _get(self, key: tuple[Any, ...]) -> np.ndarray:
        lanes = np.arange(np.prod(self._grid, dtype=int)).reshape(self._grid)[key[: len(self._grid)]]
        return self._stored.take(np.asarray(lanes), key[len(self._grid) :])
