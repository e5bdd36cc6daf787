"""One true scene, stored in hundreds of ways: the same embedding, a clear error or a warning, never a silent misreading."""

from __future__ import annotations

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
from clay_lib.world.earth import MiniWorld

SIDE, WHEN, CRS = 24, "2023-06-10", "EPSG:32636"
LEFT, TOP = 618_000.0, 9_624_000.0
NAMES = {  # other names of the same bands, in the sensor's own order
    "sentinel-2-l2a": [
        "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split(),
        "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12".split(),
        "Blue Green Red RedEdge1 RedEdge2 RedEdge3 NIR NIR08 SWIR16 SWIR22".split(),
    ],
    "landsat-c2l2-sr": ["SR_B4 SR_B3 SR_B2 SR_B5 SR_B6 SR_B7".split()],
    "sentinel-1-rtc": [["VV", "VH"]],
    "naip": [["Red", "Green", "Blue", "NIR"]],
}


@dataclass(frozen=True)
class Stored:
    """How a scene is stored. Every field is a disturbance; the defaults are those of a plain GeoTIFF."""

    sensor: str
    seed: int
    container: str  # GeoTIFF, folder, array, xarray
    order: tuple[int, ...]  # band of the sensor at each place
    names: str  # own, other, unknown, none
    south_up: bool
    dtype: str
    scale: float  # stored = native / scale - offset / scale, as the header says
    offset: float
    hole: str  # none, tagged, zeros, nan, inf
    crs: bool
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
    dtype = (
        "float32" if radar else draw(st.sampled_from(["uint8"] if sensor == "naip" else ["uint16", "int32", "float32"]))
    )
    scaled = sensor == "sentinel-2-l2a" and draw(st.booleans())
    holes = ["none", "tagged", "zeros"] + (["nan", "inf"] if dtype == "float32" else [])
    return Stored(
        sensor=sensor,
        seed=draw(st.integers(0, 4)),
        container=draw(st.sampled_from(["GeoTIFF", "folder", "array", "xarray"])),
        order=tuple(order),
        names=names,
        south_up=draw(st.booleans()),
        dtype=dtype,
        scale=0.5 if scaled else 1.0,
        offset=-1000.0 if scaled else 0.0,
        hole=draw(st.sampled_from(holes)),
        crs=draw(st.booleans()),
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
    if case.container == "array":
        native = array if case.scale == 1 else np.where(np.isnan(values), fill, values)[list(case.order)]
        options |= {"bands": names} if names else {}
        return native, options | ({"nodata": 0} if case.hole == "tagged" else {})
    up = -1 if case.south_up else 1
    if case.container == "xarray":
        attrs = {"scale_factor": case.scale, "add_offset": case.offset} if case.scale != 1 else {}
        attrs |= {"_FillValue": 0} if case.hole == "tagged" else {}
        y = TOP - sensor.gsd * (np.arange(SIDE) + 0.5)
        coords = {"x": LEFT + sensor.gsd * (np.arange(SIDE) + 0.5), "y": y[::up]} | ({"band": names} if names else {})
        coords |= {"spatial_ref": ((), 0, {"crs_wkt": rasterio.CRS.from_user_input(CRS).wkt})} if case.crs else {}
        return xr.DataArray(array[:, ::up], coords, ("band", "y", "x"), attrs=attrs), options
    stem = "scene"
    if case.container == "GeoTIFF" or not names:
        return write_file(case, array[:, ::up], folder / f"{stem}.tif", names), options
    for name, band in zip(names, array[:, ::up], strict=True):
        write_file(case, band[None], folder / stem / f"{stem}_{name}.tif", None)
    return folder / stem, options


def write_file(case: Stored, array: np.ndarray, path: Path, names) -> Path:
    path.parent.mkdir(exist_ok=True)
    gsd, (tile, compression, interleave) = SENSORS[case.sensor].gsd, case.layout
    transform = rasterio.Affine(gsd, 0, LEFT, 0, -gsd, TOP)
    if case.south_up:
        transform = rasterio.Affine(gsd, 0, LEFT, 0, gsd, TOP - gsd * SIDE)
    profile = dict(driver="GTiff", count=len(array), height=SIDE, width=SIDE, dtype=array.dtype, interleave=interleave)
    profile |= dict(tiled=True, blockxsize=tile, blockysize=tile) if tile else {}
    profile |= dict(compress=compression) if compression != "none" else {}
    profile |= dict(crs=CRS, transform=transform) if case.crs else {}
    profile |= dict(nodata=0) if case.hole == "tagged" else {}
    profile |= dict(photometric="minisblack", alpha="unspecified") if len(array) == 4 else {}
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
    is_file = case.container in ("GeoTIFF", "folder")
    truth = dict(when=WHEN) if case.date == "given" or (case.date == "tag" and is_file) else {}
    if case.crs and case.container != "array":
        half = sensor.gsd * SIDE / 2
        lon, lat = pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True).transform(LEFT + half, TOP - half)
        truth |= dict(lat=lat, lon=lon)
    expected = clay().embed(values, sensor, check=False, **truth).chip[0]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source, options = write(case, values, Path(folder))
        if case.south_up and not case.crs and case.container != "array":
            return  # without a CRS nothing tells whether rows count from north or south
        if case.sensor == "naip" and case.hole == "zeros" and case.container in ("array", "xarray"):
            return  # black may be measured in 8 bits: only in files is black in all bands a border
        known = case.names != "unknown" and case.hole in ("none", "tagged", "nan")  # must be read, not only reported
        if case.container == "array":  # `bands=` takes the sensor's own names alone
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
