"""Composites against plain NumPy over the files of a local archive with clouds; their dates, faults and combinations."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
from archive_scenes import ALWAYS, PLACE, around, grid_of
from faulty_server import FaultyServer
from scipy import ndimage
from scipy.spatial.distance import cdist
from test_area import CLAY

from clay_lib import Clay
from clay_lib.areas import composites, vectors
from clay_lib.areas.archives import find_acquisitions
from clay_lib.areas.area import embed_area
from clay_lib.areas.composites import composites_of, read_composite
from clay_lib.areas.local import serve_archive, write_archive
from clay_lib.areas.tiles import grid_of as tile_grid
from clay_lib.areas.tiles import tiles_of
from clay_lib.errors import ContractError
from clay_lib.evaluation.intervals import interval, resample
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import MiniWorld

S2, S1, SIDE = "sentinel-2-l2a", "sentinel-1-rtc", 64
DAYS = ("2023-05-02", "2023-05-20", "2023-06-03", "2023-06-21", "2023-06-30", "2023-08-20")
CLOUDS = (0.5, 0.3, 0.6, 0.2, 0.4, 0.5)
COARSE = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22")
OFFSET = (1, 3)  # numbers of the days whose files keep the offset of 1000 that the others have lost


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("year")
    write_archive(out, sensors=(S2, S1), place=PLACE, extent=1, dates=DAYS, clouds=CLOUDS)
    items = json.loads((out / "items.json").read_text())
    for item in items["features"]:
        if item["collection"] == S2 and _number(item["id"]) in OFFSET:
            item["properties"]["earthsearch:boa_offset_applied"] = False
            for key in {*item["assets"]} - {"scl"}:
                item["assets"][key]["raster:bands"][0].pop("offset")
                path = out / item["assets"][key]["href"]
                with rasterio.open(path) as file:
                    profile, stored = file.profile, file.read()
                with rasterio.open(path, "w", **profile | dict(driver="GTiff")) as file:
                    file.write(stored + 1000)
    (out / "items.json").write_text(json.dumps(items))
    return out


@pytest.fixture(scope="module")
def url(folder):
    with serve_archive(folder) as address:
        yield address


def _number(name: str) -> int:
    return [day.replace("-", "") for day in DAYS].index(name.rpartition("_")[2])


def stack_of(folder, sensor, numbers):
    """Native numbers [T, C, H, W] float64 of the files, interpolated where they are coarse, and clouds [T, H, W]."""
    images, clouds = [], []
    for path in sorted(folder.glob(f"{sensor}/*"), key=lambda path: _number(path.name)):
        if _number(path.name) not in numbers:
            continue
        bands = []
        for band in SENSORS[sensor].band_names:
            with rasterio.open(path / f"{band}.tif") as file:
                values = file.read(1).astype(float) - 1000 * (sensor == S2 and _number(path.name) in OFFSET)
            if band in COARSE:  # pixel centers of 10 m in pixels of 20 m
                at = (np.arange(SIDE) + 0.5) / 2 - 0.5
                values = ndimage.map_coordinates(values, np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest")
            bands.append(values)
        images.append(bands)
        if sensor == S2:
            with rasterio.open(path / "scl.tif") as file:
                clouds.append(np.isin(file.read(1), [3, 8, 9, 10]).repeat(2, 0).repeat(2, 1))
    return np.array(images), np.array(clouds)


def distance_to(clouds):
    """[T, H, W] pixels to the nearest cloud, by comparing each pixel with all."""
    pixels = np.argwhere(np.ones(clouds.shape[1:]))
    return np.array([cdist(pixels, np.argwhere(c)).min(1).reshape(c.shape) for c in clouds])


def composite_of(url, method="median", sensor=S2, *, number=0, period="quarter", folder=None, **options):
    """folder: read its files directly, which is faster than the server."""
    found = find_acquisitions(sensor, around(), ALWAYS, url=url)
    for item in (item for one in found for item in one.items if folder):
        item.links = []
        for asset in item.assets.values():
            asset.href = asset.href.replace(f"{url}/files", str(folder))
    return composites_of(found, method, period, **options)[number]


def read(composite, grid, **options):
    dataset = read_composite(composite, grid, **options)
    return np.stack([dataset[band].values for band in composite.bands]), dataset["clear"].values, dataset["day"].values


@pytest.fixture(scope="module")
def grid(folder):
    return grid_of(next(folder.glob(f"{S2}/*0502/red.tif")))


@pytest.mark.parametrize("method", composites.METHODS)
@pytest.mark.parametrize("dilation, min_clear", [(0, 1), (3, 2)])
@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:Mean of empty")
def test_composites_are_those_of_plain_numpy(method, dilation, min_clear, folder, url, grid, monkeypatch):
    """Two of five days keep an offset; clouds are dilated; the same in one window, in many, and with Dask."""
    images, clouds = stack_of(folder, S2, range(5))
    away = distance_to(clouds)
    hidden = clouds | (away <= dilation)
    images = np.where(hidden[:, None], np.nan, images)
    days = np.array([(date.fromisoformat(day) - date(2023, 4, 1)).days for day in DAYS[:5]])
    count = (~hidden).sum(axis=0)
    assert (count.min(), count.max()) == (0, 5) or dilation
    if method == "median":
        expected, day = np.nanmedian(images, axis=0), np.nanmean(np.where(hidden, np.nan, days[:, None, None]), axis=0)
    else:
        apart = np.sqrt(np.nansum((images[:, None] - images[None]) ** 2, axis=2))  # [T, T, H, W]
        score = -(apart * ~hidden[:, None] * ~hidden[None]).sum(axis=1)
        if method == "best-pixel":
            score = 1 / (1 + np.exp(-0.2 * (np.minimum(away, 50) - 25)))
            score += np.exp(-0.5 * ((days + 0.5 - 91 / 2) / (91 / 4)) ** 2)[:, None, None]
        best = np.where(hidden, -np.inf, score).argmax(axis=0)
        expected, day = np.take_along_axis(images, best[None, None], axis=0)[0], days[best].astype(float)
    holes = count < min_clear
    expected[:, holes] = day[holes] = np.nan
    composite = composite_of(url, method, dilation=dilation, min_clear=min_clear, folder=folder)
    assert composite.label == "2023Q2" and len(composite.items) == 5
    values, clear, middle = read(composite, grid)
    np.testing.assert_array_equal(clear, count)
    np.testing.assert_array_equal(np.isnan(values).any(axis=0), holes)
    np.testing.assert_allclose(values, expected, atol=0.02)
    np.testing.assert_allclose(middle, day, atol=1e-4)
    if method == "median":  # where the neighborhood of a window does not count
        return
    monkeypatch.setattr(composites, "WINDOW_BYTES", 5 * 12 * 4 * 33**2)
    many, lazy = read(composite, grid), read_composite(composite, grid, chunks={"y": 33, "x": 64})
    np.testing.assert_array_equal(many[0], values)
    np.testing.assert_array_equal(many[2], middle)
    assert lazy["red"].chunks == ((33, 31), (64,))
    np.testing.assert_array_equal(lazy["red"].values, values[2])


def test_radar_is_averaged_in_power(folder, url):
    images, _ = stack_of(folder, S1, range(5))
    grid = grid_of(next(folder.glob(f"{S1}/*0502/vv.tif")))
    values, clear, _ = read(composite_of(url, sensor=S1, folder=folder), grid)
    np.testing.assert_allclose(values, images.mean(axis=0), rtol=1e-5)
    assert (clear == 5).all()
    decibel = SENSORS[S1].normalize(values) - SENSORS[S1].normalize(images.astype(np.float32)).mean(axis=0)
    assert decibel.mean() > 0.02  # the mean of decibels is lower than the decibels of the mean


def test_means_and_medians_skip_what_is_missing():
    stack = np.random.default_rng(0).normal(size=(7, 3, 20, 20)).astype(np.float32)
    stack[np.random.default_rng(1).random(stack.shape) < 0.4] = np.nan
    stack[:, :, 0] = np.nan
    assert np.isnan(composites.median(stack)[:, 0]).all() and np.isnan(composites.mean(stack)[:, 0]).all()
    rest = stack[:, :, 1:]
    for own, numpys in ((composites.median, np.nanmedian), (composites.mean, np.nanmean)):
        np.testing.assert_allclose(own(rest), numpys(rest, axis=0), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_vectors_are_embeddings_of_composites_on_their_middle_day(folder, url, tmp_path):
    options = dict(url=url, size=32, progress=False, composite="median", dilation=1)
    result = embed_area(CLAY, S2, around(1e-3), ALWAYS, tmp_path, **options)
    frame = result.vectors()
    quarters = [composite_of(url, number=n, dilation=1, folder=folder) for n in (0, 1)]
    quarters = {composite.label: composite for composite in quarters}
    assert {*frame["id"].str.split("_").str[2]} == {*quarters} == {"2023Q2", "2023Q3"}
    found = find_acquisitions(S2, around(), ALWAYS, url=url)
    tiles = {tile.id: tile for tile in tiles_of(found[0].footprint, tile_grid(found[0].archive, 32))}
    for row in frame.itertuples():
        composite, tile = quarters[row.id.split("_")[2]], tiles[row.tile]
        values, clear, day = read(composite, tile.geobox())
        passes = [item.datetime + timedelta(hours=tile.center[1] / 15) for item in composite.items]  # solar time
        assert row.time.date() == composite.period.start_time.date() + timedelta(days=round(float(np.nanmean(day))))
        assert abs(row.time.hour + row.time.minute / 60 + tile.center[1] / 15 - 10.5) < 0.1  # as the satellite passes
        assert {p.hour for p in passes} == {10} and row.clear_count == pytest.approx(clear.mean(), abs=1e-5)
        assert row.composite == "median a quarter, dilation 1, min_clear 1" and len(row.items) == len(composite.items)
        lat, lon = tile.center
        expected = CLAY.embed(values, S2, when=row.time, lat=lat, lon=lon, check=False)
        np.testing.assert_allclose(row.vector, expected.chip[0].numpy(), atol=4e-3)
    again = embed_area(CLAY, S2, around(1e-3), ALWAYS, tmp_path, **options)
    assert again.rows == 0 and again.skipped == result.jobs
    other = embed_area(CLAY, S2, around(1e-3), ALWAYS, tmp_path, **options | dict(min_clear=2))
    assert other.configuration != result.configuration
    fewer = embed_area(CLAY, S2, around(1e-3), "2023-05-10/2023-06-30", tmp_path, **options)  # other images, other rows
    assert fewer.configuration == result.configuration and fewer.rows == fewer.jobs


@pytest.mark.filterwarnings("ignore")
def test_dates_are_combined_as_mean_and_concatenation(url, tmp_path):
    options = dict(url=url, size=32, progress=False, pick="all", dense="cog", overlap=0, level=False)
    plain = embed_area(CLAY, S1, around(1e-3), ALWAYS, tmp_path, **options)
    frame, rasters = plain.vectors(), plain.rasters
    mean = embed_area(CLAY, S1, around(1e-3), ALWAYS, tmp_path, **options, combine="mean")
    concat = embed_area(CLAY, S1, around(1e-3), ALWAYS, tmp_path, **options, combine="concat")
    assert mean.rows == concat.rows == 0 and len(rasters) == len(DAYS)
    combined = {how: pq.read_table(result.rasters[-1]) for how, result in (("mean", mean), ("concat", concat))}
    for how, table in combined.items():
        for tile, vector in zip(table["tile"].to_pylist(), vectors.as_matrix(table), strict=True):
            dates = np.stack(frame[frame["tile"] == tile].sort_values("time")["vector"])
            assert len(dates) == len(DAYS)
            expected = dates.mean(axis=0) if how == "mean" else dates.reshape(-1)
            np.testing.assert_allclose(vector, expected, atol=4e-3)
    middle = combined["mean"]["time"][0].as_py()
    assert middle == pd.to_datetime(frame["time"]).groupby(frame["tile"]).mean().iloc[0].to_pydatetime()
    (path, _) = mean.rasters
    with rasterio.open(path) as file:
        assert path.name.startswith("mean-")
        np.testing.assert_allclose(file.read(), np.mean([rasterio.open(p).read() for p in rasters], axis=0), atol=8e-3)
    with pytest.raises(ContractError, match="one date per tile"):
        embed_area(CLAY, S1, around(1e-3), ALWAYS, tmp_path, **options | dict(pick="best", combine="mean"))


def test_faults_of_the_archive_are_survived(folder, url, grid, short_waits):
    expected = read(composite_of(url), grid)
    with FaultyServer(url) as server:
        composite = composite_of(server.url)
        server.faults = [["0520/red.tif", "500", 2], ["0621/scl.tif", "cut", 2], ["0603/nir.tif", "slow 1", 1]]
        again = read(composite, grid)
        assert not any(left for *_, left in server.faults)
        for one, other in zip(expected, again, strict=True):
            np.testing.assert_array_equal(one, other)
    with FaultyServer(url) as server:  # another address, of which GDAL has cached nothing
        composite, server.faults = composite_of(server.url), [["0603/nir.tif", "500", 10_000]]
        with pytest.raises(ContractError, match="nir.tif.*try again later"):  # never taken for missing pixels
            read(composite, grid)


def test_items_without_files_or_bands_are_left_out(folder, url, grid, short_waits):
    composite = composite_of(url, folder=folder)
    by_day = {_number(item.id): item for item in composite.items}
    expected = read(replace(composite, items=tuple(by_day[n] for n in (0, 2, 4))), grid)
    gone, without = by_day[1].clone(), by_day[3].clone()
    gone.assets["nir"].href = f"{url}/files/nothing.tif"
    del without.assets["nir08"]
    broken = replace(composite, items=(by_day[0], gone, by_day[2], without, by_day[4]))
    with pytest.warns(UserWarning, match="left out of the composite") as caught:
        rest = read(broken, grid)
    assert {"no longer holds" in str(w.message) for w in caught if "left out" in str(w.message)} == {True, False}
    for one, other in zip(expected, rest, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ContractError, match="no longer holds"):  # where nothing is left, the archive is at fault
        read(replace(composite, items=(gone,)), grid)


def test_options_are_checked(url):
    for options, match in (
        (dict(method="mean"), "median"),
        (dict(period="week"), "month"),
        (dict(min_clear=0), "hole"),
    ):
        with pytest.raises(ContractError, match=match):
            composite_of(url, **options)
    labels = [composite_of(url, period="month", number=n).label for n in range(3)]
    assert labels == ["202305", "202306", "202308"] and composite_of(url, period="year").label == "2023"
    assert composite_of(url).when == datetime.combine(date(2023, 5, 2), composite_of(url).when.time(), UTC)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_composite_is_nearer_to_the_cloudless_land_than_the_best_date(tmp_path):
    """Shipped weights, a year of 24 cloudy dates: cosines of class tokens with those of cloudless images of the middle of
    each quarter, days that neither of the two has seen."""
    clay, place, rng = Clay.load("clay-mini"), MiniWorld(0).place(30, 0, "val"), np.random.default_rng(0)
    layout = dict(sensors=(S2,), place=place, extent=2560)
    days, middles = [f"2023-{m:02d}-{d:02d}" for m in range(1, 13) for d in (5, 20)], (2, 5, 8, 11)
    write_archive(tmp_path / "cloudy", dates=days, clouds=rng.uniform(0.25, 0.8, 24), **layout)
    write_archive(tmp_path / "clear", dates=[f"2023-{m:02d}-15" for m in middles], **layout)
    area = (place.lon - 0.005, place.lat - 0.005, place.lon + 0.005, place.lat + 0.005)

    def embed(name, dates, **options):
        """{(tile, quarter): class token}"""
        out = tmp_path / f"{name}-{options.get('composite')}"
        options |= dict(size=64, progress=False, url=urls[name])
        frame = embed_area(clay, S2, area, dates, out, **options).vectors()
        return dict(zip(zip(frame["tile"], frame["time"].dt.quarter, strict=True), frame["vector"], strict=True))

    with serve_archive(tmp_path / "cloudy") as cloudy, serve_archive(tmp_path / "clear") as clear:
        urls = {"cloudy": cloudy, "clear": clear}
        truth, composite = embed("clear", ALWAYS, pick="all"), embed("cloudy", ALWAYS, composite="median")
        best = {}
        for m in middles:
            best |= embed("cloudy", f"2023-{m - 1:02d}-01/2023-{m + 1:02d}-28")
    keys = sorted({*truth} & {*composite} & {*best})
    gains = {tile: [] for tile, _ in keys}
    for key in keys:
        one, other = (v[key] @ truth[key] / np.linalg.norm(v[key]) for v in (composite, best))
        gains[key[0]].append((one - other) / np.linalg.norm(truth[key]))
    numbers, groups = zip(*((gain, n) for n, tile in enumerate(gains.values()) for gain in tile), strict=True)
    gain, low, high = interval(resample(numbers, groups))
    print(f"{len(keys)} tiles and quarters: {gain:+.3f} ({low:+.3f} to {high:+.3f})")
    assert len(gains) >= 4 and len(keys) >= 12 and low > 0
