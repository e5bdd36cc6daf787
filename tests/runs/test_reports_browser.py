"""The report of a sweep in a real browser, from disk: hover, filter, keyboard, two runs side by side, 10,000 runs."""

import json
import math
import random
import re
import time

import matplotlib.pyplot as plt
import pytest
from test_browser import SHOTS, RecordedPage, browser  # noqa: F401, a fixture

from clay_lib.files import write_json
from clay_lib.runs.reports import write_report

pytestmark = pytest.mark.slow


def write_runs(home, count, *, curves=True, figures=2):
    """A sweep's folder with so many runs, as a search leaves them."""
    rng, keys = random.Random(0), []
    for i in range(count):
        lr, mask, size = (
            10 ** rng.uniform(-4, -1.5),
            round(rng.uniform(0.4, 0.9), 3),
            rng.choice(["tiny", "small", "base"]),
        )
        loss = 0.3 + 0.2 * (math.log10(lr) + 2.6) ** 2 + abs(mask - 0.7) + 0.1 * (size == "tiny") + rng.gauss(0, 0.02)
        key, steps = f"{i:016x}", [10 * s for s in range(1, 21)]
        curve = [[s, loss + 2 / s**0.5 + rng.gauss(0, 0.01)] for s in steps]
        pruned = i > 10 and loss > 0.75 and i % 3 > 0
        failed = i % 29 == 28
        folder, values = home / key, {"seed": 0, "lr": lr, "mask_ratio": mask, "size": size}
        request = {"sweep": home.name, "notebook": "tiny", "settings": values, "parameters": values}
        write_json(folder / "parameters.json", request)
        metrics = {} if pruned or failed else {"loss": loss, "kNN": 0.8 - 0.3 * loss + rng.gauss(0, 0.02)}
        record = {"ok": not (pruned or failed), "died": False, "pruned": pruned, "notebook": "tiny.ipynb", "bytes": 2}
        record |= {
            "error": "AssertionError: too fast" if failed else None,
            "failed_cell": "cell 3 of 4" if failed else None,
        }
        record |= {"metrics": metrics, "seconds": 40.0 + i % 7, "peak_mb": 900.0, "library": "0123456789ab"}
        write_json(folder / "run.json", record)
        write_json(folder / "metrics.json", metrics or {"none": 0})
        (folder / "tiny.ipynb").write_text("{}")
        if curves:
            lines = curve[: 6 if pruned else None]
            (folder / "reported.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if i < figures:
            fig, ax = plt.subplots(figsize=(4, 3))
            ax.plot(*zip(*curve, strict=True))
            fig.savefig(folder / "1_curve.png", dpi=60)
            plt.close(fig)
        keys.append(key)
    summary = {"runs": keys, "metrics": {"loss": "min", "kNN": "max"}, "seed": None, "confirmed": []}
    summary |= {
        "varied": ["lr", "mask_ratio", "size"],
        "specification": {"notebook": "tiny.py", "search": {"trials": count}},
    }
    write_json(home / "sweep.json", summary)


def opened(browser, page, **size):  # noqa: F811
    view = RecordedPage(browser, "file:///", **size)
    view.context.set_offline(True)
    view.page.goto(page.as_uri())
    view.page.wait_for_load_state("load")
    return view


def test_report_answers_to_mouse_keyboard_and_filter(browser, tmp_path):  # noqa: F811
    write_runs(tmp_path / "search", 60, figures=60)
    page = write_report(tmp_path, "search")
    assert page.stat().st_size < 2_000_000
    view = opened(browser, page, width=1400, height=1000)
    show = view.page
    parallel, curves = show.locator("svg.parallel path[data-run]"), show.locator("svg.curves path[data-run]")
    assert parallel.count() == curves.count() == 60
    show.screenshot(path=SHOTS / "report_whole.png", full_page=True)

    show.locator("svg.curves").scroll_into_view_if_needed()
    box = show.locator("svg.curves").bounding_box()
    show.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.8 * box["height"])
    assert re.search("done.*lr .*loss", show.locator(".about").inner_text())
    lit = show.locator("svg.curves .lit").get_attribute("d")
    assert lit and lit in curves.evaluate_all("all => all.map(path => path.getAttribute('d'))")
    assert show.locator("svg.parallel .lit").get_attribute("d"), "the same run in the other chart"
    show.screenshot(path=SHOTS / "report_hover.png")

    show.get_by_label("Filter").fill("size = tiny, status = done")
    left = show.locator(".count").inner_text()
    assert 0 < parallel.count() < 40 and left == f"{parallel.count()} of 60 runs"
    show.get_by_label("Filter").fill("")
    axis = show.locator("rect[data-axis='1']")
    axis.scroll_into_view_if_needed()
    box = axis.bounding_box()
    show.mouse.move(box["x"] + 10, box["y"] + 10)
    show.mouse.down()
    show.mouse.move(box["x"] + 10, box["y"] + 0.5 * box["height"], steps=4)
    show.mouse.up()
    assert "mask_ratio >= 0.6" in show.get_by_label("Filter").input_value() and 10 < parallel.count() < 50

    show.get_by_role("button", name="clear").focus()
    show.keyboard.press("Enter")
    assert parallel.count() == 60
    rows = show.locator(".runs tbody tr[data-run]")
    show.mouse.move(5, 5)
    rows.nth(4).focus()
    run = rows.nth(4).get_attribute("data-run")
    assert show.locator("svg.parallel").get_attribute("data-lit") == run
    show.keyboard.press("Enter")
    assert show.get_by_label("right").input_value() == run
    images = show.locator(".both img")
    images.first.scroll_into_view_if_needed()
    show.wait_for_timeout(300)
    assert images.count() == 2 and min(images.evaluate_all("all => all.map(image => image.naturalWidth)")) > 100
    show.screenshot(path=SHOTS / "report_pair.png")
    show.get_by_role("button", name="kNN").click()
    values = [float(text) for text in rows.locator("td:nth-child(6)").all_inner_texts() if text != "–"]
    assert values == sorted(values) and len(values) > 20
    assert not view.errors and not view.requests, (view.errors, view.requests)
    view.context.close()


def test_report_fits_a_phone(browser, tmp_path):  # noqa: F811
    write_runs(tmp_path / "search", 12)
    view = opened(browser, write_report(tmp_path, "search"), width=390, height=844)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 390 and not view.errors
    view.page.screenshot(path=SHOTS / "report_phone.png", full_page=True)
    view.context.close()


def test_10_000_runs_make_a_page_that_opens(browser, tmp_path):  # noqa: F811
    write_runs(tmp_path / "many", 10_000)
    began = time.monotonic()
    page = write_report(tmp_path, "many")
    written, size = time.monotonic() - began, page.stat().st_size
    began = time.monotonic()
    view = opened(browser, page, width=1400, height=1000)
    assert view.page.locator("svg.parallel path[data-run]").count() == 2000
    assert view.page.locator("svg.curves path[data-run]").count() == 500
    opened_in = time.monotonic() - began
    view.page.locator("svg.parallel").scroll_into_view_if_needed()
    view.page.screenshot(path=SHOTS / "report_10000.png")
    print(f"10,000 runs: written in {written:.1f} s, {size / 1e6:.2f} MB, opened in {opened_in:.1f} s")
    assert size < 2_000_000 and written < 120 and opened_in < 20
    text = view.page.locator("body").inner_text()
    assert "2,000 of 10,000 runs" in text and "every 4th run" in text and not view.errors
    view.context.close()
