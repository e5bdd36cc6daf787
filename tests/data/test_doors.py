"""One scene through every door of the library: the same pixels, bands, holes, place, date and embedding, to the bit."""

import json
import warnings

import numpy as np
import pystac
import pytest
import rasterio
import shapely.geometry
import torch
import xarray as xr
from odc.geo.geobox import GeoBox
from safe_folders import safe_folder

from clay_lib import SENSORS, Clay, ClayConfig, ContractError
from clay_lib.areas.archives import acquisition_from_file, choose_archive
from clay_lib.areas.area import embed_area
from clay_lib.areas.items import Acquisition
from clay_lib.areas.local import write_archive
from clay_lib.areas.reading import read_acquisition
from clay_lib.data.check import inspect_image
from clay_lib.data.georeference import center_longitude, outline
from clay_lib.data.images import open_image
from clay_lib.data.label_files import class_folders, raster_pairs
from clay_lib.data.rasters import Header, write_raster
from clay_lib.data.scenes import read_scene
from clay_lib.datacube import parse_when

S2, L2, NAIP, LINZ = (SENSORS[name] for name in ("sentinel-2-l2a", "landsat-c2l2-sr", "naip", "linz"))
CRS, SIDE, GSD = "EPSG:32736", 64, 10
LEFT, TOP = 960 * SIDE * GSD, 15036 * SIDE * GSD  # of a tile of the grid, near 34 east, 3 south
NORTH_UP = (GSD, 0.0, float(LEFT), 0.0, -GSD, float(TOP))
PRODUCT = "S2A_MSIL2A_20230610T074621_N0301_R135_T36MXE_20230610T131500"
WHEN = "2023-06-10T07:46:21"
COARSE = {"rededge1": "05", "rededge2": "06", "rededge3": "07", "nir08": "8A", "swir16": "11", "swir22": "12"}  # 20 m
FINE = {"blue": "02", "green": "03", "red": "04", "nir": "08"}
PLACE = dict(crs=CRS, transform=NORTH_UP)


@pytest.fixture(scope="module")
def clay():
    return Clay.random(ClayConfig.named("tiny"), seed=1)


def true_scene():
    """[10, H, W] reflectance x 10000 of a field; the bands of 20 m are flat, so that no resampling changes them."""
    levels = dict(zip(S2.band_names, (700, 1000, 1100, 1600, 2100, 2300, 2500, 2600, 2400, 1700), strict=True))
    noise = np.random.default_rng(0).normal(1, 0.15, (SIDE, SIDE))
    bands = [np.full((SIDE, SIDE), level) * (noise if name in FINE else 1) for name, level in levels.items()]
    return np.rint(np.stack(bands)).astype(np.uint16)


def data_array(values, **attrs):
    x, y = LEFT + GSD * (np.arange(SIDE) + 0.5), TOP - GSD * (np.arange(SIDE) + 0.5)
    coords = dict(
        band=list(S2.band_names), y=y, x=x, spatial_ref=((), 0, {"crs_wkt": rasterio.CRS.from_user_input(CRS).wkt})
    )
    return xr.DataArray(values, coords, ("band", "y", "x"), attrs=attrs)


def from_item(folder, scene):
    """The acquisition of a STAC item as Earth Search lays it out."""
    write_archive(folder, sensors=(), rasters={S2.name: [scene]})
    (feature,) = json.loads((folder / "items.json").read_text())["features"]
    for asset in feature["assets"].values():
        asset["href"] = str(folder / asset["href"])
    item = pystac.Item.from_dict(feature)
    return Acquisition(S2, choose_archive(S2, None), item.datetime, (item,))


def on_grid(acquisition):
    data = read_acquisition(acquisition, GeoBox((SIDE, SIDE), rasterio.Affine(*NORTH_UP), CRS))
    return np.stack([data[name].values for name in acquisition.bands]), acquisition.bands, acquisition.when


def same(pixels, bands, expected):
    assert tuple(bands or S2.band_names) == S2.band_names
    np.testing.assert_array_equal(np.asarray(pixels, np.float32).reshape(expected.shape), expected)


def embedding(clay, source, **metadata):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clay.embed(source, S2, **metadata).chip


def test_one_scene_is_the_same_at_every_door(clay, tmp_path):
    values = true_scene()
    values[:, :8, 8:16] = 0  # untagged: a hole at every door
    expected = np.where(values == 0, np.nan, values.astype(np.float32))
    path = write_raster(tmp_path / f"{PRODUCT}.tif", values, descriptions=S2.band_names, **PLACE)
    folder = tmp_path / PRODUCT
    for band, number in (FINE | COARSE).items():
        write_raster(folder / f"T36MXE_20230610T074621_B{number}.tif", values[S2.band_names.index(band)], **PLACE)
    array = data_array(values).assign_coords(time=np.datetime64(WHEN))
    scene = read_scene(path, S2)
    place = dict(gsd=float(GSD), lat=scene.lat, lon=scene.lon, when=WHEN)
    assert (scene.gsd, scene.when, scene.crs, scene.transform) == (GSD, WHEN, CRS, NORTH_UP)
    truth = embedding(clay, values, **place)

    stored = {number: values[S2.band_names.index(band)] for band, number in (FINE | COARSE).items()}
    safe = safe_folder(tmp_path / f"{PRODUCT}.SAFE", stored, PLACE)
    doors = {"array": values, "tensor": torch.from_numpy(values), "xarray": array, "Dataset": array.to_dataset("band"),
             "GeoTIFF": path, "folder": folder, "SAFE": safe, "Scene": scene}  # fmt: skip
    for name, source in doors.items():
        image = open_image(source, S2)
        same(image.pixels, image.bands, expected)
        given = place if name in ("array", "tensor") else {}
        assert torch.equal(embedding(clay, source, **given), truth), name
        if not given:
            assert (image.gsd, image.lat, image.lon) == (GSD, scene.lat, scene.lon), name
            assert parse_when(image.when) == parse_when(WHEN), name
        inspected = inspect_image(source, S2, **given)
        same(inspected.image.pixels, inspected.image.bands, expected)

    for acquisition in (acquisition_from_file(path, S2), from_item(tmp_path / "archive", scene)):
        pixels, bands, when = on_grid(acquisition)
        same(pixels, bands, expected)
        assert f"{when:%Y-%m-%dT%H:%M:%S}" == WHEN
        assert torch.equal(embedding(clay, pixels, bands=bands, **place), truth)
    result = embed_area(clay, S2, None, None, tmp_path / "area", scene=path, size=SIDE, progress=False)
    (row,) = result.vectors().itertuples()
    np.testing.assert_array_equal(np.asarray(row.vector, np.float16), truth[0].half().numpy())

    for name in ("field", "town"):
        write_raster(tmp_path / "classes" / name / path.name, values, descriptions=S2.band_names, **PLACE)
    labels = write_raster(tmp_path / "labels" / path.name, np.ones((1, SIDE, SIDE), np.uint8), **PLACE)
    for data in (class_folders(tmp_path / "classes", S2), raster_pairs(path, labels, S2, classes={1: "a"}, size=SIDE)):
        same(data[0].pixels, data.bands, expected)
        assert torch.equal(embedding(clay, data[0].pixels, **data.metadata([0])), truth)


def test_a_scene_with_holes_a_scale_and_ascending_rows_is_the_same_at_every_door(clay, tmp_path):
    """Stored as reflectance x 5000 + 500, nodata 65535, from south to north."""
    stored = (true_scene() // 2 + 500).astype(np.uint16)
    stored[:, :20, :30] = 65535
    expected = np.where(stored == 65535, np.nan, (stored.astype(np.float32) - 500) * 2)
    south_up = (GSD, 0.0, float(LEFT), 0.0, GSD, float(TOP - SIDE * GSD))
    header = dict(scale=2e-4, offset=-0.1)
    path = tmp_path / "a.tif"
    write_raster(path, stored[:, ::-1], nodata=65535, descriptions=S2.band_names, crs=CRS, transform=south_up)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [header["scale"]] * 10, [header["offset"]] * 10
    attrs = dict(scale_factor=header["scale"], add_offset=header["offset"], _FillValue=65535)
    array = data_array(stored, **attrs).isel(y=slice(None, None, -1))
    place = dict(gsd=float(GSD), lat=read_scene(path, S2).lat, lon=read_scene(path, S2).lon, when=WHEN)
    truth = embedding(clay, expected, **place)
    assert truth.isfinite().all()
    for source in (path, array, array.to_dataset("band"), read_scene(path, S2)):
        image = open_image(source, S2)
        same(image.pixels, image.bands, expected)
        assert torch.equal(embedding(clay, source, when=WHEN), truth)
    pixels, bands, _ = on_grid(acquisition_from_file(path, S2, when=WHEN))
    same(pixels, bands, expected)
    assert torch.equal(embedding(clay, pixels, bands=bands, **place), truth)
    labels = write_raster(tmp_path / "labels.tif", np.ones((1, SIDE, SIDE), np.uint8), **PLACE)
    data = raster_pairs(path, labels, S2, classes={1: "a"}, size=SIDE, when=WHEN)
    same(data[0].pixels, data.bands, expected)
    assert torch.equal(embedding(clay, data[0].pixels, **data.metadata([0])), truth)


@pytest.mark.parametrize("edge", [31, 32])  # an odd one lies inside a pixel of 20 m
def test_fill_at_the_edge_of_a_scene_is_a_hole_in_each_band_and_not_blended(tmp_path, edge):
    values = {number: np.full((SIDE, SIDE), 3000, np.uint16) for number in (FINE | COARSE).values()}
    for number, pixels in values.items():
        pixels[:, : edge if number in FINE.values() else 2 * (edge // 2 + 1)] = 0
    folder = safe_folder(tmp_path / f"{PRODUCT.replace('N0301', 'N0509')}.SAFE", values, PLACE)
    image, (pixels, bands, _) = open_image(folder, S2), on_grid(acquisition_from_file(folder, S2))
    assert bands == image.bands and np.isnan(pixels[:, :, : edge - 1]).all()
    np.testing.assert_array_equal(pixels, image.pixels[0])
    assert {*np.unique(pixels[np.isfinite(pixels)])} == {2000.0}


def test_a_given_date_before_landsat_8_means_the_older_band_numbers_at_every_door(clay, tmp_path):
    names, when = [f"SR_B{n}" for n in (1, 3, 4)], "1999-11-18"  # without B5 and B7 only the date tells
    values = np.arange(8000, 8000 + 3 * 32 * 32, dtype=np.uint16).reshape(3, 32, 32)
    path = write_raster(tmp_path / "classes" / "a" / "x.tif", values, descriptions=names, **PLACE)
    write_raster(tmp_path / "classes" / "b" / "y.tif", values, descriptions=names, **PLACE)
    array = xr.DataArray(values, {"band": names}, ("band", "y", "x"))
    for source, options in ((path, dict(when=when)), (array, dict(when=[when])),
                            (array.assign_coords(time=np.datetime64(when)), {})):  # fmt: skip
        assert open_image(source, L2, **options).bands == ("red", "blue", "nir08")
    assert open_image(path, L2).bands == ("red", "green")
    assert clay.cube(path, L2, when=when, check=False).waves.tolist() == L2.waves(["red", "blue", "nir08"]).tolist()
    assert class_folders(tmp_path / "classes", L2, when=when).bands == ("red", "blue", "nir08")
    assert acquisition_from_file(path, L2, when=when).bands == ("red", "blue", "nir08")


@pytest.mark.parametrize("transparent, dropped", [(255, True), (120, False)])
def test_alpha_of_the_header_is_a_mask_and_not_near_infrared(tmp_path, transparent, dropped):
    """Four 8-bit bands are called RGB and alpha by default, so that the numbers decide."""
    values = np.random.default_rng(0).integers(20, 220, (4, 80, 80), dtype=np.uint8)
    values[3] = transparent
    values[3, :4] = 0
    profile = dict(
        driver="GTiff", count=4, height=80, width=80, dtype="uint8", crs=CRS, transform=rasterio.Affine(*NORTH_UP)
    )
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(values)
    image = open_image(tmp_path / "a.tif", NAIP)
    assert image.bands == (("red", "green", "blue") if dropped else NAIP.band_names)
    assert np.isnan(image.pixels[0, :, :4]).all() == dropped and np.isfinite(image.pixels[0, :, 4:]).all()
    assert set(acquisition_from_file(tmp_path / "a.tif", NAIP).bands) == set(image.bands)
    rgb = open_image(tmp_path / "a.tif", LINZ)  # to a sensor of three bands it is always a mask
    assert rgb.bands == LINZ.band_names and (np.isnan(rgb.pixels[0]) == (values[3] == 0)).all()


def test_control_points_without_a_grid_are_reported_at_every_door(tmp_path):
    path = write_raster(tmp_path / "classes" / "a" / "x.tif", true_scene(), crs=None, transform=None)
    corners = [(0, 0, 34.0, -3.0), (0, 64, 34.1, -3.0), (64, 0, 34.0, -3.1)]
    with rasterio.open(path, "r+") as file:
        file.gcps = [rasterio.control.GroundControlPoint(*corner) for corner in corners], rasterio.CRS.from_epsg(4326)
    write_raster(tmp_path / "classes" / "b" / "y.tif", true_scene(), crs=None, transform=None)
    array = data_array(true_scene())
    array.spatial_ref.attrs["gcps"] = {"type": "FeatureCollection"}
    for source in (path, [path], array):
        with pytest.warns(UserWarning, match="ground control points but no grid.*gdalwarp -tps"):
            image = open_image(source, S2)
        assert image.lat is image.gsd is None
    with pytest.warns(UserWarning, match="gdalwarp"):
        class_folders(tmp_path / "classes", S2)
    with pytest.warns(UserWarning, match="gdalwarp"), pytest.raises(ContractError, match="without a CRS"):
        acquisition_from_file(path, S2)


def test_boxes_across_180_degrees():
    shape = outline(179.0, -18, -177.0, -16)
    assert shape.area == pytest.approx(8) and center_longitude(shape) == pytest.approx(-179)
    assert center_longitude(outline(10, 0, 20, 5)) == 15 and center_longitude(outline(-180, -90, 180, 90)) == 0
    assert center_longitude(shapely.geometry.shape(shapely.geometry.mapping(outline(176, 0, -178, 1)))) == 179
    beyond = Header("a.tif", 10, 10, rasterio.CRS.from_epsg(4326), (0.1, 0, 180.5, 0, -0.1, 5.0), None)
    assert beyond.at(5, 5) == pytest.approx((4.5, -179))  # longitudes to 360
