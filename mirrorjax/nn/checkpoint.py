"""Training in progress, kept in a folder and found again bit by bit; the door to orbax."""

import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree


class Checkpoint:
    """The latest state of a run in a folder, kept at most so often. A context manager.

    orbax writes under a temporary name, so that a state in the folder is whole; the one before goes when it is there.

    **Arguments:** `folder`; `every`: seconds between two.
    """

    def __init__(self, folder: Path, every: float):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder, self._every, self._last = folder, every, time.monotonic()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def find(self, template: PyTree) -> PyTree | None:
        """The state that was kept, structured and placed like the template; None if there is none.

        **Raises:** `ValueError` for one that cannot be read, or is of another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        leaves, treedef = jax.tree.flatten(template)
        try:
            kept = self._manager.restore(step, args=ocp.args.StandardRestore(_numbered(leaves)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint of step {step} in {self._folder} cannot be read ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); remove that folder to start again"
            ) from error
        return jax.tree.unflatten(treedef, [kept[name] for name in _numbered(leaves)])

    def offer(self, step: int, state: PyTree, now: bool = False) -> None:
        """Keep the state of this step if it is time to, or now."""
        if step == self._manager.latest_step() or (not now and time.monotonic() - self._last < self._every):
            return
        self._manager.save(step, args=ocp.args.StandardSave(_numbered(jax.tree.leaves(state))))
        self._last = time.monotonic()


def _numbered(leaves: list) -> dict:
    """Leaves by number: orbax knows dictionaries, and not every tree that optimizers make."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
