"""In a real browser without a network: a notebook runs to its end, sliders and maps respond, pages show their images.

Screenshots are kept in papermill_runs/browser.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import geopandas
import nbformat
import numpy as np
import pytest
from fakes import fake_chips
from shapely import Polygon

from clay_lib.course.chip_map import chip_map, neighbors
from clay_lib.figures.maps import Layer
from clay_lib.runs.notebooks import ROOT

pytestmark = pytest.mark.slow
SHOTS = ROOT / "papermill_runs" / "browser"
NOTEBOOK = "00_first_look"


CONTRAST = """() => {  // the lowest contrast (WCAG 2) of a text on the nearest color behind it
  const color = (text) => text.match(/[\\d.]+/g).map(Number), light = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const bright = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b) + .05;
  const behind = (e) => { for (; e; e = e.parentElement) { const c = color(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; } return [255, 255, 255]; };
  return Math.min(...[...document.querySelectorAll("body *:not(script, style)")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
    const pair = [bright(color(getComputedStyle(e).color)), bright(behind(e))].sort((a, b) => b - a); return pair[0] / pair[1]; })); }"""


def chromium() -> str | None:
    """An installed browser that Playwright can drive."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not chromium():
        pytest.skip("no chromium or chrome is installed (Debian and Ubuntu: apt-get install chromium)")
    SHOTS.mkdir(parents=True, exist_ok=True)
    # no name resolves, so that only addresses of this machine can be reached
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-sandbox", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=offline)
        yield opened
        opened.close()


class RecordedPage:
    """A page that records its requests to the network and the errors in its console."""

    def __init__(self, browser, home: str, **size):
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000} | size)
        self.requests, self.errors = [], []
        self.context.route(re.compile(rf"^(?!{re.escape(home)}|data:|blob:)"), self._refuse)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _refuse(self, route):
        self.requests.append(route.request.url)
        route.abort()


def until(test, seconds: float, event: str):
    """The first true result of `test`."""
    end = time.monotonic() + seconds
    while not (result := test()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {event}"
        time.sleep(0.05)
    return result


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab as `make lab` starts it, in a copy of the notebooks: (address, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "jupytext.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("notebooks", ".jupyter"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    venv = Path(sys.prefix)
    command = ["make", "-s", "-o", f"{venv}/.ready", "lab", f"VENV={venv}", "LAB=--ServerApp.port=0 --allow-root"]
    opener = folder / "opener"  # instead of a browser: keeps the page that it is sent to
    opener.write_text(f'#!/bin/sh\ncp "${{1#file://}}" "{folder}/opened.html"\n')
    opener.chmod(0o755)
    log = open(folder / "lab.log", "w")
    env = os.environ | {"JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "w")}
    env |= {"OMP_NUM_THREADS": "1", "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "BROWSER": str(opener)}
    server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        opened = folder / "opened.html"
        until(lambda: opened.exists() or server.poll() is not None, 120, "the lab opens a browser")
        link = re.search(r"http://127\.0\.0\.1:\d+/[^\"'\s]+", opened.read_text() if opened.exists() else "")
        assert link, (folder / "lab.log").read_text()
        yield link[0].replace("&amp;", "&"), folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


def test_lab_requires_its_token(lab):
    from urllib.error import HTTPError
    from urllib.request import urlopen

    address, _ = lab
    home = address.split("/lab")[0]
    with pytest.raises(HTTPError, match="403"):
        urlopen(f"{home}/api/contents")
    assert urlopen(f"{home}/api/contents?token={address.split('token=')[1]}").status == 200
    assert f"{NOTEBOOK}.ipynb" in address, "the first notebook"


def test_notebook_runs_and_its_widgets_respond(browser, lab):
    address, folder = lab
    view = RecordedPage(browser, address.split("/lab")[0])
    page = view.page
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    page.get_by_text(re.compile(r"Python 3.*\| Idle")).first.wait_for(timeout=120_000)  # the kernel is ready
    page.screenshot(path=SHOTS / "1_opened.png")
    assert page.locator(".jp-toast-button, .jp-Dialog").count() == 0, "no dialog and no news"

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    saved = folder / "notebooks" / f"{NOTEBOOK}.ipynb"

    def done():
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        try:
            cells = [c for c in nbformat.read(saved, as_version=4).cells if c.cell_type == "code"]
        except nbformat.reader.NotJSONError:  # being saved
            return None
        broken = [o for c in cells for o in c.outputs if o.output_type == "error"]
        assert not broken, broken[0].evalue
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").count()
        return idle and all(c.execution_count for c in cells) and cells

    cells = until(done, 240, "all cells done")
    warnings = [o.text for c in cells for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not warnings, warnings
    assert saved.stat().st_size < 1_500_000 and "widgets" not in nbformat.read(saved, as_version=4).metadata

    image = page.locator(".clay-playground")
    image.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "2_playground.png")
    before = image.screenshot()
    source = image.get_attribute("src")
    handle = page.locator(".widget-slider:has-text('hidden') .noUi-handle").first
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2, steps=5)
    start = time.perf_counter()
    page.mouse.up()
    until(lambda: image.get_attribute("src") != source, 30, "another image after the slider moved")
    moved = time.perf_counter() - start
    page.wait_for_timeout(300)
    assert image.screenshot() != before
    page.screenshot(path=SHOTS / "3_slider_moved.png")

    chip_map = page.locator(".clay-chip-map")
    chip_map.scroll_into_view_if_needed()
    chips = chip_map.locator("path.leaflet-interactive")
    until(lambda: chips.count() > 50, 30, "chips on the map")
    overlay = chip_map.locator("img.leaflet-image-layer")
    assert overlay.evaluate("image => image.naturalWidth") > 100, "the scene lies below"
    chips.nth(40).scroll_into_view_if_needed()
    start = time.perf_counter()
    chips.nth(40).click()
    similar = chip_map.locator(".clay-neighbors")
    until(lambda: similar.evaluate("image => image.naturalWidth") > 100, 30, "the neighbors of a clicked chip")
    clicked = time.perf_counter() - start
    assert "Chip 40" in chip_map.inner_text()
    page.screenshot(path=SHOTS / "4_chip_clicked.png")

    for chip, label in {26: "tree cover", 100: "built-up"}.items():
        chips.nth(chip).click()
        until(lambda chip=chip: f"Chip {chip} and" in chip_map.inner_text(), 30, "a response to a click")
        chip_map.get_by_placeholder("a label of your own").fill(label)
        chip_map.get_by_placeholder("a label of your own").press("Enter")
        chip_map.get_by_role("button", name="label this chip").click()
        until(lambda label=label, chip=chip: f"Chip {chip} is {label}" in chip_map.inner_text(), 30, "a label taken")
    until(lambda: len({chips.nth(n).get_attribute("fill") for n in range(30)}) == 2, 30, "two colors from two labels")
    page.screenshot(path=SHOTS / "5_labeled.png")
    (SHOTS / "seconds.json").write_text(json.dumps({"slider move": moved, "click on a chip": clicked}, indent=1))
    assert not view.requests, f"requests to the network: {view.requests}"
    view.context.close()


def test_gallery_opens_from_disk_with_the_network_off(browser, tmp_path):
    from clay_lib.runs.gallery import write_site

    write_site(str(tmp_path / "none"), str(tmp_path / "site"))  # from the outputs in the repository
    pages = sorted((tmp_path / "site").glob("*.html"), key=lambda page: page.name != "index.html")
    assert len(pages) > 8
    for width, height in ((1400, 1000), (390, 844)):
        view = RecordedPage(browser, "file:///", width=width, height=height)
        view.context.set_offline(True)
        for page in pages if width > 1000 else pages[:1]:
            view.page.goto(page.as_uri())
            view.page.wait_for_load_state("load")
            shown = view.page.locator("img[src]")
            widths = shown.evaluate_all("all => all.map(image => image.complete ? image.naturalWidth : 0)")
            assert widths and all(widths), f"{page.name}: {widths.count(0)} of {len(widths)} images do not show"
            assert view.page.title() and view.page.evaluate(CONTRAST) >= 4.5, page.name
            if page.stem == NOTEBOOK:
                slider = view.page.locator(".clay-slider")
                before = slider.locator("img").get_attribute("src")
                slider.locator("input").focus()
                view.page.keyboard.press("ArrowLeft")
                assert slider.locator("img").get_attribute("src") != before, "no kernel is needed to move it"
                chip_map = view.page.locator(".clay-click")
                chip_map.locator("[data-n='40']").click(force=True)
                assert "Chip 40" in chip_map.inner_text() and chip_map.locator(".near").count() == 5
                view.page.screenshot(path=SHOTS / "7_page_without_a_kernel.png", full_page=True)
            if page.name == "index.html":
                view.page.screenshot(path=SHOTS / f"6_gallery_{width}.png")
                wide = view.page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, "no horizontal scrolling"
                view.page.keyboard.press("Tab")  # to the first figure
                view.page.keyboard.press("Enter")
                assert view.page.locator("dialog[open] img").get_attribute("alt") == "An image"
        assert not view.requests and not view.errors, (view.requests, view.errors)
        view.context.close()


def test_click_map_without_a_kernel_saves_its_hits_as_geojson(browser, tmp_path):
    rng, side = np.random.default_rng(0), 0.01
    lat, lon = np.mgrid[48:48.05:side, 15:15.06:side][:, :5, :6].reshape(2, -1)
    corners = np.stack([lon, lat], -1)[:, None] + side * np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
    vectors = rng.normal(size=(len(lat), 8)).astype(np.float32)
    ground = Layer("ground", np.ones((10, 12, 3)), "EPSG:4326", (0.005, 0.0, 15.0, 0.0, -0.005, 48.06))
    chips = replace(fake_chips("naip", len(lat), 8), lat=lat, lon=lon)
    page = tmp_path / "map.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{chip_map(chips, vectors, ground, outlines=corners).page}")
    view = RecordedPage(browser, "file:///")
    view.page.goto(page.as_uri())
    view.page.locator("[data-n='7']").click(force=True)
    view.page.locator("svg").press("+")
    view.page.locator("[data-n='9']").click(force=True)
    view.page.locator("svg").press("-")
    view.page.locator(".clear").focus()
    view.page.keyboard.press("Tab")
    with view.page.expect_download() as saved:
        view.page.keyboard.press("Enter")
    assert saved.value.suggested_filename == "hits.geojson" and not view.requests and not view.errors
    frame = geopandas.read_file(saved.value.path()).set_index("chip")
    order, cosines = neighbors(vectors, 9, marks={7: 1, 9: -1})
    hits = frame[frame["rank"] > 0].sort_values("rank")
    assert (
        hits.index.tolist() == order.tolist() and frame["mark"].to_dict()[7] == 1 and frame["mark"].to_dict()[9] == -1
    )
    np.testing.assert_allclose(hits["similarity"], cosines, atol=0.02)  # the page's vectors have 8 bits
    for chip, outline in frame.geometry.items():
        assert outline.exterior.is_ccw and outline.equals(Polygon(corners[chip].round(6)))
    view.context.close()
