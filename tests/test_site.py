"""The documentation site in a browser without network, once `python -m sphinx docs docs/_build/html` has built it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parent.parent / "docs" / "_build" / "html"
WIDTH = 390  # of a phone

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built")


def pages() -> list[Path]:
    return [page for page in sorted(SITE.rglob("*.html")) if "_modules" not in page.parts]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened.new_context(viewport={"width": WIDTH, "height": 844}, offline=True)
        opened.close()


def test_every_internal_link_leads_somewhere():
    broken = []
    for page in pages():
        for reference in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            link = urlsplit(reference)
            if link.scheme or link.netloc or not link.path:
                continue
            if not (page.parent / unquote(link.path)).resolve().exists():
                broken.append(f"{page.relative_to(SITE)}: {reference}")
    assert not broken


def test_no_page_is_wider_than_a_phone(browser):
    page, wide = browser.new_page(), {}
    for file in pages():
        page.goto(file.as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > WIDTH:
            wide[str(file.relative_to(SITE))] = width
    assert not wide


def test_formulas_render_without_network(browser):
    page = browser.new_page()
    page.goto((SITE / "theory.html").as_uri())
    page.wait_for_selector("mjx-container mjx-math", timeout=20_000)
    assert page.locator("mjx-merror").count() == 0
    assert page.locator("mjx-container").count() > 50


def test_the_search_finds_a_function(browser):
    page = browser.new_page()
    page.goto((SITE / "search.html").as_uri() + "?q=predict_limit")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = page.locator("#search-results li a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert any("predict_limit" in link for link in found)
