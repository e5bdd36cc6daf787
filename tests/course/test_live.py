"""The live page in a real browser: opened from disk, without a network, it agrees with torch and answers to its controls."""

import shutil

import numpy as np
import pytest
import torch
from test_browser import SHOTS, RecordedPage, browser  # noqa: F401  a fixture

from clay_lib.checkpoint import load_model
from clay_lib.course.live import OUTPUTS, LiveModel, example, write_live, write_model
from clay_lib.data import read_scene, write_raster
from clay_lib.encoder import unpatchify

pytestmark = pytest.mark.slow


def test_graph_agrees_with_the_autoencoder(tmp_path):
    import onnxruntime

    model = load_model("clay-mini")
    write_model(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 14e6, "weights in float16"
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = example()
    radar = inputs | {"pixels": torch.randn(1, 2, 16, 9), "waves": torch.tensor([3.5, 4.0])}
    radar |= {"visible": torch.tensor([3]), "output_waves": torch.tensor([3.5, 4.0]), "gsd": torch.tensor([500.0])}
    for case in (inputs, radar):
        outputs = session.run(list(OUTPUTS), {name: tensor.numpy() for name, tensor in case.items()})
        with torch.no_grad():
            for expected, output in zip(LiveModel(model)(**case), outputs, strict=True):
                assert np.abs(expected.numpy() - output).max() < 1e-4


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):  # noqa: F811
    if not shutil.which("npm"):
        pytest.skip("npm, which fetches ONNX Runtime Web, is not installed")
    out = tmp_path_factory.mktemp("live") / "live.html"
    path = write_live(load_model("clay-mini"), out, {"sentinel-2-l2a": 3, "naip": 2})
    recorded = RecordedPage(browser, path.as_uri())
    recorded.page.goto(path.as_uri())
    recorded.page.evaluate("clay.start")
    yield recorded
    assert not recorded.requests and not recorded.errors, "the page needs no network and has no error in its console"


SHOWN = """() => { const {chip, state, result, all} = clay.state(); return {
  pixels: [...chip.pixels], time: chip.time, latlon: chip.latlon, hidden: [...state.hidden], vector: [...chip.vector],
  chip: [...all.chip], reconstruction: [...result.reconstruction]} }"""


def test_numbers_agree_with_torch(page, mini):
    shown = {name: torch.tensor(values) for name, values in page.page.evaluate(SHOWN).items()}
    cube = mini.cube(np.zeros((10, 64, 64)), "sentinel-2-l2a", check=False)
    visible = [k for k in range(64) if k not in shown["hidden"].tolist()]
    inputs = dict(pixels=shown["pixels"].view(1, 10, 64, 64), time=shown["time"][None], latlon=shown["latlon"][None])
    inputs |= dict(gsd=torch.tensor([10.0]), waves=cube.waves, output_waves=cube.waves, visible=torch.tensor(visible))
    with torch.no_grad():
        _, _, rows = LiveModel(mini.model)(**inputs)
    image = unpatchify(rows, grid=(8, 8), patch_size=8, size=(64, 64))
    assert len(visible) == 16
    assert (image.flatten() - shown["reconstruction"]).abs().max() < 1e-3
    assert (shown["chip"] - shown["vector"]).abs().max() < 1e-3, "the class token that the library computed"


def until_changed(page, action):
    before = page.evaluate("[...clay.state().result.reconstruction]")
    action()
    page.wait_for_function("before => clay.state().result.reconstruction.some((v, i) => v !== before[i])", arg=before)
    return page.evaluate("[...clay.state().result.reconstruction]")


def test_controls_change_the_answer(page):
    page = page.page
    until_changed(page, page.get_by_label("swir22 given").uncheck)
    assert "9 of 10 bands, 16 of 64 patches" in page.inner_text("#message")
    until_changed(page, lambda: page.get_by_label("Wavelength of blue").fill("0.6"))
    until_changed(page, lambda: page.locator("#ratio").fill("50"))
    assert "32 of 64 patches" in page.inner_text("#message")
    until_changed(page, lambda: page.locator("#visible").click(position={"x": 3, "y": 3}))  # the first patch by hand
    count = int(page.inner_text("#message").split(" bands, ")[1].split()[0])
    assert count in (31, 33)
    page.locator("#image").click(position={"x": 3, "y": 3})
    assert page.evaluate("clay.state().state.chosen") == 0
    page.locator("#similar").press("ArrowRight")
    assert page.evaluate("clay.state().state.chosen") == 1
    until_changed(page, lambda: page.locator("#similar").press("Enter"))
    assert page.locator("#near button").count() == 4, "the other chips, the most similar first"
    page.locator("#chips button").nth(3).focus()
    until_changed(page, lambda: page.keyboard.press("Enter"))
    assert page.evaluate("clay.state().chip.sensor") == "naip"
    page.screenshot(path=SHOTS / "live.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    edges = "[...document.querySelectorAll('article, article *')].map((e) => e.getBoundingClientRect().right)"
    edge, *inside = page.evaluate(edges)
    assert max(inside) <= edge < 390, "nothing is cut off on a telephone"
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_a_file_of_ones_own_is_read(page, mini, tmp_path):
    from clay_lib.data.scenes import world

    world(str(tmp_path / "scene.tif"), sensor="sentinel-2-l2a")
    scene = read_scene(tmp_path / "scene.tif", "sentinel-2-l2a")
    until_changed(page.page, lambda: page.page.locator("#file").set_input_files(tmp_path / "scene.tif"))
    read = "(({chip}) => [chip.size, chip.gsd, [...chip.pixels.slice(0, 50)]])(clay.state())"
    size, gsd, pixels = page.page.evaluate(read)
    top, left = ((n - 64) // 2 if n > 64 else 0 for n in scene.pixels.shape[-2:])
    first = mini.cube(scene.pixels, scene.sensor, check=False).pixels[0, 0, top, left : left + 50]
    assert gsd == 10 and size == [min(n, 64) for n in scene.pixels.shape[-2:]]
    assert np.abs(np.array(pixels) - first.numpy()).max() < 1e-4

    place = dict(crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6))
    odd = write_raster(tmp_path / "odd.tif", np.zeros((5, 8, 8), "float32"), **place)
    page.page.locator("#file").set_input_files(odd)
    page.page.wait_for_function("document.querySelector('#message').className === 'bad'")
    assert "it has 5 bands" in page.page.inner_text("#message")
