"""The local archive: items in the public archives' layout, an event in time, servers that start and stop."""

import contextlib
import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pystac
import pytest
import rasterio
import requests
from archive_scenes import PLACE, grid_of

from clay_lib.areas import local
from clay_lib.areas.archives import archives_of, find_acquisitions
from clay_lib.areas.local import Event, archive, serve_archive, write_archive
from clay_lib.areas.reading import read_acquisition
from clay_lib.errors import ContractError
from clay_lib.world.earth import MiniWorld


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    events = (Event("2023-07-01", land_cover=80, east=100, north=-50, radius=120),)
    layout = dict(sensors=("sentinel-2-l2a", "sentinel-1-rtc"), dates=("2023-06-20", "2023-07-20"), extent=640)
    return write_archive(tmp_path_factory.mktemp("a"), place=PLACE, events=events, **layout)


def test_items_are_those_of_the_public_archive(folder):
    for content in json.loads((folder / "items.json").read_text())["features"]:
        item = pystac.Item.from_dict(content)
        profile = archives_of(item.id.partition("_")[0])[0]
        assets = {key.partition(".")[0] for key in profile.assets.values()} | ({profile.mask} - {""})
        assert set(item.assets) == assets and item.collection_id == profile.collection
        for asset in item.assets.values():
            with rasterio.open(folder / asset.href) as file:
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert list(file.shape) == asset.extra_fields["proj:shape"]
                assert list(file.transform)[:6] == asset.extra_fields["proj:transform"]
                assert file.crs.to_epsg() == content["properties"]["proj:epsg"]
            assert (folder / asset.href).stat().st_size == asset.extra_fields["file:size"]


def test_files_hold_the_mini_world(folder):
    chip = MiniWorld(0).observe(PLACE, "sentinel-2-l2a", "2023-06-20T10:30", 64)
    (path,) = folder.glob("sentinel-2-l2a/*0620/red.tif")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), chip.pixels[2])
        assert tuple(file.transform)[:6] == chip.transform
    with rasterio.open(path.with_name("swir22.tif")) as file:
        cells = chip.pixels[9].reshape(32, 2, 32, 2).mean((1, 3))
        assert file.res == (20, 20) and np.abs(file.read(1) - cells).max() <= 0.5


def test_event_changes_every_sensor_from_its_day_on(folder):
    y, x = np.mgrid[:64, :64]
    distance = np.hypot((x - 31.5) * 10 - 100, (31.5 - y) * 10 + 50)
    for month, share in ((6, 0), (7, 1)):
        chip = MiniWorld(0).observe(PLACE, "sentinel-1-rtc", f"2023-0{month}-20T10:30", 64)
        (path,) = folder.glob(f"sentinel-1-rtc/*0{month}20/vv.tif")
        with rasterio.open(path) as file:
            changed = file.read(1) != chip.pixels[0]
        assert not changed[distance > 150].any() and changed[distance < 90].mean() == share
    (path,) = folder.glob("sentinel-2-l2a/*0720/scl.tif")
    with rasterio.open(path) as file:
        assert (file.read(1)[distance[::2, ::2] < 80] == 6).all()  # SCL's water


def test_servers_answer_and_stop(folder):
    with serve_archive(folder) as url:
        features = requests.get(f"{url}/collections/sentinel-2-l2a/items").json()["features"]
        href = features[0]["assets"]["red"]["href"]
        assert len(features) == 2 and href.startswith(f"{url}/files/")
        response = requests.get(href, headers={"Range": "bytes=100-299"})
        expected = (folder / href.removeprefix(f"{url}/files/")).read_bytes()[100:300]
        assert response.status_code == 206 and response.content == expected
        assert requests.get(f"{url}/files/nothing.tif").status_code == 404
        with serve_archive(folder) as second:  # two at once, on ports of their own
            assert second != url and requests.get(f"{second}/collections").ok
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/collections")


def test_impossible_archives_raise(folder, tmp_path, monkeypatch):
    def serve(*args, **options):
        with serve_archive(*args, **options):
            pass

    with pytest.raises(ContractError, match="a folder that write_archive finished"):
        serve(tmp_path)
    with socket.socket() as taken, pytest.raises(ContractError, match="no answer at.*the port was taken"):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        serve(folder, port=taken.getsockname()[1])
    monkeypatch.setattr(local, "rustac", lambda: None)
    with pytest.raises(ContractError, match="pip install rustac"):
        serve(folder)
    with pytest.raises(ContractError, match="no sensors and no rasters"):
        write_archive(tmp_path, sensors=())
    with pytest.raises(ContractError, match="sensor"):
        write_archive(tmp_path, sensors=("sentinel-9",), place=PLACE)
    with pytest.raises(ContractError, match="one of the two options is missing"):
        archive(str(tmp_path), lat=48.2, serve=False)


def test_command_serves_until_interrupted(tmp_path):
    options = "--lat 48.2 --lon 15.3 --extent 640 --dates 2023-06-20 --sensors sentinel-1-rtc --port 0".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "clay_lib", "archive", str(tmp_path), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background jobs
    )  # fmt: skip
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        line = next((line for line in process.stdout if "serving at" in line), "")
        assert line, process.stderr.read()
        url = line.split()[2].rstrip(",")
        acquisition = find_acquisitions("sentinel-1-rtc", (15.2, 48.1, 15.4, 48.3), "2023-06-20", url=url)[0]
        path = next(tmp_path.glob("sentinel-1-rtc/*/vv.tif"))
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(read_acquisition(acquisition, grid_of(path))["vv"].values, file.read(1))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130 and "interrupted" in process.stderr.read()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/collections")
