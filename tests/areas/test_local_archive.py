"""The local archive: items as the public archives have them, an event in time, servers that come and go."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pystac
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from clay_lib.areas import local
from clay_lib.areas.archives import archives_of, find_acquisitions
from clay_lib.areas.local import Event, archive, serve_archive, write_archive
from clay_lib.areas.reading import read_acquisition
from clay_lib.errors import ContractError
from clay_lib.world.earth import MiniWorld, Place

PLACE = Place(48.2, 15.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    events = (Event("2023-07-01", land_cover=80, east=100, north=-50, radius=120),)
    sensors, dates = ("sentinel-2-l2a", "sentinel-1-rtc"), ("2023-06-20", "2023-07-20")
    return write_archive(
        tmp_path_factory.mktemp("a"), sensors=sensors, place=PLACE, extent=640, dates=dates, events=events
    )


def fetch(url: str, span: str = "") -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Range": f"bytes={span}"} if span else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, answer.read()


def test_items_are_as_the_public_archive_has_them(folder):
    for content in json.loads((folder / "items.json").read_text())["features"]:
        item = pystac.Item.from_dict(content)
        known = archives_of(item.id.partition("_")[0])[0]
        wanted = {key.partition(".")[0] for key in known.assets.values()} | ({known.mask} - {""})
        assert set(item.assets) == wanted and item.collection_id == known.collection
        for key, asset in item.assets.items():
            with rasterio.open(folder / asset.href) as file:
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert list(file.shape) == asset.extra_fields["proj:shape"]
                assert list(file.transform)[:6] == asset.extra_fields["proj:transform"]
                assert file.crs.to_epsg() == content["properties"]["proj:epsg"]
            assert (folder / asset.href).stat().st_size == asset.extra_fields["file:size"], key


def test_mini_world_is_what_is_stored(folder):
    chip = MiniWorld(0).observe(PLACE, "sentinel-2-l2a", "2023-06-20T10:30", 64)
    (path,) = folder.glob("sentinel-2-l2a/*0620/red.tif")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), chip.pixels[2])
        assert tuple(file.transform)[:6] == chip.transform
    with rasterio.open(path.with_name("swir22.tif")) as file:
        cells = chip.pixels[9].reshape(32, 2, 32, 2).mean((1, 3))
        assert file.res == (20, 20) and np.abs(file.read(1) - cells).max() <= 0.5


def test_event_is_seen_by_every_sensor_after_its_day_and_nowhere_else(folder):
    before, after = (MiniWorld(0).observe(PLACE, "sentinel-1-rtc", f"2023-0{m}-20T10:30", 64) for m in (6, 7))
    y, x = np.mgrid[:64, :64]
    distance = np.hypot((x - 31.5) * 10 - 100, (31.5 - y) * 10 + 50)
    for month, chip in ((6, before), (7, after)):
        (path,) = folder.glob(f"sentinel-1-rtc/*0{month}20/vv.tif")
        with rasterio.open(path) as file:
            changed = file.read(1) != chip.pixels[0]
        assert not changed[distance > 150].any()
        assert changed[distance < 90].mean() == (1 if month == 7 else 0)
    (path,) = folder.glob("sentinel-2-l2a/*0720/scl.tif")
    with rasterio.open(path) as file:
        assert (file.read(1)[distance[::2, ::2] < 80] == 6).all()  # water, by its own classes


def test_servers_answer_and_end(folder):
    with serve_archive(folder) as url:
        found = json.loads(fetch(f"{url}/collections/sentinel-2-l2a/items")[1])["features"]
        href = found[0]["assets"]["red"]["href"]
        assert len(found) == 2 and href.startswith(f"{url}/files/")
        status, part = fetch(href, "100-299")
        assert status == 206 and part == (folder / href.removeprefix(f"{url}/files/")).read_bytes()[100:300]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"{url}/files/nothing.tif")
        with serve_archive(folder) as second:  # two at once, on ports of their own
            assert second != url and fetch(f"{second}/collections")[0] == 200
    with pytest.raises(OSError):
        fetch(f"{url}/collections")


def test_what_cannot_be_served(folder, tmp_path, monkeypatch):
    with pytest.raises(ContractError, match="a folder that write_archive finished"):
        with serve_archive(tmp_path):
            pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ContractError, match="no answer at.*the port was taken"):
            with serve_archive(folder, port=taken.getsockname()[1]):
                pass
    monkeypatch.setattr(local, "rustac", lambda: None)
    with pytest.raises(ContractError, match="pip install rustac"):
        with serve_archive(folder):
            pass


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ContractError, match="no sensors and no rasters"):
        write_archive(tmp_path, sensors=())
    with pytest.raises(ContractError, match="sensor"):
        write_archive(tmp_path, sensors=("sentinel-9",), place=PLACE)
    with pytest.raises(ContractError, match="one of the two options is missing"):
        archive(str(tmp_path), lat=48.2, serve=False)


def test_command_line_serves_until_interrupted(tmp_path):
    options = [
        "--lat",
        "48.2",
        "--lon",
        "15.3",
        "--extent",
        "640",
        "--dates",
        "2023-06-20",
        "--sensors",
        "sentinel-1-rtc",
    ]
    command = [sys.executable, "-m", "clay_lib", "archive", str(tmp_path), *options, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell runs us in the background
    )  # fmt: skip
    try:
        lines = []
        while not lines or "serving at" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert process.poll() is None, process.stderr.read()
        url = lines[-1].split()[2].rstrip(",")
        look = find_acquisitions("sentinel-1-rtc", (15.2, 48.1, 15.4, 48.3), "2023-06-20", url=url)[0]
        with rasterio.open(next(tmp_path.glob("sentinel-1-rtc/*/vv.tif"))) as file:
            grid = GeoBox(file.shape, file.transform, file.crs)
            np.testing.assert_array_equal(read_acquisition(look, grid)["vv"].values, file.read(1))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130 and "interrupted" in process.stderr.read()
        time.sleep(0.2)
        with pytest.raises(OSError):
            fetch(f"{url}/collections")
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
