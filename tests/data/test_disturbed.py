"""One true scene, stored in hundreds of ways: the same embedding, a clear error or a warning, never a silent misreading."""

import tempfile
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from clay_lib import SENSORS, Clay, ContractError
from clay_lib.sensors import METERS_PER_DEGREE
from clay_lib.world.earth import MiniWorld

SIDE, WHEN = 24, "2023-06-10"
CORNERS = {"EPSG:32636": (618_000.0, 9_624_000.0), "EPSG:4326": (34.0625, -3.4)}  # left, top
NAMES = {  # other names of the same bands, in the sensor's own order
    "sentinel-2-l2a": [
        "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split(),
        "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12".split(),
        "Blue Green Red RedEdge1 RedEdge2 RedEdge3 NIR NIR08 SWIR16 SWIR22".split(),
    ],
    "landsat-c2l2-sr": ["SR_B4 SR_B3 SR_B2 SR_B5 SR_B6 SR_B7".split()],
    "sentinel-1-rtc": [["VV", "VH"]],
    "naip": [["Red", "Green", "Blue", "NIR"]],
    "linz": [["Red", "Green", "Blue"]],
}


@dataclass(frozen=True)
class Stored:
    """How a scene is stored. Every field is a disturbance; the defaults are those of a plain GeoTIFF."""

    sensor: str
    seed: int
    container: str  # GeoTIFF, BigTIFF, COG, folder, PNG, JPEG, array, tensor, xarray, Dataset
    order: tuple[int, ...]  # band of the sensor at each place
    names: str  # own, other, unknown, none
    south_up: bool
    dtype: str
    scale: float  # stored = native / scale - offset / scale, as the header says
    offset: float
    hole: str  # none, tagged, zeros, nan, inf
    crs: str | None
    date: str  # none, tag, given
    layout: tuple[int, str, str]  # tile side (0: strips), compression, interleave


@st.composite
def stored(draw) -> Stored:
    sensor = draw(st.sampled_from(sorted(NAMES)))
    count = len(SENSORS[sensor].bands)
    names = draw(st.sampled_from(["own", "other", "unknown", "none"]))
    # without names a changed order cannot be distinguished from another scene
    order = draw(st.permutations(range(count))) if names in ("own", "other") else range(count)
    radar = sensor == "sentinel-1-rtc"
    aerial = sensor in ("naip", "linz")
    dtype = "float32" if radar else draw(st.sampled_from(["uint8"] if aerial else ["uint16", "int32", "float32"]))
    containers = (
        ["GeoTIFF", "BigTIFF", "COG", "folder", "array", "tensor", "xarray", "Dataset"]
        + ["PNG"] * aerial
        + ["JPEG"] * (sensor == "linz")
    )
    container = draw(st.sampled_from(containers))
    scaled = sensor == "sentinel-2-l2a" and draw(st.booleans())
    holes = ["none", "tagged", "zeros"] + (["nan", "inf"] if dtype == "float32" else [])
    holes = ["none"] if container == "JPEG" else holes  # its losses blur a fill
    return Stored(
        sensor=sensor,
        seed=draw(st.integers(0, 4)),
        container=container,
        order=tuple(order),
        names=names,
        south_up=draw(st.booleans()),
        dtype=dtype,
        scale=0.5 if scaled else 1.0,
        offset=-1000.0 if scaled else 0.0,
        hole=draw(st.sampled_from(holes)),
        crs=draw(st.sampled_from([None, *CORNERS])),
        date=draw(st.sampled_from(["none", "tag", "given"])),
        layout=(
            draw(st.sampled_from([0, 16])),
            draw(st.sampled_from(["deflate", "lzw", "none"])),
            draw(st.sampled_from(["band", "pixel"])),
        ),  # fmt: skip
    )


@lru_cache(maxsize=64)
def true_scene(sensor: str, seed: int) -> np.ndarray:
    """[C, H, W] native numbers in whole numbers, except radar."""
    world = MiniWorld(0)
    pixels = world.observe(world.place((10, 40, 30)[seed % 3], seed, "test"), sensor, WHEN, SIDE).pixels.astype(
        np.float32
    )
    return pixels if sensor == "sentinel-1-rtc" else np.maximum(np.round(pixels / 2) * 2, 2)  # zero is a usual fill


@lru_cache(maxsize=1)
def clay() -> Clay:
    return Clay.load("clay-mini", precision="exact")


def write(case: Stored, values: np.ndarray, folder: Path):
    """(source for `Clay.embed`, its arguments). values: [C, H, W] native, NaN in the hole, in the sensor's order."""
    sensor = SENSORS[case.sensor]
    names = {"own": sensor.band_names, "other": NAMES[case.sensor][case.seed % len(NAMES[case.sensor])]}
    names = names.get(case.names, [f"capa {k}" for k in range(len(sensor.bands))] if case.names == "unknown" else None)
    names = names and [names[k] for k in case.order]
    fill = {"tagged": 0.0, "zeros": 0.0, "inf": np.inf}.get(case.hole, np.nan)
    array = np.where(np.isnan(values), fill, (values - case.offset) / case.scale)[list(case.order)].astype(case.dtype)
    options = {"when": WHEN} if case.date == "given" else {}
    if case.container in ("array", "tensor"):
        native = array if case.scale == 1 else np.where(np.isnan(values), fill, values)[list(case.order)]
        options |= {"bands": names} if names else {}
        native = torch.from_numpy(native) if case.container == "tensor" else native
        return native, options | ({"nodata": 0} if case.hole == "tagged" else {})
    up = -1 if case.south_up else 1
    if case.container in ("xarray", "Dataset"):
        attrs = {"scale_factor": case.scale, "add_offset": case.offset} if case.scale != 1 else {}
        attrs |= {"_FillValue": 0} if case.hole == "tagged" else {}
        a, _, left, _, e, top = tuple(grid(case))[:6]
        x, y = (start + step * (np.arange(SIDE) + 0.5) for start, step in ((left, a), (top, e)))
        coords = {"x": x, "y": y[::up]} | ({"band": names} if names else {})
        coords |= {"spatial_ref": ((), 0, {"crs_wkt": rasterio.CRS.from_user_input(case.crs).wkt})} if case.crs else {}
        source = xr.DataArray(array[:, ::up], coords, ("band", "y", "x"), attrs=attrs)
        return source.to_dataset("band") if names and case.container == "Dataset" else source, options
    stem = "scene"
    if case.container != "folder" or not names:
        ending = {"PNG": "png", "JPEG": "jpg"}.get(case.container, "tif")
        return write_file(case, array[:, ::up], folder / f"{stem}.{ending}", names), options
    for name, band in zip(names, array[:, ::up], strict=True):
        write_file(case, band[None], folder / stem / f"{stem}_{name}.tif", None)
    return folder / stem, options


def grid(case: Stored) -> rasterio.Affine:
    """The north-up transform; square pixels on the ground."""
    (left, top), gsd = CORNERS[case.crs or "EPSG:32636"], SENSORS[case.sensor].gsd
    if case.crs != "EPSG:4326":
        return rasterio.Affine(gsd, 0, left, 0, -gsd, top)
    return rasterio.Affine(gsd / METERS_PER_DEGREE / np.cos(np.radians(top)), 0, left, 0, -gsd / METERS_PER_DEGREE, top)


def write_file(case: Stored, array: np.ndarray, path: Path, names) -> Path:
    path.parent.mkdir(exist_ok=True)
    (tile, compression, interleave), transform = case.layout, grid(case)
    if case.south_up:
        transform = transform @ rasterio.Affine(1, 0, 0, 0, -1, SIDE)
    profile = dict(driver="GTiff", interleave=interleave, compress=compression)
    profile |= dict(tiled=True, blockxsize=tile, blockysize=tile) if tile else {}
    if case.container in ("PNG", "JPEG"):
        profile = dict(driver=case.container) | (dict(QUALITY=100) if case.container == "JPEG" else {})
    if case.container == "BigTIFF":
        profile |= dict(BIGTIFF="YES")
    if case.container == "COG":
        profile = dict(driver="COG", compress=compression, blocksize=max(16 * (tile // 16), 128), interleave=interleave)
    profile |= dict(count=len(array), height=SIDE, width=SIDE, dtype=array.dtype)
    profile |= dict(crs=case.crs, transform=transform) if case.crs or case.south_up else {}
    profile |= dict(nodata=0) if case.hole == "tagged" else {}
    if len(array) == 4 and profile["driver"] == "GTiff":
        profile |= dict(photometric="minisblack", alpha="unspecified")
    with rasterio.open(path, "w", **profile) as file:
        file.write(array)
        if case.date == "tag":
            file.update_tags(datetime=WHEN)
        if names:
            file.descriptions = names
        if case.scale != 1:
            file.scales, file.offsets = [case.scale] * len(array), [case.offset] * len(array)
    return path


def check(case: Stored) -> None:
    sensor, values = SENSORS[case.sensor], true_scene(case.sensor, case.seed).copy()
    if case.hole != "none":
        values[:, :8, 8:16] = np.nan
    in_memory = case.container in ("array", "tensor")  # without a place; `bands=` takes the sensor's own names alone
    is_file = not in_memory and case.container not in ("xarray", "Dataset")
    truth = dict(when=WHEN) if case.date == "given" or (case.date == "tag" and is_file) else {}
    if case.crs and not in_memory:
        place = pyproj.Transformer.from_crs(case.crs, "EPSG:4326", always_xy=True)
        lon, lat = place.transform(*(grid(case) @ (SIDE / 2, SIDE / 2)))
        truth |= dict(lat=lat, lon=lon)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source, options = write(case, values, Path(folder))
        if case.container == "JPEG":  # what is left after its losses is the truth, in the sensor's order
            with rasterio.open(source) as file:
                values = file.read()[np.argsort(case.order), :: -1 if case.south_up else 1].astype(np.float32)
        expected = clay().embed(values, sensor, check=False, **truth).chip[0]
        known = case.names != "unknown" and case.hole != "inf"  # must be read, not only reported
        if case.south_up and not case.crs and not in_memory:
            known = False  # nothing tells whether rows count from north or south
        if in_memory:
            known = known and case.names != "other"
        try:
            found = clay().embed(source, sensor, **options).chip[0]
        except ContractError:
            assert not known, "an error for a scene that can be read"
            return
    agree = torch.cosine_similarity(found, expected, dim=0) > 1 - 1e-4
    # rasterio also warns, of files that were written without a georeference
    warned = any(issubclass(w.category, UserWarning) and w.category is not NotGeoreferencedWarning for w in caught)
    assert agree or (warned and not known), "read wrongly" if known else "read wrongly, in silence"


OPTIONS = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@settings(max_examples=200, derandomize=True, database=None, **OPTIONS)
@given(stored())
def test_a_scene_stored_in_any_way_is_read_rightly_or_reported(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=5000, derandomize=True, database=None, **OPTIONS)
@given(stored())
def test_five_thousand_ways_to_store_a_scene(case):
    check(case)
