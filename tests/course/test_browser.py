"""In a real browser, with no network but this machine: a notebook runs to its end, sliders and maps answer, pages show.

Screenshots are kept in papermill_runs/browser, to be looked at.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from clay_lib.runs.notebooks import ROOT

pytestmark = pytest.mark.slow
SHOTS = ROOT / "papermill_runs" / "browser"
NOTEBOOK = "00_first_look"


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
    # names resolve to nothing, so only addresses of this machine can be reached, whoever asks
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-sandbox", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=alone)
        yield opened
        opened.close()


class Watched:
    """A page that notes what it asked of the network, and what went wrong in its console."""

    def __init__(self, browser, home: str, **size):
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000} | size)
        self.abroad, self.errors = [], []
        self.context.route(re.compile(rf"^(?!{re.escape(home)}|data:|blob:)"), self._refuse)
        self.page = self.context.new_page()
        self.page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _refuse(self, route):
        self.abroad.append(route.request.url)
        route.abort()


def until(test, seconds: float, what: str):
    """The first true answer of `test`."""
    end = time.monotonic() + seconds
    while not (answer := test()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab as `make lab` starts it, in a copy of the notebooks, which it would save into: (address, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "jupytext.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("notebooks", ".jupyter"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    venv = Path(sys.prefix)
    command = ["make", "-s", "-o", f"{venv}/.ready", "lab", f"VENV={venv}", "LAB=--ServerApp.port=0 --allow-root"]
    opener = folder / "opener"  # stands for the browser of the machine: keeps the page that it is sent to
    opener.write_text(f'#!/bin/sh\ncp "${{1#file://}}" "{folder}/opened.html"\n')
    opener.chmod(0o755)
    log = open(folder / "lab.log", "w")
    env = os.environ | {"JUPYTER_RUNTIME_DIR": str(folder / "runtime"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "w")}
    env |= {"OMP_NUM_THREADS": "1", "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "BROWSER": str(opener)}
    server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        opened = folder / "opened.html"
        until(lambda: opened.exists() or server.poll() is not None, 120, "the lab opens a browser")
        told = re.search(r"http://127\.0\.0\.1:\d+/[^\"'\s]+", opened.read_text() if opened.exists() else "")
        assert told, (folder / "lab.log").read_text()
        yield told[0].replace("&amp;", "&"), folder
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


def test_the_lab_asks_for_its_token(lab):
    from urllib.error import HTTPError
    from urllib.request import urlopen

    address, _ = lab
    home = address.split("/lab")[0]
    with pytest.raises(HTTPError, match="403"):
        urlopen(f"{home}/api/contents")
    assert urlopen(f"{home}/api/contents?token={address.split('token=')[1]}").status == 200
    assert f"{NOTEBOOK}.ipynb" in address, "the first notebook"


def test_a_notebook_runs_and_its_slider_and_map_answer(browser, lab):
    address, folder = lab
    view = Watched(browser, address.split("/lab")[0])
    page = view.page
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    page.get_by_text(re.compile(r"Python 3.*\| Idle")).first.wait_for(timeout=120_000)  # the kernel is there
    page.screenshot(path=SHOTS / "1_opened.png")
    assert page.locator(".jp-toast-button, .jp-Dialog").count() == 0, "no question and no news in the way"

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    saved = folder / "notebooks" / f"{NOTEBOOK}.ipynb"

    def done():
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = [c for c in nbformat.read(saved, as_version=4).cells if c.cell_type == "code"]
        broken = [o for c in cells for o in c.outputs if o.output_type == "error"]
        assert not broken, broken[0].evalue
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").count()
        return idle and all(c.execution_count for c in cells) and cells

    cells = until(done, 240, "all cells done")
    said = [o.text for c in cells for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not said, said
    assert saved.stat().st_size < 1_000_000 and "widgets" not in nbformat.read(saved, as_version=4).metadata

    picture = page.locator(".clay-playground")
    picture.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "2_playground.png")
    before = picture.screenshot()
    source = picture.get_attribute("src")
    handle = page.locator(".widget-slider:has-text('hidden') .noUi-handle").first
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2, steps=5)
    start = time.perf_counter()
    page.mouse.up()
    until(lambda: picture.get_attribute("src") != source, 30, "another picture after the slider moved")
    moved = time.perf_counter() - start
    page.wait_for_timeout(300)
    assert picture.screenshot() != before
    page.screenshot(path=SHOTS / "3_slider_moved.png")

    chip_map = page.locator(".clay-chip-map")
    chip_map.scroll_into_view_if_needed()
    chips = chip_map.locator("path.leaflet-interactive")
    until(lambda: chips.count() > 50, 30, "chips on the map")
    overlay = chip_map.locator("img.leaflet-image-layer")
    assert overlay.evaluate("picture => picture.naturalWidth") > 100, "the scene lies below"
    chips.nth(40).scroll_into_view_if_needed()
    start = time.perf_counter()
    chips.nth(40).click()
    alike = chip_map.locator(".clay-neighbors")
    until(lambda: alike.evaluate("picture => picture.naturalWidth") > 100, 30, "the neighbours of a clicked chip")
    clicked = time.perf_counter() - start
    assert "Chip 40" in chip_map.inner_text()
    page.screenshot(path=SHOTS / "4_chip_clicked.png")

    for chip, label in {26: "tree cover", 100: "built-up"}.items():
        chips.nth(chip).click()
        until(lambda chip=chip: f"Chip {chip} and" in chip_map.inner_text(), 30, "a click that is answered")
        chip_map.get_by_placeholder("a label of your own").fill(label)
        chip_map.get_by_placeholder("a label of your own").press("Enter")
        chip_map.get_by_role("button", name="label this chip").click()
        until(lambda label=label, chip=chip: f"Chip {chip} is {label}" in chip_map.inner_text(), 30, "a label taken")
    until(lambda: len({chips.nth(n).get_attribute("fill") for n in range(30)}) == 2, 30, "two colours from two labels")
    page.screenshot(path=SHOTS / "5_labelled.png")
    (SHOTS / "seconds.json").write_text(json.dumps({"slider move": moved, "click on a chip": clicked}, indent=1))
    assert not view.abroad, f"it asked the network for {view.abroad}"
    view.context.close()


def test_the_gallery_opens_from_disk_with_the_network_off(browser, tmp_path):
    from clay_lib.runs.gallery import write_site

    write_site(str(tmp_path / "none"), str(tmp_path / "site"))  # of the outputs that come with the repository
    pages = sorted((tmp_path / "site").glob("*.html"), key=lambda page: page.name != "index.html")
    assert len(pages) > 8
    for width, height in ((1400, 1000), (390, 844)):
        view = Watched(browser, "file:///", width=width, height=height)
        view.context.set_offline(True)
        for page in pages if width > 1000 else pages[:1]:
            view.page.goto(page.as_uri())
            view.page.wait_for_load_state("load")
            pictures = view.page.locator("img[src]")
            widths = pictures.evaluate_all("all => all.map(picture => picture.complete ? picture.naturalWidth : 0)")
            assert widths and all(widths), f"{page.name}: {widths.count(0)} of {len(widths)} pictures do not show"
            if page.name == "index.html":
                view.page.screenshot(path=SHOTS / f"6_gallery_{width}.png")
                wide = view.page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, "nothing to scroll sideways"
        assert not view.abroad and not view.errors, (view.abroad, view.errors)
        view.context.close()
