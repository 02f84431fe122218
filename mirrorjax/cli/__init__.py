"""The command line: the commands `mirrorjax --help` lists, in `commands`, and how a command ends, in `ending`.

Nothing large is imported before `main` runs, so that a signal is heard also while the packages are imported.
"""


def main() -> None:
    """Entry point of the `mirrorjax` command; `ending` says how it ends."""
    from .ending import ending

    with ending():
        from .commands import app

        app(standalone_mode=True)
