"""Figures of solutions, sweeps and R_a: what is drawn is what was computed; the interactive page in a browser."""

import os
import shutil
from typing import Any

import jax.numpy as jnp
import matplotlib.style
import numpy as np
import pytest
import xarray as xr
from matplotlib.backend_bases import MouseButton, MouseEvent

import mirrorjax as mj
from mirrorjax.plot.interactive import Moments, bias_page

TS = np.linspace(0.0, 4.0, 5)


def a_solution() -> mj.Solution:
    """A solution as `solve` returns it, whose numbers are known."""
    ts, x = jnp.asarray(TS), jnp.asarray(np.stack([TS, -TS], axis=1))
    last = mj.Point(x[-1], (x[-1], x[-1]), x[-1], jnp.zeros(()))
    metrics = {"norm": jnp.linalg.norm(x, axis=1)}
    stats = {"num_steps": jnp.asarray(5)}
    return mj.Solution(ts, x, (x, x), x, -ts, jnp.exp(-ts), metrics, last, ts[-1], stats, mj.RESULTS.successful)


ALPHAS, T_OFFS = np.array([0.1, 1.0]), np.array([2.0, 4.0, 6.0])


def a_dataset() -> xr.Dataset:
    """A dataset as `sweep` returns it, whose numbers are known; one lane has none."""
    loss = np.exp(-np.einsum("a,o,t->aot", ALPHAS, T_OFFS, TS))
    loss[1, 2] = np.nan
    coordinates = {"alpha": ALPHAS, "t_off": T_OFFS, "time": TS}
    status = np.full((2, 3), "successful")
    return xr.Dataset({"loss": (("alpha", "t_off", "time"), loss), "status": (("alpha", "t_off"), status)}, coordinates)


def curves(axis: Any) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in axis.get_lines()]


def test_a_solution_is_drawn_in_a_panel_for_each_variable():
    sol = a_solution()
    figure = mj.plot.trajectories(sol)
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_visible()}
    assert list(axes) == ["loss", "x", "a", "norm"]
    np.testing.assert_array_equal(np.stack(curves(axes["x"]), axis=1), sol.x)
    np.testing.assert_array_equal(curves(axes["a"]), sol.a[None])
    assert axes["loss"].get_yscale() == "log"
    assert axes["a"].get_yscale() == "linear"


def test_lanes_are_drawn_with_their_parameters():
    ds = a_dataset()
    (axis,) = mj.plot.trajectories(ds.sel(t_off=4.0)).axes
    np.testing.assert_array_equal(np.stack(curves(axis)), ds.loss.sel(t_off=4.0))
    assert [line.get_label() for line in axis.get_lines()] == ["alpha = 0.1", "alpha = 1"]


def test_a_click_on_the_map_shows_the_lane_under_it():
    ds = a_dataset()
    figure = mj.plot.sweep_map(ds, "loss")
    left, right = figure.axes[:2]
    figure.canvas.draw()

    def shown() -> np.ndarray:
        (curve,) = curves(right)
        return curve

    np.testing.assert_array_equal(shown(), ds.loss.sel(alpha=1.0, t_off=4.0))  # the smallest at the end
    x, y = left.transData.transform((2.1, 0.12))
    figure.canvas.callbacks.process(
        "button_press_event", MouseEvent("button_press_event", figure.canvas, x, y, MouseButton.LEFT)
    )
    np.testing.assert_array_equal(shown(), ds.loss.sel(alpha=0.1, t_off=2.0))
    assert right.get_title() == "alpha = 0.1, t_off = 2"
    (mesh,) = left.collections
    np.testing.assert_array_equal(
        np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan).reshape(2, 3), ds.loss.isel(time=-1)
    )
    assert left.get_xscale() == "linear"
    assert left.get_yscale() == "log"
    marked = mj.plot.sweep_map(ds, "loss", mark={"alpha": 0.9, "t_off": 0.0})
    assert marked.axes[1].get_title() == "alpha = 1, t_off = 2"


def test_a_potential_is_that_of_the_family():
    """R of x = m w from balance 1: the hyperbolic entropy of the closed form, by formula."""
    R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(2), jnp.zeros(2)))
    x = np.linspace(-2.0, 2.0, 21)
    (axis,) = mj.plot.potential(R, [0.0, -0.5], x, coordinate=1).axes
    lines = [curve for curve in curves(axis) if curve.size == x.size]
    for a, drawn in zip((0.0, -0.5), lines, strict=True):
        half = np.exp(4 * a) / 2  # x = half sinh(2 mu), with |u v| = half; R is the integral of mu
        exact = (x * np.arcsinh(x / half) - np.sqrt(x**2 + half**2) + half) / 2
        np.testing.assert_allclose(drawn, exact / exact.max(), atol=1e-12)


def test_figures_are_written_by_their_suffix(tmp_path):
    figure = mj.plot.trajectories(a_solution(), "loss")
    for suffix, first in {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}.items():
        assert mj.plot.save(figure, tmp_path / f"a{suffix}").read_bytes().startswith(first)


def test_the_style_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with matplotlib.style.context("mirrorjax.plot.talk"):
        assert matplotlib.rcParams["figure.figsize"] == [9, 3.6]


def contrast(color: tuple[float, ...]) -> float:
    """The contrast to white of the guidelines for accessible pages (WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3]]
    return 1.05 / (float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_curves_hold_on_white(count):
    assert len(mj.plot.colors(count)) == count
    assert min(map(contrast, mj.plot.colors(count))) >= 3  # what the guidelines ask of graphics


def test_the_slider_of_the_page_redraws_it_without_network(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on the path")
    t, x = np.linspace(0.0, 4.0, 5), np.linspace(-1.0, 1.0, 9)
    exponent = np.array([2.0, 1.8, 1.5, 1.25, np.nan])
    shape = np.abs(x) ** exponent[:, None]
    moments = Moments(t, 0.0 - t, 0.1 * t, exponent, np.full(5, -np.inf), 5.0 - t, x, shape)
    (tmp_path / "page.html").write_text(bias_page(moments, "A family"), encoding="utf-8")
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_context(viewport={"width": 1100, "height": 800}, offline=True).new_page()
        troubles = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or troubles.append(request.url),
        )
        page.goto((tmp_path / "page.html").as_uri())
        title, curve = page.locator(".gtitle"), page.locator(".scatterlayer .trace path.js-line").nth(0)
        seen = []
        for share in (0.01, 0.5, 0.99):
            rail = page.locator(".slider-rail-touch-rect")
            box = rail.bounding_box()
            rail.click(position={"x": share * box["width"], "y": box["height"] / 2}, force=True)
            page.wait_for_timeout(300)
            seen.append((title.text_content(), curve.get_attribute("d")))
        browser.close()
    assert troubles == []
    assert "t = 0, a = 0: argmin R_a = 0, local exponent 2.0000, mu in (-∞, 5)" in seen[0][0]
    assert "t = 2, a = -2: argmin R_a = 0.2, local exponent 1.5000, mu in (-∞, 3)" in seen[1][0]
    assert "R_a does not exist" in seen[2][0]
    assert seen[0][1] != seen[1][1]
