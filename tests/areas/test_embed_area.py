"""An area's vectors are those of its pixels, wherever they come from; nothing is done twice, nothing mixed or lost."""

import json
import os
import resource
import signal
import warnings

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import shapely

from clay_lib import Clay, ClayConfig
from clay_lib.__main__ import main
from clay_lib.areas import area as area_work
from clay_lib.areas import vectors
from clay_lib.areas.archives import acquisition_from_file, find_acquisitions
from clay_lib.areas.area import embed_area
from clay_lib.areas.local import serve_archive, write_archive
from clay_lib.areas.reading import read_acquisition
from clay_lib.areas.search import open_vectors
from clay_lib.areas.tiles import grid_of, project, tiles_of
from clay_lib.data.check import ContractWarning
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError
from clay_lib.sensors import SENSORS, WORLD_SENSORS
from clay_lib.world.earth import Place

CLAY = Clay.random(ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12), seed=1)
S2, SIDE, SIZE = "sentinel-2-l2a", 200, 64
WEST, NORTH, CRS = 5_000_000 / 10 + 37 * 10, 5_540_000 + 110, "EPSG:32633"  # off the grid of tiles, on that of pixels
DATES = "2023-06-10", "2023-07-20"
QUIET = dict(size=SIZE, progress=False)


def some_scene(path, *, side=SIDE, seed=0, hole=True):
    """Plausible reflectance in a UTM raster; zeros, which are fill in all bands at once, in one corner."""
    mean, std = SENSORS[S2].statistics()
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(10, side // 8, side // 8)).repeat(8, 1).repeat(8, 2)
    pixels = mean[:, None, None] + std[:, None, None] * (0.4 * smooth + 0.1 * rng.normal(size=smooth.shape))
    pixels = pixels.clip(1, 10000).astype(np.uint16)
    if hole:
        pixels[:, :90, :90] = 0
    return write_raster(
        path, pixels, crs=CRS, transform=(10, 0, WEST, 0, -10, NORTH), nodata=0, descriptions=SENSORS[S2].band_names
    )


def run(out, scene, clay=CLAY, **options):
    return embed_area(clay, S2, None, "2023-06-10T10:15", out, scene=scene, **QUIET | options)


def by_hand(scene, tile):
    """Embedding of a tile read by rasterio alone: NaN beyond the file and where it holds fill."""
    with rasterio.open(scene) as file:
        west, south, east, north = tile.bounds
        window = rasterio.windows.from_bounds(west, south, east, north, file.transform)
        pixels = file.read(window=window, boundless=True, fill_value=0).astype(np.float32)
    pixels[pixels == 0] = np.nan
    if not np.isfinite(pixels).any():
        return None, 0.0
    lat, lon = tile.center
    made = CLAY.embed(pixels, S2, when="2023-06-10T10:15", lat=lat, lon=lon, check=False)
    return made, np.isfinite(pixels).mean()


@pytest.mark.filterwarnings("ignore:.*outcome is NaN")
def test_vectors_are_those_of_the_pixels(tmp_path):
    scene = some_scene(tmp_path / "scene.tif")
    result = run(tmp_path / "out", scene, dense="cog", overlap=0, level=False)
    frame = result.vectors().set_index("tile")
    acquisition = acquisition_from_file(scene, S2)
    tiles = tiles_of(acquisition.footprint, grid_of(acquisition.archive, SIZE))
    assert result.jobs == len(tiles) == 16 and result.rows == len(frame)
    with rasterio.open(result.rasters[0]) as file:
        raster, box = file.read(), file.transform
    seen = 0
    for tile in tiles:
        made, share = by_hand(scene, tile)
        if made is None or made.chip.isnan().any():
            assert tile.id not in frame.index
            continue
        row = frame.loc[tile.id]
        np.testing.assert_allclose(row["vector"], made.chip[0].numpy(), atol=4e-3)  # float16, numbers up to 4
        np.testing.assert_allclose(row["patch_mean"], made.mean[0].numpy(), atol=4e-3)
        assert row["valid_share"] == pytest.approx(share, abs=1e-6)
        corners = project(shapely.box(*tile.bounds), tile.crs, "EPSG:4326")
        assert row["geometry"].equals_exact(corners.normalize(), 1e-9) or row["geometry"].equals(corners)
        column, line = (round(v) for v in ~box @ (tile.bounds[0], tile.bounds[3]))
        there = np.moveaxis(raster[:, line : line + 8, column : column + 8], 0, -1)
        np.testing.assert_allclose(there, made.patches[0].numpy(), atol=8e-3)
        seen += 1
    assert seen == result.rows and 0 < result.empty == len(tiles) - seen
    assert frame["sensor"].unique().tolist() == [S2] and frame["gsd"].unique().tolist() == [10]
    assert str(frame["time"].iloc[0]) == "2023-06-10 10:15:00+00:00" and frame["items"].iloc[0].tolist() == ["scene"]
    assert frame["configuration"].unique().tolist() == [result.configuration]


def test_a_rerun_is_free_and_another_configuration_stays_apart(tmp_path, capsys):
    scene, out = some_scene(tmp_path / "scene.tif"), tmp_path / "out"
    first = run(out, scene)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = run(out, scene)
    assert (again.rows, again.empty, again.skipped) == (0, 0, first.jobs)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == files
    before = vectors.read_vectors(out)
    other = run(out, scene, store="int8")
    assert other.configuration != first.configuration and other.rows == first.rows
    assert first.configuration in capsys.readouterr().out  # not without a word
    with pytest.raises(ContractError, match="several configurations"):
        vectors.read_vectors(out)
    assert vectors.read_vectors(out, configuration=first.configuration).equals(before)
    told = [json.loads(path.read_text()) for path in out.glob("configuration-*.json")]
    assert {about["store"] for about in told} == {"float16", "int8"}
    a, b = (vectors.as_matrix(vectors.read_vectors(out, configuration=r.configuration)) for r in (first, other))
    assert np.abs(a - b).max() < 0.02 * np.abs(a).max()
    changed = Clay.random(CLAY.model.config, seed=2)
    assert run(out, scene, clay=changed).configuration not in (first.configuration, other.configuration)


def test_another_hour_and_another_source_are_embedded_anew(tmp_path, capsys):
    scene, link, out = some_scene(tmp_path / "scene.tif"), tmp_path / "link.vrt", tmp_path / "out"
    rasterio.shutil.copy(scene, link, driver="VRT")
    first = run(out, link)
    hour = embed_area(CLAY, S2, None, "2023-06-10T07:45", out, scene=link, **QUIET)
    assert hour.rows == first.rows and hour.skipped == 0
    assert f"also holds {first.rows} vectors of these tiles and days" in capsys.readouterr().out
    some_scene(scene, seed=1)  # the VRT itself stays as it is
    changed = run(out, link)
    assert changed.rows == first.rows and run(out, link).rows == 0
    frame = changed.vectors()
    assert sorted(frame["time"].dt.hour.value_counts().items()) == [(7, first.rows), (10, 2 * first.rows)]


def test_some_bands_and_all_are_two_configurations(tmp_path):
    scene, out = some_scene(tmp_path / "scene.tif", hole=False), tmp_path / "out"
    with rasterio.open(scene) as file:
        two = write_raster(tmp_path / "two.tif", file.read([3, 7]), crs=CRS, transform=tuple(file.transform)[:6],
                           descriptions=["red", "nir"])  # fmt: skip
    assert run(out, scene).configuration != run(out, two).configuration
    with pytest.raises(ContractError, match="cannot be compared"):
        open_vectors(out)


def test_zeros_without_a_tag_are_no_measurement_in_any_batch(tmp_path):
    tagged, plain = some_scene(tmp_path / "scene.tif"), tmp_path / "plain.tif"
    with rasterio.open(tagged) as file:
        write_raster(plain, file.read(), crs=CRS, transform=tuple(file.transform)[:6],
                     descriptions=file.descriptions)  # fmt: skip
    wanted = run(tmp_path / "tagged", tagged).vectors().set_index("tile")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ContractWarning)
        frames = [run(tmp_path / str(n), plain, batch_size=n).vectors().set_index("tile") for n in (1, 8)]
    for frame in frames:
        assert frame.index.tolist() == wanted.index.tolist() and len(frame) < 16
        assert frame["valid_share"].tolist() == wanted["valid_share"].tolist()
        np.testing.assert_allclose(np.stack(frame["vector"]), np.stack(wanted["vector"]), atol=4e-3)


def test_what_the_contract_refuses_is_told_in_its_own_words(tmp_path):
    with rasterio.open(some_scene(tmp_path / "scene.tif")) as file:
        share = file.read().astype(np.float32) / 10_000
    write_raster(tmp_path / "share.tif", share, crs=CRS, transform=(10, 0, WEST, 0, -10, NORTH),
                 descriptions=SENSORS[S2].band_names)  # fmt: skip
    with pytest.raises(ContractError, match="tiles failed") as told:
        run(tmp_path / "out", tmp_path / "share.tif")
    assert told.value.field == "pixels" and "scaled to 0..1" in told.value.cause
    assert not {"server", "again"} & set(str(told.value).replace(";", " ").split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_keeps_what_is_whole(tmp_path, monkeypatch, number):
    scene, batches, embed_batch = some_scene(tmp_path / "scene.tif", hole=False), [], area_work.embed_batch

    def interrupted(*args):
        batches.append(args)
        if len(batches) == 4:
            os.kill(os.getpid(), number)
        return embed_batch(*args)

    if number == signal.SIGINT:  # which a shell that runs us in the background has us ignore
        signal.signal(number, signal.default_int_handler)
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(area_work, "embed_batch", interrupted)
        run(tmp_path / "out", scene, batch_size=3)
    assert signal.getsignal(number) is before
    result = run(tmp_path / "out", scene, batch_size=3)
    assert result.skipped == 9 and result.rows == result.jobs - 9
    run(tmp_path / "whole", scene, batch_size=3)
    assert vectors.read_vectors(tmp_path / "out").equals(vectors.read_vectors(tmp_path / "whole"))


def test_a_larger_area_embeds_only_what_is_new(tmp_path):
    scene = some_scene(tmp_path / "scene.tif", hole=False)
    west, south, east, north = acquisition_from_file(scene, S2).footprint.bounds
    out, half = tmp_path / "out", (west, south, (west + east) / 2, north)
    asked = dict(scene=scene, dense="cog", components=2, **QUIET)
    first = embed_area(CLAY, S2, half, "2023-06-10T10:15", out, **asked)
    second = embed_area(CLAY, S2, (west, south, east, north), "2023-06-10T10:15", out, **asked)
    assert second.skipped == first.rows and second.rows == second.jobs - first.rows > 0
    whole = embed_area(CLAY, S2, (west, south, east, north), "2023-06-10T10:15", tmp_path / "whole", **asked)
    a, b = (vectors.read_vectors(folder) for folder in (out, tmp_path / "whole"))
    assert a["id"].to_pylist() == b["id"].to_pylist()
    np.testing.assert_allclose(vectors.as_matrix(a), vectors.as_matrix(b), atol=4e-3)  # other batches: to rounding
    with rasterio.open(second.rasters[0]) as one, rasterio.open(whole.rasters[0]) as two:
        assert one.transform == two.transform
        np.testing.assert_allclose(one.read(), two.read(), atol=0.05)


def test_vectors_do_not_depend_on_dense_features(tmp_path):
    scene = some_scene(tmp_path / "scene.tif", hole=False)
    plain, with_dense = run(tmp_path / "a", scene), run(tmp_path / "b", scene, dense="zarr", overlap=16)
    assert plain.configuration == with_dense.configuration
    a, b = (vectors.read_vectors(tmp_path / name) for name in "ab")
    assert a.equals(b)
    later = run(tmp_path / "a", scene, dense="zarr", overlap=16)  # asked for afterwards: no row twice
    assert later.rows == 0 and vectors.read_vectors(tmp_path / "a").equals(a) and later.rasters[0].exists()
    assert set(later.measures[later.rasters[0].name]) == {"seam_step", "tiles", "patches"}


def test_forecast_fetches_nothing_and_tells_the_truth(tmp_path, monkeypatch):
    scene = some_scene(tmp_path / "scene.tif")
    with monkeypatch.context() as patch:
        patch.setattr("clay_lib.areas.reading.read_acquisition", None)  # whoever reads fails
        told = run(tmp_path / "out", scene, dense="cog", overlap=16, forecast=True)
    assert not (tmp_path / "out").exists() and told.jobs == 16 and told.done == 0 and told.seconds > 0
    assert 0.5 < told.read / scene.stat().st_size < 4
    result = run(tmp_path / "out", scene, dense="cog", overlap=16)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert 0.3 < written / told.write < 3, (written, told.write)
    assert run(tmp_path / "out", scene, dense="cog", overlap=16, forecast=True).done == result.jobs


def test_the_command(tmp_path, capsys):
    scene = some_scene(tmp_path / "scene.tif")
    CLAY.save(tmp_path / "tiny.safetensors")
    command = ["embed", str(tmp_path / "out"), "--scene", str(scene), "--dates", "2023-06-10T10:15", "--size", "64"]
    command += ["--weights", str(tmp_path / "tiny.safetensors"), "--dense", "cog", "--components", "2"]
    assert main([*command, "--forecast"]) == 0
    assert "16 to embed" in capsys.readouterr().out
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "vectors written" in told and "checkerboard" in told and "pca-2.tif" in told
    assert vectors.read_vectors(tmp_path / "out")["model"].unique().to_pylist() == ["tiny"]
    assert main([*command, "--area", "10,50,11,51"]) == 2 and "beside the scene" in capsys.readouterr().err
    assert main([*command, "--size", "60"]) == 2 and "whole patches" in capsys.readouterr().err
    counts = np.random.default_rng(0).integers(1, 256, (10, SIDE, SIDE)).astype(np.uint16)
    write_raster(scene, counts, crs=CRS, transform=(10, 0, WEST, 0, -10, NORTH), descriptions=SENSORS[S2].band_names)
    told = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda *of: told.append(warnings.formatwarning(*of[:4]))  # as it would be on stderr
        assert main([*command, "--batch-size", "1"]) == 0  # 16 batches, all of them unlikely
    (line,) = [text for text in told if "8-bit" in text]
    assert line.startswith("clay: warning: pixels: found") and line.count("\n") == 1 and ".py" not in line


def test_a_scene_that_cannot_be_read_to_its_end(tmp_path):
    scene, out = some_scene(tmp_path / "scene.tif", side=600), tmp_path / "out"
    good = run(tmp_path / "good", scene)
    whole, stat = scene.read_bytes(), scene.stat()
    middle = slice(len(whole) // 3, len(whole) // 2)
    scene.write_bytes(
        whole[: middle.start] + bytes(middle.stop - middle.start) + whole[middle.stop :]
    )  # a bad download
    os.utime(scene, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ContractError, match="tiles failed.*truncated download.*asks again") as told:
        run(out, scene)
    assert "ContractError(" not in str(told.value) and str(told.value).count("expected") == 1
    scene.write_bytes(whole)
    os.utime(scene, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    kept = vectors.done_ids(out, S2, good.configuration)
    mended = run(out, scene)
    assert mended.skipped == len(kept[0] | kept[1]) and mended.rows > 0
    a, b = (vectors.read_vectors(folder) for folder in (out, tmp_path / "good"))
    assert a["id"].to_pylist() == b["id"].to_pylist()
    np.testing.assert_allclose(vectors.as_matrix(a), vectors.as_matrix(b), atol=4e-3)


def test_a_full_disk_ends_in_one_clear_error_and_goes_on(tmp_path):
    """A limit to the size of a file stands for it: no part fits, the raster does not fit, all fits."""
    scene, out = some_scene(tmp_path / "scene.tif"), tmp_path / "out"
    whole = run(tmp_path / "whole", scene, dense="cog", overlap=16)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in (3_000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ContractError, match="(?s)out: found .*make room") as told:
                run(out, scene, dense="cog", overlap=16)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert "\n" not in str(told.value)
        assert not [path for path in out.rglob("*") if ".part-" in path.name or path.suffix == ".tif"]
    assert vectors.read_vectors(out).num_rows  # the rows fitted the second time
    result = run(out, scene, dense="cog", overlap=16)
    assert result.rows == 0 and vectors.read_vectors(out).equals(vectors.read_vectors(tmp_path / "whole"))
    with rasterio.open(result.rasters[0]) as one, rasterio.open(whole.rasters[0]) as two:
        np.testing.assert_array_equal(one.read(), two.read())


def test_one_job_a_folder(tmp_path):
    from clay_lib.areas.area import only_one

    scene = some_scene(tmp_path / "scene.tif")
    with only_one(tmp_path / "out"), pytest.raises(ContractError, match="another job"):
        run(tmp_path / "out", scene)
    assert run(tmp_path / "out", scene).rows > 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, items) of an archive of all sensors, 64 pixels a side, two dates, the first cloudier than the second."""
    folder = write_archive(
        tmp_path_factory.mktemp("archive"), sensors=WORLD_SENSORS, place=Place(50.05, 14.4), extent=1, dates=DATES,
        clouds=(0.5, 0.0),
    )  # fmt: skip
    with serve_archive(folder) as address:
        yield address


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sensor", WORLD_SENSORS)
def test_from_an_archive_to_files_that_others_open(served, tmp_path, sensor):
    """Search, read, embed, GeoParquet, GeoTIFF, of every sensor's profile against real servers."""
    area = shapely.Point(14.4, 50.05).buffer(1e-4)
    acquisitions = find_acquisitions(sensor, area, f"{DATES[0]}/{DATES[1]}", url=served)
    area = acquisitions[0].footprint
    asked = dict(url=served, size=32, dense="cog", overlap=8, components=2, progress=False)
    result = embed_area(CLAY, sensor, area, f"{DATES[0]}/{DATES[1]}", tmp_path / "best", **asked)
    grid = grid_of(acquisitions[0].archive, 32)
    tiles = {tile.id: tile for tile in tiles_of(area, grid)}
    assert 4 <= result.rows + result.empty == result.jobs <= len(tiles)
    frame = result.vectors()
    by_id = {acquisition.when.date(): acquisition for acquisition in acquisitions}
    for _, row in frame.iterrows():
        tile, acquisition = tiles[row["tile"]], by_id[row["time"].date()]
        assert row["items"].tolist() == list(acquisition.ids) and row["sensor"] == sensor
        box = tile.geobox()
        x, y = zip(box.affine @ (0, 0), box.affine @ (32, 32), strict=True)
        lon, lat = pyproj.Transformer.from_crs(tile.crs, 4326, always_xy=True).transform(x, y)
        west, south, east, north = row["geometry"].bounds
        pixel = grid.gsd / 111_320
        assert abs(min(lon) - west) < 32 * pixel and row["geometry"].buffer(pixel / 100).covers(
            shapely.Point(lon[0], lat[0])
        )
        dataset = read_acquisition(acquisition, box)
        made = CLAY.embed(dataset, sensor, when=row["time"], lat=tile.center[0], lon=tile.center[1], check=False)
        # A raster in another CRS is warped, which GDAL does to an eighth of a pixel, by the window that is read.
        np.testing.assert_allclose(row["vector"], made.chip[0].numpy(), atol=0.02 if sensor == "linz" else 4e-3)
    with rasterio.open(result.rasters[0]) as file:
        step = 8 * grid.gsd
        corner = [(v - a) / step for v, a in zip((file.transform.c, file.transform.f), grid.anchor, strict=True)]
        np.testing.assert_allclose(corner, np.round(corner), atol=1e-6)
        assert file.transform.a == pytest.approx(step) and file.count == 2 and np.isfinite(file.read()).any()
    assert geopandas.read_parquet(tmp_path / "best" / "vectors").crs == "EPSG:4326"
    both = embed_area(
        CLAY, sensor, area, f"{DATES[0]}/{DATES[1]}", tmp_path / "all", url=served, pick="all", size=32, progress=False
    )
    assert both.jobs == result.jobs * len(acquisitions)
