"""The report: what it says of runs on disk, and that a real browser shows it whole."""

import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mirrorjax import plot
from mirrorjax.experiments import Experiment, RunFolder, Setting
from mirrorjax.experiments.core.report import (
    MOST_ROWS,
    REPORT,
    Heading,
    Table,
    duration,
    formulas,
    read_runs,
    render,
    write_report,
)
from mirrorjax.experiments.core.reproduce import reproduce, reproduce_all

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SETTING = Setting("quick", 3, 64)
COLUMNS = {"name": "name", "small": "a number", "missing": "not there"}
SPITEFUL = "<script>alert(1)</script> & \"quoted\" 'text' < > $x$"


def figure() -> Any:
    x = np.linspace(1.0, 2.0, 20)
    panel = plot.Panel([plot.Line(x, x**2, "x squared")], "A curve", "time t", "value y")
    return plot.line_panels([panel, panel], "Two panels", "lines")


def fill(folder: RunFolder, setting: Setting) -> None:
    """A run with a claim of each kind, a table that is shown, a long one that is not, and two figures."""
    rows = [{"name": "one", "small": 1.23456e-5, "missing": None}, {"name": "two", "small": 123.456, "missing": 2.5}]
    folder.save_table("numbers", [*rows, {"name": "left out", "small": 0.0, "missing": None}])
    folder.show("The numbers of interest", rows, COLUMNS, "numbers")
    folder.save_table("long_list", [{"index": index, "a_wide_column": "w" * 60} for index in range(MOST_ROWS + 7)])
    folder.save_figure("second", figure(), "What there is to see.")
    folder.save_figure("first", figure())
    folder.claim("what is so", paper="1.00", ours="1.0002", holds=True, see=["first", "numbers"])
    folder.claim(SPITEFUL, paper="-", ours="0.5", holds=False)


FAKE = Experiment("fake", f"A summary with {SPITEFUL}", fill)


def broken(folder: RunFolder, setting: Setting) -> None:
    folder.claim("the only one before it breaks", paper="-", ours="yes", holds=True)
    raise RuntimeError(f"it broke: {SPITEFUL}")


def stopped(folder: RunFolder, setting: Setting) -> None:
    folder.save_table("partial", [{"value": 1.0}])
    raise KeyboardInterrupt


BROKEN, STOPPED = Experiment("broken", "It breaks.", broken), Experiment("stopped", "It is stopped.", stopped)


@pytest.fixture(scope="module")
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def fake_run(tmp_path_factory: pytest.TempPathFactory, quiet: Console) -> Path:
    """The folder of a finished run, which tests read: its figures are drawn once."""
    return reproduce(FAKE, tmp_path_factory.mktemp("fake") / "run", SETTING, quiet).path


class Page(HTMLParser):
    """Text, ids and links of a page, parsed by the standard library."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.ids, self.links, self.tags = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append((tag, named))
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []

    def handle_data(self, data: str) -> None:
        self.text += data


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_a_run_is_told_whole(fake_run):
    page = Page(fake_run / REPORT)
    text = words(page)
    for expected in (
        "1 of 2 claims shown",
        "✗ NOT shown",
        "A summary with " + SPITEFUL,
        "The numbers of interest",
        "1.2e-05",  # as the terminal prints it
        "123.5",
        f"First {MOST_ROWS} of {MOST_ROWS + 7} rows, whole in long_list.csv",
        "What there is to see.",
        "float64",
        "jax devices",
    ):
        assert expected in text
    # A table that is shown has the shown rows and columns alone.
    assert "left out" not in text
    assert page.text.count("w" * 60) == MOST_ROWS
    # The library for tables and the line that calls it, and no script of a claim.
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 2
    assert len(page.ids) == len(set(page.ids))
    pictures = [named for tag, named in page.tags if tag == "img"]
    # In the order they were saved, described by their own labels.
    assert [picture["src"][:22] for picture in pictures] == ["data:image/png;base64,"] * 2
    assert page.text.index("second.png") < page.text.index("first.png")
    assert all("value y over time t" in picture["alt"] and "x squared" in picture["alt"] for picture in pictures)


def test_the_same_folder_gives_the_same_page(fake_run):
    before = (fake_run / REPORT).read_bytes()
    write_report(fake_run)
    assert (fake_run / REPORT).read_bytes() == before


def test_each_figure_is_a_png_and_a_pdf(fake_run):
    for ending in ("png", "pdf"):
        assert {path.stem for path in fake_run.glob(f"*.{ending}")} == {"first", "second"}


def test_a_claim_that_names_no_figure_and_no_table_of_its_run_is_refused(tmp_path, quiet):
    def run(folder: RunFolder, setting: Setting) -> None:
        folder.save_table("numbers", [{"value": 1.0}])
        folder.claim("what is so", paper="-", ours="1", holds=True, see=["numbers", "nowhere"])

    with pytest.raises(ValueError, match=r"'what is so' says to see nowhere.*are: numbers"):
        reproduce(Experiment("fake", "It names too much.", run), tmp_path / "run", SETTING, quiet)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["state"] == "failed"


def test_one_that_fails_does_not_stop_the_others(tmp_path):
    with open(tmp_path / "screen", "w+") as screen:
        failed = reproduce_all([BROKEN, FAKE], tmp_path / "all", "quick", None, 64, Console(file=screen, width=200))
        screen.seek(0)
        printed = " ".join(screen.read().split())
    assert failed == ["broken"]
    assert f"broken failed: RuntimeError: it broke: {SPITEFUL}" in printed
    text = words(Page(tmp_path / "all" / REPORT))
    assert f"Failed: RuntimeError: it broke: {SPITEFUL}" in text
    assert "together 2 of 3" in text
    assert "1 of 2 finished" in text
    # Each folder is a run of its own.
    config = json.loads((tmp_path / "all" / "fake" / "config.json").read_text())
    assert (config["state"], config["experiment"], config["seed"]) == ("finished", "fake", 0)
    assert config["seconds"] >= 0
    assert (tmp_path / "all" / "broken" / REPORT).exists()
    assert "in broken\n" in json.loads((tmp_path / "all" / "broken" / "config.json").read_text())["traceback"]


def test_an_interrupted_run_of_all_says_what_is_missing(tmp_path, quiet):
    with pytest.raises(KeyboardInterrupt):
        reproduce_all([FAKE, STOPPED, BROKEN], tmp_path / "all", "quick", 5, 64, quiet)
    runs = read_runs(tmp_path / "all")
    assert [(run.name, run.config["state"]) for run in runs] == [
        ("fake", "finished"),
        ("stopped", "interrupted"),
        ("broken", "not started"),
    ]
    text = words(Page(tmp_path / "all" / REPORT))
    assert "Interrupted: only what was finished is here" in text
    assert "Not started" in text
    assert [table.title for table in runs[1].tables] == ["partial"]


def test_existing_folders_are_refused(tmp_path, quiet):
    with pytest.raises(FileExistsError, match="exists and results are never overwritten"):
        reproduce(FAKE, tmp_path, SETTING, quiet)
    with pytest.raises(FileExistsError, match="exists and results are never overwritten"):
        reproduce_all([FAKE], tmp_path, "quick", None, 64, quiet)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made"):
        reproduce(FAKE, tmp_path / "file" / "run", SETTING, quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_folders_is_read_by_name(tmp_path, fake_run):
    for name in ("b", "a"):
        shutil.copytree(fake_run, tmp_path / name)
    (tmp_path / "else").mkdir()
    assert [run.anchor for run in read_runs(tmp_path)] == ["run-1", "run-2"]
    assert write_report(tmp_path) == tmp_path / REPORT


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "text"), [(1.24, "1.2 s"), (61.4, "61 s"), (600.0, "10 min"), (12600.0, "3.5 h")])
def test_durations_have_units(seconds, text):
    assert duration(seconds) == text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the path")
    # As root Chromium refuses to start inside its sandbox.
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


def look(browser: Any, path: Path) -> Any:
    """A page opened from its file; console errors, failed requests and requests beyond the file go into `troubles`."""
    page = browser.new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("requestfailed", lambda request: page.troubles.append(request.url[:80]))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else page.troubles.append(request.url),
    )
    page.goto(path.absolute().as_uri(), wait_until="load")
    return page


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
HIDDEN = """() => [...document.querySelectorAll('.wide, .picture')].filter(
    box => box.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
PICTURES = "() => [...document.images].map(each => [each.naturalWidth, each.clientWidth, each.alt])"
DEAD_LINKS = """() => [...document.querySelectorAll('a[href^="#"]')].map(each => each.getAttribute('href').slice(1))
    .filter(id => !document.getElementById(id))"""
UNNAMED = "() => [...document.querySelectorAll('th')].filter(each => !each.scope).length"


def check_page(page: Any, headings: list[str], pictures: int) -> None:
    assert page.title().startswith("mirrorjax: ")
    assert page.locator("h2").all_inner_texts() == ["Summary", "All claims", *headings, "Versions and machine"]
    for width in (400, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(OVERFLOW) == 0
        assert page.evaluate(HIDDEN) == 0
        shown = page.evaluate(PICTURES)
        assert len(shown) == pictures
        assert all(natural > 0 and size > 0 and alt for natural, size, alt in shown)
    assert page.evaluate(DEAD_LINKS) == []
    assert page.evaluate(UNNAMED) == 0
    assert page.troubles == []


def test_a_browser_shows_the_report_of_several_runs(tmp_path, quiet, browser):
    reproduce_all([FAKE, BROKEN], tmp_path / "all", "quick", None, 64, quiet)
    page = look(browser, tmp_path / "all" / REPORT)
    check_page(page, ["fake", "broken"], pictures=2)
    rows = page.locator("table.claims tbody tr")
    refuted = rows.filter(has_text="alert(1)")
    for width in (400, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        # What the eye sees, in words, not in colour alone; markup in a statement is text.
        assert "✗ NOT shown" in refuted.inner_text()
        assert SPITEFUL in refuted.inner_text()
        assert "✓ shown" in rows.filter(has_text="what is so").inner_text()
    page.locator("section#summary a", has_text="broken").click()
    assert page.url.endswith("#run-2")
    assert page.locator("#run-2 .failure").inner_text().startswith("Failed: RuntimeError: it broke")


def test_claims_link_to_what_shows_them_and_tables_sort_search_and_download(tmp_path, fake_run, browser):
    expect = pytest.importorskip("playwright.sync_api").expect
    ledger = Table(
        "Ledger", "ledger.csv", [Heading("statement", False), Heading("verdict", False)], LEDGER, 3, "ledger-0"
    )
    (tmp_path / "ledger.html").write_text(render(read_runs(fake_run), ledger), encoding="utf-8")
    page = look(browser, tmp_path / "ledger.html")
    # The links that the claim names; the other claim, which names none, leads to all figures and all tables.
    assert page.locator("#run-1-claim-1 a.see").all_inner_texts() == ["first", "numbers"]
    assert page.locator("#run-1-claim-2 a.see").all_inner_texts() == ["figures", "tables"]
    page.locator("#run-1-claim-1 a.see", has_text="numbers").click()
    assert page.evaluate("location.hash") == "#run-1-table-0"
    assert page.evaluate(DEAD_LINKS) == []

    numbers = page.locator("#run-1-table-0")
    heading = numbers.locator("thead th", has_text="a number")
    for first in ("one", "two"):  # upwards, then downwards
        heading.click()
        expect(numbers.locator("tbody tr td").first).to_have_text(first)  # waits: the library sorts after the click
    page.locator("#run-1 .dt-search input").first.fill("two")
    expect(numbers.locator("tbody tr")).to_have_count(1)
    with page.expect_download() as started:
        page.locator("#run-1 a[download='long_list.csv']").click()
    assert started.value.path().read_bytes() == (fake_run / "long_list.csv").read_bytes()

    for name, labels in (("all-claims", ["✗ NOT shown"]), ("ledger-0", ["open", "refuted"])):
        for label in labels:
            page.locator("fieldset.choice label", has_text=label).first.click()
            shown = page.locator(f"#{name} tbody tr").filter(visible=True)
            assert shown.count() == 1
            assert label in shown.inner_text()
    assert page.troubles == []


LEDGER = [["a", "proved"], ["b", "open"], ["c", "refuted"]]


def test_a_figure_wider_than_a_phone_says_that_it_scrolls(fake_run, browser):
    page = look(browser, fake_run / REPORT)
    for width, is_shown in ((400, True), (1400, False)):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator(".hint").first.is_visible() == is_shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("R_a of W_K^T W_Q", "<i>R</i><sub>a</sub> of <i>W</i><sub>K</sub><sup>T</sup> <i>W</i><sub>Q</sub>"),
        ("falls as e^(-2 lambda t), <= 10^-3", "falls as e<sup>-2 λ t</sup>, ≤ 10<sup>-3</sup>"),
        ("(d - lambda/2)_+ at alpha = 1", "(d - λ/2)<sub>+</sub> at α = 1"),
        ("local_exponent & a.b_c <b>", "local_exponent &amp; a.b_c &lt;b&gt;"),
        ("x* and max_steps(t)", "x* and max_steps(t)"),
    ],
)
def test_formulas_in_plain_text_are_set(text, expected):
    assert formulas(text) == expected


def test_figures_stand_on_white_in_the_dark_and_on_paper(fake_run, browser):
    page = look(browser, fake_run / REPORT)
    ground = "element => getComputedStyle(element).backgroundColor"
    for options in ({"color_scheme": "dark"}, {"color_scheme": "dark", "media": "print"}):
        page.emulate_media(**options)
        assert page.locator("img").first.evaluate(ground) == "rgb(255, 255, 255)"
    assert page.locator("body").evaluate(ground) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark", media="screen")
    assert page.locator("body").evaluate(ground) == "rgb(21, 24, 28)"


def plain(text: str) -> str:
    """The text that a reader sees of a text with formulas."""
    return html.unescape(re.sub(r"<[^>]*>", "", formulas(text)))


@pytest.mark.slow
def test_a_browser_shows_the_report_of_a_real_experiment(browser, request):
    # Asked for here: as an argument it would run, for many seconds, before the browser is found to be missing.
    quick_separable: RunFolder = request.getfixturevalue("quick_separable")
    page = look(browser, write_report(quick_separable.path))
    check_page(page, ["separable"], pictures=1)
    for claim in quick_separable.claims:
        row = page.locator("table.claims tbody tr", has_text=plain(claim.statement)).first
        assert ("NOT shown" in row.inner_text()) == (not claim.holds)
        assert plain(claim.ours) in row.inner_text()
