"""The committed notebooks are what their sources say, were run from top to bottom, and show no failure."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
MOST_BYTES = 3_000_000  # of the folder: it is read on a web page
# What a machine leaves in outputs: the first folder of an absolute path.
PLACES = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|mnt|opt|usr|var|srv)/")


def cells_of_source(path: Path) -> list[tuple[str, str]]:
    """`(type, text)` of each cell of a percent script: markdown is commented out, and so are magics."""
    cells = []
    for block in re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)[1:]:
        head, _, text = block.partition("\n")
        if head.strip() == "[markdown]":
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        cells.append(("markdown" if head.strip() else "code", re.sub(r"^# %", "%", text, flags=re.MULTILINE).strip()))
    return cells


def notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".ipynb").read_text())


def test_every_notebook_has_both_files():
    assert len(SOURCES) == 12
    assert [path.stem for path in SOURCES] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_cells_agree(path: Path):
    """A source that was edited and not executed again fails here."""
    cells = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook(path)["cells"]]
    assert cells == cells_of_source(path)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_executed_in_order_without_errors_or_warnings(path: Path):
    code = [cell for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures >= "".join("".join(cell["source"]) for cell in code).count("plt.show()") > 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_trace_of_the_machine(path: Path):
    made = notebook(path)
    assert made["metadata"]["kernelspec"]["name"] == "python3"
    shown = [output for cell in made["cells"] for output in cell.get("outputs", [])]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in shown]
    assert not PLACES.search(json.dumps(texts))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_opens_with_a_question_and_ends_with_an_exercise(path: Path):
    cells = cells_of_source(path)
    assert re.match(r"# .*\?\n", cells[0][1])
    assert "## Exercise" in cells[-1][1]
    assert "*Hint:*" in cells[-1][1]


def test_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < MOST_BYTES
