"""The command line: `mirrorjax reproduce`, `report`, `list`, `explain`, `sweep`, `status`, `resume`."""

from .commands import main as main
