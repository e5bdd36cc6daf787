"""Embedding an area: vectors match the pixels of any source; reruns, resuming, forecasts and errors."""

import json
import os
import signal
import warnings
from contextlib import contextmanager

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from archive_scenes import ALWAYS, around

from clay_lib import Clay, ClayConfig
from clay_lib.__main__ import main
from clay_lib.areas import jobs, vectors
from clay_lib.areas.archives import acquisition_from_file, find_acquisitions
from clay_lib.areas.area import embed_area
from clay_lib.areas.reading import read_acquisition
from clay_lib.areas.tiles import grid_of, project, tiles_of
from clay_lib.clay import TOKENS
from clay_lib.data.check import ContractWarning
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError
from clay_lib.files import locked
from clay_lib.sensors import SENSORS, WORLD_SENSORS

CLAY = Clay.random(ClayConfig(24, 1, 2, 8, 2, 16, 1, 2, 8, 2, teacher_dim=12), seed=1)
S2, SIDE, SIZE, WHEN = "sentinel-2-l2a", 200, 64, "2023-06-10T10:15"
WEST, NORTH = 500_370, 5_540_110  # aligned with pixels of the grid, but not with tiles
PLACE = dict(crs="EPSG:32633", transform=(10, 0, WEST, 0, -10, NORTH), descriptions=SENSORS[S2].band_names)
QUIET = dict(size=SIZE, progress=False)


def make_scene(path, *, side=SIDE, seed=0, hole=True):
    """Plausible reflectance in a UTM raster; with a hole, zeros (nodata) in all bands of one corner."""
    mean, std = SENSORS[S2].statistics()
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(10, side // 8, side // 8)).repeat(8, 1).repeat(8, 2)
    pixels = mean[:, None, None] + std[:, None, None] * (0.4 * smooth + 0.1 * rng.normal(size=smooth.shape))
    pixels = pixels.clip(1, 10000).astype(np.uint16)
    if hole:
        pixels[:, :90, :90] = 0
    return write_raster(path, pixels, nodata=0, **PLACE)


def run(out, scene, clay=CLAY, when=WHEN, **options):
    return embed_area(clay, S2, None, when, out, scene=scene, **QUIET | options)


def assert_same_vectors(one, other):
    """Assert the same ids, and vectors equal to float16 rounding, as from different batches."""
    first, second = (vectors.read_vectors(folder) for folder in (one, other))
    assert first["id"].to_pylist() == second["id"].to_pylist()
    np.testing.assert_allclose(vectors.as_matrix(first), vectors.as_matrix(second), atol=4e-3)


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path / "scene.tif")


@pytest.fixture
def full_scene(tmp_path):
    return make_scene(tmp_path / "full.tif", hole=False)


@pytest.mark.filterwarnings("ignore:.*result is NaN")
def test_vectors_and_rasters_are_embeddings_of_the_pixels(scene, tmp_path):
    """Compare every tile with `Clay.embed` of pixels read by rasterio; empty tiles cause no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = run(tmp_path / "out", scene, dense="cog", overlap=0, level=False)
    frame = result.vectors().set_index("tile")
    acquisition = acquisition_from_file(scene, S2)
    tiles = tiles_of(acquisition.footprint, grid_of(acquisition.archive, SIZE))
    assert result.jobs == len(tiles) == 16 and result.rows == len(frame) > 0
    assert result.empty == len(tiles) - len(frame) > 0
    with rasterio.open(result.rasters[0]) as file:
        raster, transform = file.read(), file.transform
    for tile in tiles:
        with rasterio.open(scene) as file:
            window = rasterio.windows.from_bounds(*tile.bounds, file.transform)
            pixels = file.read(window=window, boundless=True, fill_value=0).astype(np.float32)
        pixels[pixels == 0] = np.nan
        lat, lon = tile.center
        expected = CLAY.embed(pixels, S2, when=WHEN, lat=lat, lon=lon, check=False)
        if expected.chip.isnan().any():
            assert tile.id not in frame.index
            continue
        row = frame.loc[tile.id]
        np.testing.assert_allclose(row["vector"], expected.chip[0].numpy(), atol=4e-3)  # float16, numbers up to 4
        np.testing.assert_allclose(row["patch_mean"], expected.mean[0].numpy(), atol=4e-3)
        assert row["valid_share"] == pytest.approx(np.isfinite(pixels).mean(), abs=1e-6)
        assert row["geometry"].equals(project(shapely.box(*tile.bounds), tile.crs, "EPSG:4326"))
        x, y = (round(v) for v in ~transform @ (tile.bounds[0], tile.bounds[3]))
        patches = np.moveaxis(raster[:, y : y + 8, x : x + 8], 0, -1)
        np.testing.assert_allclose(patches, expected.patches[0].numpy(), atol=8e-3)
    assert set(frame["sensor"]) == {S2} and set(frame["gsd"]) == {10}
    assert set(frame["configuration"]) == {result.configuration}
    assert str(frame["time"].iloc[0]) == "2023-06-10 10:15:00+00:00" and frame["items"].iloc[0].tolist() == ["scene"]


def test_reruns_skip_finished_tiles_and_configurations_are_stored_separately(scene, tmp_path, capsys):
    out = tmp_path / "out"
    first = run(out, scene)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = run(out, scene)
    assert (again.rows, again.empty, again.skipped) == (0, 0, first.jobs)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == files
    before = vectors.read_vectors(out)
    other = run(out, scene, store="int8")
    assert other.configuration != first.configuration and other.rows == first.rows
    assert f"other configurations, stored separately: {first.configuration}" in capsys.readouterr().out
    assert vectors.read_vectors(out, configuration=first.configuration).equals(before)
    assert {json.loads(path.read_text())["store"] for path in out.glob("configuration-*.json")} == {"float16", "int8"}
    a, b = (vectors.as_matrix(vectors.read_vectors(out, configuration=r.configuration)) for r in (first, other))
    assert np.abs(a - b).max() < 0.02 * np.abs(a).max()
    changed = Clay.random(CLAY.model.config, seed=2)
    assert run(out, scene, clay=changed).configuration not in (first.configuration, other.configuration)


def test_another_hour_or_a_changed_source_file_is_embedded_again(scene, tmp_path, capsys):
    link, out = tmp_path / "link.vrt", tmp_path / "out"
    rasterio.shutil.copy(scene, link, driver="VRT")
    first = run(out, link)
    hour = run(out, link, when="2023-06-10T07:45")
    assert hour.rows == first.rows and hour.skipped == 0
    assert f"also holds {first.rows} vectors of these tiles and days" in capsys.readouterr().out
    make_scene(scene, seed=1)  # the VRT itself does not change
    changed = run(out, link)
    assert changed.rows == first.rows and run(out, link).rows == 0
    hours = changed.vectors()["time"].dt.hour.value_counts()
    assert hours.to_dict() == {7: first.rows, 10: 2 * first.rows}


def test_place_and_date_are_measured_and_can_be_left_out(full_scene, tmp_path):
    plain, out = run(tmp_path / "plain", full_scene), tmp_path / "out"
    assert set(plain.effect) == {"place", "date"} and "--without place" in str(plain)
    assert all(-1 < cosine < 1 and share > 0 for cosine, share in plain.effect.values())
    without = run(out, full_scene, without="date, place")
    assert without.effect == {} and without.configuration != plain.configuration
    (description,) = out.glob("configuration-*.json")
    assert json.loads(description.read_text())["without"] == "date,place"
    acquisition = acquisition_from_file(full_scene, S2)
    row = without.vectors().query("valid_share == 1").iloc[0]
    (tile,) = [t for t in tiles_of(acquisition.footprint, grid_of(acquisition.archive, SIZE)) if t.id == row["tile"]]
    pixels = read_acquisition(acquisition, tile.geobox()).to_array().values  # without coordinates
    np.testing.assert_allclose(row["vector"], CLAY.embed(pixels, S2, gsd=10).chip[0].numpy(), atol=4e-3)
    with pytest.raises(ContractError, match="take another folder"):
        run(out, full_scene)
    with pytest.raises(ContractError, match="place, date or place,date"):
        run(out, full_scene, without="time")


def test_bands_scale_and_offset_of_a_scene_are_given_as_to_the_model(full_scene, tmp_path):
    out, names = tmp_path / "out", SENSORS[S2].band_names
    with rasterio.open(full_scene) as file:
        order = [9, *range(9)]
        shares = (file.read()[order].astype(np.float32) + 1000) / 10_000
    other = write_raster(tmp_path / "shares.tif", shares, crs=PLACE["crs"], transform=PLACE["transform"])
    given = dict(bands=[names[k] for k in order], scale=10_000.0, offset=-1000.0)
    run(tmp_path / "plain", full_scene)
    result = run(out, other, **given)
    first, second = (vectors.as_matrix(vectors.read_vectors(folder)) for folder in (tmp_path / "plain", out))
    np.testing.assert_allclose(first, second, atol=8e-3)
    assert run(out, other, **given).rows == 0 and run(out, other, **given | dict(offset=-900.0)).rows == result.rows
    with pytest.raises(ContractError, match="an archive states its own"):
        embed_area(CLAY, S2, (14, 50, 14.1, 50.1), WHEN, out, scale=2.0)


def test_untagged_zeros_are_nodata_at_any_batch_size(scene, tmp_path):
    with rasterio.open(scene) as file:
        untagged = write_raster(tmp_path / "untagged.tif", file.read(), **PLACE)
    expected = run(tmp_path / "tagged", scene).vectors().set_index("tile")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ContractWarning)
        frames = [run(tmp_path / str(n), untagged, batch_size=n).vectors().set_index("tile") for n in (1, 8)]
    for frame in frames:
        assert frame.index.tolist() == expected.index.tolist() and len(frame) < 16
        assert frame["valid_share"].tolist() == expected["valid_share"].tolist()
        np.testing.assert_allclose(np.stack(frame["vector"]), np.stack(expected["vector"]), atol=4e-3)


def test_contract_errors_keep_their_cause(scene, tmp_path):
    with rasterio.open(scene) as file:
        write_raster(tmp_path / "share.tif", file.read().astype(np.float32) / 10_000, **PLACE)
    with pytest.raises(ContractError, match="tiles failed") as caught:
        run(tmp_path / "out", tmp_path / "share.tif")
    assert caught.value.field == "pixels" and "scaled to 0..1" in caught.value.cause
    assert "server" not in str(caught.value) and "again" not in str(caught.value)


def test_batches_are_what_the_model_takes_at_once_and_stay_so_in_an_area(full_scene, tmp_path, monkeypatch):
    sizes, embed_batch = [], jobs.embed_batch

    def counted(clay, read, *args):
        sizes.append(len(read))
        return embed_batch(clay, read, *args)

    def run_batches(out, **options):
        sizes.clear()
        run(tmp_path / out, full_scene, **options)
        return list(sizes)

    monkeypatch.setattr(jobs, "embed_batch", counted)
    assert run_batches("all") == [16]  # 64 tiles at once would be 4,096 patches; the area has 16
    assert run_batches("given", batch_size=5) == [5, 5, 5, 1]
    monkeypatch.setattr(jobs, "BLOCK", 2 * SIZE)
    assert run_batches("block") == [4] * 4  # no more than a read brings
    monkeypatch.setitem(TOKENS, "cpu", 3 * (SIZE // 8) ** 2)
    assert run_batches("three") == [3] * 5 + [1]
    (description,) = (tmp_path / "given").glob("configuration-*.json")
    (rows,) = (tmp_path / "given").glob("vectors/**/*.parquet")
    rows.unlink()
    assert run_batches("given") == [5, 5, 5, 1]  # as it was begun
    begun = json.loads(description.read_text())
    description.write_text(json.dumps({key: value for key, value in begun.items() if key != "batch_size"}))
    (rows,) = (tmp_path / "given").glob("vectors/**/*.parquet")
    rows.unlink()
    assert run_batches("given") == [8, 8]  # begun by an earlier version


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_jobs_keep_finished_batches(full_scene, tmp_path, monkeypatch, number):
    batches, embed_batch = [], jobs.embed_batch

    def interrupted(*args):
        batches.append(args)
        if len(batches) == 4:
            os.kill(os.getpid(), number)
        return embed_batch(*args)

    if number == signal.SIGINT:  # ignored in a process that a shell runs in the background
        signal.signal(number, signal.default_int_handler)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs, "embed_batch", interrupted)
        run(tmp_path / "out", full_scene, batch_size=3)
    assert signal.getsignal(number) is handler
    result = run(tmp_path / "out", full_scene, batch_size=3)
    assert result.skipped == 9 and result.rows == result.jobs - 9
    run(tmp_path / "uninterrupted", full_scene, batch_size=3)
    assert vectors.read_vectors(tmp_path / "out").equals(vectors.read_vectors(tmp_path / "uninterrupted"))


def test_a_larger_area_embeds_only_new_tiles(full_scene, tmp_path):
    west, south, east, north = area = acquisition_from_file(full_scene, S2).footprint.bounds
    out, half = tmp_path / "out", (west, south, (west + east) / 2, north)
    options = dict(scene=full_scene, dense="cog", components=2, **QUIET)
    first = embed_area(CLAY, S2, half, WHEN, out, **options)
    second = embed_area(CLAY, S2, area, WHEN, out, **options)
    assert second.skipped == first.rows and second.rows == second.jobs - first.rows > 0
    complete = embed_area(CLAY, S2, area, WHEN, tmp_path / "complete", **options)
    assert_same_vectors(out, tmp_path / "complete")
    with rasterio.open(second.rasters[0]) as one, rasterio.open(complete.rasters[0]) as two:
        assert one.transform == two.transform
        np.testing.assert_allclose(one.read(), two.read(), atol=0.05)


def test_what_another_process_finished_before_the_lock_was_free_is_not_embedded_again(
    full_scene, tmp_path, monkeypatch
):
    first = []

    @contextmanager
    def slow_lock(path, task):
        if not first:  # the other process, which ends at this moment
            first.append(True)
            first.append(run(tmp_path, full_scene))
        with locked(path, task):
            yield

    monkeypatch.setattr("clay_lib.areas.area.locked", slow_lock)
    second = run(tmp_path, full_scene)
    assert first[1].rows == second.skipped > 0 == second.rows
    ids = vectors.read_vectors(tmp_path)["id"].to_pylist()
    assert len(ids) == len({*ids}) == first[1].rows


def test_vectors_do_not_depend_on_dense_features(full_scene, tmp_path):
    plain, with_dense = run(tmp_path / "a", full_scene), run(tmp_path / "b", full_scene, dense="zarr", overlap=16)
    assert plain.configuration == with_dense.configuration
    expected = vectors.read_vectors(tmp_path / "a")
    assert expected.equals(vectors.read_vectors(tmp_path / "b"))
    rerun = run(tmp_path / "a", full_scene, dense="zarr", overlap=16)  # adds only the raster
    assert rerun.rows == 0 and vectors.read_vectors(tmp_path / "a").equals(expected) and rerun.rasters[0].exists()
    seams = rerun.seams[rerun.rasters[0].name]
    assert set(seams) == {"seam_step", "tiles", "patches"}
    assert "nan" not in str(rerun) and f"tiles {seams['tiles']:.2f} times" in str(rerun)


def test_forecast_reads_no_pixels_and_is_within_a_factor_of_four(scene, tmp_path, monkeypatch):
    out, options = tmp_path / "out", dict(dense="cog", overlap=16)
    with monkeypatch.context() as patch:
        patch.setattr("clay_lib.areas.reading.read_acquisition", None)  # calling it fails
        forecast = run(out, scene, forecast=True, **options)
    assert not out.exists() and forecast.jobs == 16 and forecast.done == 0 and forecast.seconds > 0
    assert 0.5 < forecast.read / scene.stat().st_size < 4
    result = run(out, scene, **options)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert 0.3 < written / forecast.write < 3, (written, forecast.write)
    assert run(out, scene, forecast=True, **options).done == result.jobs


def test_command(scene, tmp_path, capsys):
    CLAY.save(tmp_path / "tiny.safetensors")
    command = ["embed", str(tmp_path / "out"), "--scene", str(scene), "--dates", WHEN, "--size", "64"]
    command += ["--weights", str(tmp_path / "tiny.safetensors"), "--dense", "cog", "--components", "2"]
    assert main([*command, "--forecast"]) == 0
    assert "16 to embed" in capsys.readouterr().out
    assert main([*command, "--overlap", "-1"]) == 0
    printed = capsys.readouterr().out
    assert "vectors written" in printed and "checkerboard" in printed and "-o8/best-32633-pca-2.tif" in printed
    assert vectors.read_vectors(tmp_path / "out")["model"].unique().to_pylist() == ["tiny"]
    assert main([*command, "--area", "10,50,11,51"]) == 2 and "outside the scene" in capsys.readouterr().err
    assert main([*command, "--size", "60"]) == 2 and "multiples of the patch" in capsys.readouterr().err
    write_raster(scene, np.random.default_rng(0).integers(1, 256, (10, SIDE, SIDE)).astype(np.uint16), **PLACE)
    messages = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda *args: messages.append(warnings.formatwarning(*args[:4]))  # as printed to stderr
        assert main([*command, "--batch-size", "1"]) == 0  # 16 batches, all with implausible pixels
    (message,) = [message for message in messages if "8-bit" in message]
    assert message.startswith("clay: warning: pixels: found") and message.count("\n") == 1 and ".py" not in message


def test_a_truncated_scene_is_reported_and_resumes_once_repaired(tmp_path):
    scene, out = make_scene(tmp_path / "scene.tif", side=600), tmp_path / "out"
    intact = run(tmp_path / "intact", scene)
    content, stat = scene.read_bytes(), scene.stat()
    first, last = len(content) // 3, len(content) // 2
    scene.write_bytes(content[:first] + bytes(last - first) + content[last:])  # a bad download
    os.utime(scene, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ContractError, match="tiles failed.*truncated download.*repeat the command") as caught:
        run(out, scene)
    assert "ContractError(" not in str(caught.value) and str(caught.value).count("expected") == 1
    scene.write_bytes(content)
    os.utime(scene, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    rows, empty = vectors.done_ids(out, S2, intact.configuration)
    repaired = run(out, scene)
    assert repaired.skipped == len(rows | empty) and repaired.rows > 0
    assert_same_vectors(out, tmp_path / "intact")


def test_a_full_disk_is_reported_in_one_line_and_resumes(scene, tmp_path):
    """Simulated by limits of the file size: no part fits, only the raster does not, everything fits."""
    resource = pytest.importorskip("resource")  # not on Windows
    out, options = tmp_path / "out", dict(dense="cog", overlap=16)
    complete = run(tmp_path / "complete", scene, **options)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in (3_000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(ContractError, match="(?s)out: found .*make room") as caught:
                run(out, scene, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert "\n" not in str(caught.value)
        assert not [path for path in out.rglob("*") if ".part-" in path.name or path.suffix == ".tif"]
    assert vectors.read_vectors(out).num_rows  # the rows fit the second time
    result = run(out, scene, **options)
    assert result.rows == 0 and vectors.read_vectors(out).equals(vectors.read_vectors(tmp_path / "complete"))
    with rasterio.open(result.rasters[0]) as one, rasterio.open(complete.rasters[0]) as two:
        np.testing.assert_array_equal(one.read(), two.read())


def test_a_folder_allows_one_job_at_a_time(scene, tmp_path):
    with locked(tmp_path / "out" / ".lock", "another job"), pytest.raises(ContractError, match="one at a time"):
        run(tmp_path / "out", scene)
    assert run(tmp_path / "out", scene).rows > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sensor", WORLD_SENSORS)
def test_embedding_from_an_archive_for_every_sensor(url, tmp_path, sensor):
    """Search, reading, embedding, GeoParquet and GeoTIFF with a real server."""
    acquisitions = find_acquisitions(sensor, around(1e-4), ALWAYS, url=url)
    area, options = acquisitions[0].footprint, dict(url=url, size=32, progress=False)
    dense = dict(dense="cog", overlap=8, components=2)
    result = embed_area(CLAY, sensor, area, ALWAYS, tmp_path / "best", **options, **dense)
    grid = grid_of(acquisitions[0].archive, 32)
    tiles = {tile.id: tile for tile in tiles_of(area, grid)}
    assert 4 <= result.rows + result.empty == result.jobs <= len(tiles)
    by_date = {acquisition.when.date(): acquisition for acquisition in acquisitions}
    for _, row in result.vectors().iterrows():
        tile, acquisition = tiles[row["tile"]], by_date[row["time"].date()]
        assert row["items"].tolist() == list(acquisition.ids) and row["sensor"] == sensor
        corner = project(shapely.Point(tile.geobox().affine @ (0, 0)), tile.crs, "EPSG:4326")
        assert row["geometry"].buffer(grid.gsd / 111_320 / 100).covers(corner)
        dataset = read_acquisition(acquisition, tile.geobox())
        expected = CLAY.embed(dataset, sensor, when=row["time"], lat=tile.center[0], lon=tile.center[1], check=False)
        # GDAL warps to an eighth of a pixel, depending on the window that is read.
        np.testing.assert_allclose(row["vector"], expected.chip[0].numpy(), atol=0.02 if sensor == "linz" else 4e-3)
    with rasterio.open(result.rasters[0]) as file:
        step = 8 * grid.gsd
        corner = (np.array([file.transform.c, file.transform.f]) - grid.anchor) / step
        np.testing.assert_allclose(corner, np.round(corner), atol=1e-6)
        assert file.transform.a == pytest.approx(step) and file.count == 2 and np.isfinite(file.read()).any()
    assert geopandas.read_parquet(tmp_path / "best" / "vectors").crs == "EPSG:4326"
    both = embed_area(CLAY, sensor, area, ALWAYS, tmp_path / "all", pick="all", **options)
    assert both.jobs == result.jobs * len(acquisitions)
