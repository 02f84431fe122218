"""The command line: `mirrorjax reproduce`, `report`, `list`, `explain`, `sweep`, `status`, `resume`.

Nothing large is imported before `main` runs, so that a signal is heard also while the packages are imported.
"""


def main() -> None:
    """Entry point of the `mirrorjax` command; `ending` says how it ends."""
    from .ending import ending

    with ending():
        from .commands import app

        app(standalone_mode=True)
