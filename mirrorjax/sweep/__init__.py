"""Many lanes at once."""

from .engine import sweep as sweep
from .lanes import Zip as Zip
