"""Runs any function over a grid of lanes: grids, groups, stores, datasets, devices."""

from .engine import open_sweep as open_sweep
from .grid import Zip as Zip
from .maps import map_grid as map_grid
from .progress import SweepReport as SweepReport
