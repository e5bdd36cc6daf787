"""Images of any source: the same pixels, with their names, place, date and missing pixels."""

from itertools import permutations

import numpy as np
import pyproj
import pytest
import rasterio
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.transform import Affine

from clay_lib import SENSORS, ContractError
from clay_lib.areas.archives import acquisition_from_file
from clay_lib.areas.reading import read_acquisition
from clay_lib.data.images import open_image
from clay_lib.data.rasters import write_raster
from clay_lib.data.scenes import read_scene

S2, L2, NAIP, LINZ = (SENSORS[name] for name in ("sentinel-2-l2a", "landsat-c2l2-sr", "naip", "linz"))
UTM = dict(crs="EPSG:32736", transform=(10.0, 0.0, 617300.0, 0.0, -10.0, 9625100.0))


def numbered(count, shape=(4, 5), dtype=np.int16):
    """[count, H, W] where band n (from 1) is n everywhere: a reader's choice shows in the numbers."""
    return np.broadcast_to(np.arange(1, count + 1, dtype=dtype)[:, None, None], (count, *shape)).copy()


def levels(image):
    return [int(band[0, 0]) for band in image.pixels[0]]


def data_array(values, bands=None, crs="EPSG:32736", corner=(617300.0, 9625100.0), step=10.0, **attrs):
    """[C, H, W] as rioxarray lays it out: centers of pixels, and the CRS on a spatial_ref coordinate."""
    coords = {} if bands is None else {"band": list(bands)}
    coords["x"] = corner[0] + step * (np.arange(values.shape[-1]) + 0.5)
    coords["y"] = corner[1] - step * (np.arange(values.shape[-2]) + 0.5)
    array = xr.DataArray(values, dims=("band", "y", "x"), coords=coords, attrs=attrs)
    return array if crs is None else array.assign_coords(spatial_ref=((), 0, pyproj.CRS(crs).to_cf()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    fill=st.sampled_from([None, 0, 200, 255]),
    holes=st.integers(0, 5),
    order=st.sampled_from(list(permutations(("band", "y", "x")))),
    seed=st.integers(0, 99),
)
def test_every_source_gives_the_same_pixels(tmp_path_factory, height, width, dtype, fill, holes, order, seed):
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 256, (4, height, width)).astype(dtype)
    if fill is not None:
        values[:, generator.integers(height, size=holes), generator.integers(width, size=holes)] = fill
    path = write_raster(tmp_path_factory.mktemp("source") / "a.tif", values, nodata=fill, **UTM)
    array = data_array(values, NAIP.band_names)
    described = array.assign_attrs({} if fill is None else {"_FillValue": fill}).transpose(*order)
    images = {
        "NumPy": open_image(values, NAIP, nodata=fill),
        "NumPy batch": open_image(values[None], "naip", nodata=fill),
        "torch": open_image(torch.from_numpy(values), NAIP, nodata=fill),
        "DataArray": open_image(described, NAIP),
        "DataArray, given nodata": open_image(array.transpose(*order), NAIP, nodata=fill),
        "Dataset": open_image(described.to_dataset("band"), NAIP),
        "GeoTIFF": open_image(path, NAIP),
        "str": open_image(str(path), NAIP, nodata=fill),
    }
    expected = images["NumPy"]
    assert expected.pixels.dtype == np.float32 and expected.pixels.shape == (1, 4, height, width)
    kept = np.isfinite(expected.pixels[0])
    np.testing.assert_array_equal(expected.pixels[0][kept], values[kept])
    for name, image in images.items():
        np.testing.assert_array_equal(image.pixels, expected.pixels, err_msg=name)
        if image.gsd is not None:
            assert (image.gsd, image.lat, image.lon) == pytest.approx(
                (10.0, images["GeoTIFF"].lat, images["GeoTIFF"].lon), abs=1e-9
            )
    assert images["DataArray"].bands == images["Dataset"].bands == images["GeoTIFF"].bands == NAIP.band_names
    assert images["DataArray"].gsd == (10.0 if height * width > 1 else None)  # which one pixel's coordinates don't tell
    assert images["NumPy"].bands is images["NumPy"].gsd is images["NumPy"].lat is None


def test_numbers_of_a_palette_are_no_measurement(tmp_path):
    path = write_raster(tmp_path / "a.tif", numbered(1, dtype=np.uint8), **UTM)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {1: (10, 200, 30, 255)})
    with pytest.raises(ContractError, match="palette.*-expand rgb"):
        open_image(path, LINZ, bands=["red"])


def test_a_fill_that_is_given_is_compared_with_the_stored_numbers(tmp_path):
    values = numbered(3, dtype=np.int16) * 10
    values[:, 0, 1] = 77
    path = write_raster(tmp_path / "a.tif", values, **UTM)
    with rasterio.open(path, "r+") as file:
        file.scales = [2.0] * 3
    image = open_image(path, LINZ, nodata=77)
    assert np.isnan(image.pixels[0, :, 0, 1]).all() and levels(image) == [20, 40, 60]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_tensors_of_any_dtype(dtype):
    pixels = torch.tensor([1, 0, 9999]).to(dtype).expand(3, 2, 3)  # neither contiguous nor exact in two of them
    image = open_image(pixels.requires_grad_() if dtype.is_floating_point else pixels, LINZ, nodata=9999)
    expected = pixels.detach().float().numpy()
    missing = [False, True, dtype not in (torch.uint8, torch.bool)]  # which cannot hold the fill
    np.testing.assert_array_equal(image.pixels[0], np.where(missing, np.nan, expected))


def test_numbers_that_are_not_finite_are_missing():
    pixels = np.array([[[1, np.nan, np.inf, -np.inf, 5]]] * 3)
    pixels[0] = 7
    assert np.isfinite(open_image(pixels, LINZ).pixels).sum() == 5 + 2 + 2  # each band for itself
    masked = np.ma.masked_equal(numbered(3, dtype=np.uint8), 2)
    image = open_image(masked, LINZ, bands=["blue", None, "red"])
    assert image.bands == ("blue", "red") and levels(image) == [1, 3]
    assert np.isnan(open_image(masked, LINZ).pixels[0, 1]).all()


# ---- names ----


def test_bands_of_an_array_are_named_by_the_caller():
    assert open_image(numbered(10), S2).bands is None
    by_number = open_image(torch.from_numpy(numbered(12)), S2, bands={"red": 4, "blue": 2})
    assert by_number.bands == ("red", "blue") and levels(by_number) == [4, 2]
    pixels = np.ma.masked_array(numbered(3), mask=False)  # fill and mask stay with their bands
    pixels[0, 0, 0], pixels[2, 1, 1] = -9, np.ma.masked
    image = open_image(pixels, "naip", bands=["red", None, "blue"], nodata=-9)
    assert np.argwhere(np.isnan(image.pixels[0])).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_named_bands_are_matched_to_the_sensor():
    array = data_array(numbered(4), ["B8A", "B11", "B04", "SCL"])
    for source in (array, array.to_dataset("band"), data_array(numbered(4), long_name=tuple(array.band.values))):
        image = open_image(source, S2)
        assert dict(zip(image.bands, levels(image), strict=True)) == {"red": 3, "nir08": 1, "swir16": 2}
        subset = open_image(source, S2, bands=["swir16", "red"])
        assert subset.bands == ("swir16", "red") and levels(subset) == [2, 3]


def test_band_numbers_of_a_file_survive_a_selection():
    image = data_array(numbered(3), [1, 2, 3], long_name=("blue", "green", "red"))
    picked = image.sel(band=[3, 1])  # long_name stays as it was
    assert open_image(picked, LINZ).bands == ("red", "blue") and levels(open_image(picked, LINZ)) == [3, 1]
    unnamed = data_array(numbered(12), range(1, 13))  # all bands of a file of a known layout
    assert levels(open_image(unnamed, S2)) == [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]
    as_variables = unnamed.to_dataset("band").rename({n: f"band_{n}" for n in range(1, 13)})
    assert levels(open_image(as_variables, S2)) == [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]  # band_9 is not B09, but B8A
    with pytest.raises(ContractError, match="number 12"):
        open_image(unnamed.isel(band=slice(2, 12)), S2)
    assert open_image(unnamed.isel(band=[3, 2]), S2, bands=["red", "green"]).bands == ("red", "green")


# ---- place, date and missing pixels of xarray ----


def test_time_is_the_batch_and_its_dates_come_along():
    chips = np.stack([numbered(3), numbered(3) * 10])
    array = data_array(chips[0], LINZ.band_names)
    dates = np.array(["2023-06-10T10:30", "NaT"], "datetime64[ns]")
    stack = xr.concat([array.copy(data=chip) for chip in chips], dim=xr.Variable("time", dates))
    for source in (stack.transpose("y", "band", "time", "x"), stack.to_dataset("band")):
        image = open_image(source, LINZ)
        np.testing.assert_array_equal(image.pixels, chips)
        assert [str(date) for date in image.when] == ["2023-06-10 10:30:00", "None"]
    assert str(open_image(stack.isel(time=0), LINZ).when) == "2023-06-10 10:30:00"
    assert open_image(stack.drop_vars("time"), LINZ).when is None


def test_place_is_that_of_the_window_and_degrees_become_meters():
    image = data_array(numbered(3, (20, 30)), LINZ.band_names)
    image.spatial_ref.attrs["GeoTransform"] = "617300.0 10.0 0.0 9625100.0 0.0 -10.0"
    window = image.isel(y=slice(10, 20), x=slice(15, 30))
    alone = open_image(window, LINZ)
    assert alone.lon > open_image(image, LINZ).lon and alone.lat < open_image(image, LINZ).lat
    bare = open_image(image.drop_vars(["x", "y"]), LINZ)  # odc and rioxarray may leave the transform alone
    assert (bare.gsd, bare.lat) == pytest.approx((10.0, open_image(image, LINZ).lat))

    degrees = data_array(numbered(3, (6, 6)), LINZ.band_names, None, corner=(34.0, -3.0), step=1e-4)
    assert open_image(degrees, LINZ).gsd is None  # x and y alone say nothing of units
    placed = open_image(degrees.rename(x="lon", y="lat"), LINZ)
    assert (placed.lat, placed.lon) == pytest.approx((-3.0003, 34.0003)) and placed.gsd == pytest.approx(
        11.12, abs=0.01
    )
    assert open_image(degrees.assign_coords(epsg=4326), LINZ).lat == pytest.approx(-3.0003)
    parameters = {k: v for k, v in pyproj.CRS("EPSG:32736").to_cf().items() if k != "crs_wkt"}
    cf = image.drop_vars("spatial_ref").assign_coords(utm=((), 0, parameters)).assign_attrs(grid_mapping="utm")
    assert open_image(cf, LINZ).lat == pytest.approx(open_image(image, LINZ).lat, abs=1e-9)


def test_a_scale_in_attributes_is_applied_once():
    values = numbered(3, dtype=np.float32)
    values[:, 0, 0] = -9.0
    raw = data_array(values, LINZ.band_names, scale_factor=0.1, add_offset=-1.0, _FillValue=-9.0)
    image = open_image(raw, LINZ)
    assert np.isnan(image.pixels[:, :, 0, 0]).all() and image.pixels[0, 2, 1, 1] == pytest.approx(3 * 0.1 - 1)
    unpacked = data_array(values * 0.1 - 1.0, LINZ.band_names)
    unpacked.encoding = dict(scale_factor=0.1, add_offset=-1.0, _FillValue=unpacked.values[0, 1, 1])
    np.testing.assert_array_equal(open_image(unpacked, LINZ).pixels[0], unpacked.values)
    unpacked[:, 2, 2] = -1.0  # stored as zero in every band: a hole here too
    assert np.isnan(open_image(unpacked, LINZ).pixels[0, :, 2, 2]).all()


@pytest.mark.parametrize("window", [None, (2, 1, 5, 4)])
def test_south_up_rows_are_flipped(tmp_path, window):
    values = np.random.default_rng(0).integers(1, 200, (3, 12, 9)).astype(np.uint8)
    north = write_raster(tmp_path / "north.tif", values, **UTM)
    south_transform = (10.0, 0.0, 617300.0, 0.0, 10.0, 9625100.0 - 120)
    south = write_raster(tmp_path / "south.tif", values[:, ::-1], crs=UTM["crs"], transform=south_transform)
    expected, scene = (read_scene(path, LINZ, window=window) for path in (north, south))
    np.testing.assert_array_equal(scene.pixels, expected.pixels)
    assert (scene.transform, scene.lat, scene.lon) == (expected.transform, expected.lat, expected.lon)
    array = data_array(values, LINZ.band_names)
    a = open_image(array, LINZ)
    for axes in ("y", "x", "yx"):  # from south to north, from east to west, and both
        b = open_image(array.isel(dict.fromkeys(axes, slice(None, None, -1))), LINZ)
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert (a.lat, a.lon, a.gsd) == pytest.approx((b.lat, b.lon, b.gsd))
    write_raster(
        tmp_path / "mirrored.tif", values[..., ::-1], crs=UTM["crs"], transform=(-10, 0, 617390, 0, -10, 9625100)
    )
    with pytest.raises(ContractError, match="mirrored.*gdalwarp"):
        open_image(tmp_path / "mirrored.tif", LINZ)
    write_raster(tmp_path / "turned.tif", values, crs=UTM["crs"], transform=(0, -10, 617390, -10, 0, 9625100))
    with pytest.warns(UserWarning, match="rotated.*gdalwarp"):
        open_image(tmp_path / "turned.tif", LINZ)
    bare = array.drop_vars(["x", "y", "spatial_ref"]).assign_coords(y=np.arange(12))  # row numbers
    np.testing.assert_array_equal(open_image(bare, LINZ).pixels[0], values)


# ---- errors ----


@pytest.mark.parametrize(
    "source, kwargs, message",
    [
        (np.ones((8, 8)), {}, "pixels: found shape .8, 8.* a single band without its axis"),
        (np.ones((5, 8, 8)), {}, "name them with bands="),
        (np.ones((8, 8, 3)), {}, "bands last"),
        (np.ones((1, 2, 3, 8, 8)), {}, "too many axes"),
        (np.ones((3, 0, 8)), {}, "an empty window"),
        (np.ones((3, 8, 8), complex), {}, "pixels: found dtype complex128"),
        (np.full((3, 8, 8), "a"), {}, "pixels: found dtype <U1"),
        (np.full((3, 8, 8), None), {}, "pixels: found dtype object"),
        ([[1, 2], [3]], {}, "pixels: found lists of unequal lengths"),
        (None, {}, "pixels: found dtype object"),
        (np.ones((3, 8, 8)), dict(nodata=[1, 2, 3]), "nodata"),
        ("missing.tif", {}, "path: found missing.tif, which does not exist"),
        ("ftp://example.org/a.tif", {}, "path: found ftp://example.org/a.tif; .*ftp is not supported"),
        (data_array(np.ones((3, 4, 4)), list("abc")), {}, "bands: found .'a', 'b', 'c'."),
        (data_array(np.ones((3, 4, 4)), LINZ.band_names).sel(band="red"), {}, "pixels: found dimensions .'y', 'x'.*one named band"),
        (data_array(np.ones((3, 4, 4))).rename(x="a", y="b"), {}, "axes under other names"),
        (data_array(np.ones((3, 4, 4))).expand_dims(["run", "time"]), {}, "more than a batch"),
        (data_array(np.ones((3, 4, 4))).assign_coords(x=[0.0, 10.0, 20.0, 90.0]), {}, "x: found steps from 10 to 70"),
        (data_array(np.ones((3, 4, 4))).assign_coords(spatial_ref=((), 0, {"crs_wkt": "PROJCS[oops"})), {}, "crs: found PROJCS"),
        (xr.Dataset({"red": ("y", np.ones(4))}), {}, "one variable a band"),
        (xr.Dataset({"red": (("y", "x"), np.ones((4, 4))), "blue": (("t", "y", "x"), np.ones((1, 4, 4)))}), {}, "bring them to one grid"),
    ],
)  # fmt: skip
def test_sources_that_are_no_image_are_refused(source, kwargs, message):
    with pytest.raises(ContractError, match=message):
        open_image(source, LINZ, **kwargs)


# ---- what headers and names say ----


@pytest.mark.parametrize(
    "sensor, scale, offset, expected",
    [
        ("sentinel-2-l2a", 1e-4, -0.1, 2000),  # the header's reflectance, as native numbers without the offset of 1000
        ("sentinel-2-l2a", 1, -1000, 2000),
        ("landsat-c2l2-sr", 2.75e-5, -0.2, 3000),  # whose native numbers are the stored ones
        ("landsat-c2l2-sr", 1e-4, 0, 7273 + 0.3 * 36363),
        ("modis", 1e-4, 0, 3000),
        ("sentinel-1-rtc", -0.01, 0, -30),  # hundredths of a decibel
    ],
)
def test_scale_and_offset_of_a_header_are_honored_at_every_door(tmp_path, sensor, scale, offset, expected):
    sensor = SENSORS[sensor]
    stored = np.full((len(sensor.bands), 16, 16), 3000, np.int16)
    stored[:, 0, 0] = -9999
    path = write_raster(tmp_path / "a.tif", stored, nodata=-9999, descriptions=sensor.band_names, **UTM)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [scale] * file.count, [offset] * file.count
    array = data_array(stored, sensor.band_names, scale_factor=scale, add_offset=offset, nodata=-9999)
    unpacked = data_array(stored * np.float64(scale) + offset, sensor.band_names)
    unpacked[:, 0, 0] = np.nan
    unpacked.encoding = dict(scale_factor=scale, add_offset=offset)
    acquisition = acquisition_from_file(path, sensor, when="2020-06-01")
    tile = GeoBox((16, 16), Affine(*UTM["transform"]), UTM["crs"])
    images = [open_image(source, sensor).pixels[0] for source in (path, array, unpacked)]
    images += [read_acquisition(acquisition, tile).to_array().values]
    for pixels in images:
        np.testing.assert_allclose(pixels[:, 1:], expected, rtol=1e-4)
        assert np.isnan(pixels[:, 0, 0]).all()
    assert read_scene(path, sensor, scale=1, offset=0).pixels[0, 1, 1] == 3000
    with pytest.warns(UserWarning, match="its header gives native = value"):
        read_scene(path, sensor, scale=3, offset=7)


def test_the_date_of_a_products_name_is_known(tmp_path):
    path = tmp_path / "LC08_L2SP_022049_20200322_20200822_02_T1.tif"
    names = ["SR_B4", "SR_B3", "SR_B2"]
    write_raster(path, np.full((3, 8, 8), 9999, np.uint16), descriptions=names, **UTM)
    array = data_array(np.full((3, 8, 8), 9999, np.uint16), names)
    array.encoding["source"] = str(path)
    assert open_image(path, L2).when == open_image(array, L2).when == "2020-03-22"
    for source in (path, array):
        with pytest.raises(ContractError, match="level 2 in the name"):
            open_image(source, "landsat-c2l1")
        with pytest.raises(ContractError, match="by its name of landsat; expected a product of sentinel-2-l2a"):
            open_image(source, S2)
        assert open_image(source, S2, bands=["red", "green", "blue"]).bands[0] == "red"
