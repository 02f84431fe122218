"""Many lanes at once."""

from .engine import open_sweep as open_sweep
from .flows import sweep as sweep
from .lanes import Zip as Zip
from .maps import map_grid as map_grid
from .progress import SweepReport as SweepReport
