"""The documentation site: `python -m sphinx -W docs docs/_build/html`.

Pages are MyST markdown. Cells of code run while the site is built, so that no page shows a number that was typed in;
the notebooks are shown with the outputs that are committed. Pages need no network when they are read: MathJax is in
them.
"""

import os
import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes, utils
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
# Sphinx reads only what lies below this folder.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns("*.py", ".*", "*.toml"))
for copied in (HERE / "notebooks").glob("*.[mi]*"):  # README.md and *.ipynb: the pages lie elsewhere for them here
    copied.write_text(copied.read_text(encoding="utf-8").replace("](../docs/", "](../"), encoding="utf-8")

project = "mirrorjax"
author = "The mirrorjax authors"
copyright = f"2026, {author}"
version = release = version_of("mirrorjax")
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "auto"
nb_execution_excludepatterns = ["notebooks/*"]
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_render_markdown_format = "myst"

autodoc_typehints = "none"  # docstrings name shapes and meanings, and signatures stay on one line
autodoc_member_order = "bysource"
autosummary_generate = True

# Links into the documentation of others need their inventories from the network, and a build must work without one.
# Shipped inventories would be 1 MB that grows stale, so links are made where MIRRORJAX_DOCS_LINKS is set, to publish.
# Without it a role such as {py:obj}`optax.MultiSteps` shows plain code, and nothing warns.
OTHERS = {
    "jax": "https://docs.jax.dev/en/latest/",
    "diffrax": "https://docs.kidger.site/diffrax/",
    "equinox": "https://docs.kidger.site/equinox/",
    "optax": "https://optax.readthedocs.io/en/latest/",
    "flax": "https://flax.readthedocs.io/en/latest/",
    "xarray": "https://docs.xarray.dev/en/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
}
intersphinx_mapping = {name: (url, None) for name, url in OTHERS.items() if "MIRRORJAX_DOCS_LINKS" in os.environ}

html_theme = "furo"
html_title = "mirrorjax"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
copybutton_exclude = ".linenos, .gp, .go"


class Markdown(SphinxDirective):
    """Parses its content as MyST markdown, in which the docstrings are written; autodoc knows reStructuredText only."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        document = utils.new_document(self.state.document.current_source, self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


def to_markdown(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Puts a docstring, a list of lines that is changed in place, into the directive above.

    The first paragraph becomes reStructuredText instead, because the tables of `autosummary` show it and know no
    directive: spans of code get a second backtick, and what else has a meaning there is escaped.
    """
    first, *rest = "\n".join(lines).split("\n\n", maxsplit=1)
    spans = first.split("`")
    spans[::2] = [re.sub(r"([*|_])", r"\\\1", text) for text in spans[::2]]
    body = "\n\n".join(rest).splitlines()
    lines[:] = ["``".join(spans), "", *([".. markdown::", "", *(f"   {line}" for line in body), ""] if body else [])]


def setup(app: Sphinx) -> None:
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", to_markdown)
