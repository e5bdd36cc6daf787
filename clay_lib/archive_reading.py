"""Reading archives: a look onto a grid, in native numbers, with NaN where nothing was measured or clouds hide it.

odc-stac reads the ranges that the grid needs and reprojects, by the patient driver of archive_access.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import odc.stac
import pystac
import shapely
import shapely.geometry
import xarray as xr
from odc.geo.geobox import GeoBox

from clay_lib.archive_access import PatientDriver
from clay_lib.archive_items import Source, mask_of, moment_of, sources_of
from clay_lib.archive_measured import ALL
from clay_lib.archive_profiles import Look
from clay_lib.clouds import hidden
from clay_lib.contract import ContractError
from clay_lib.georeference import METRES_PER_DEGREE
from clay_lib.tiles import cut_at_antimeridian

UNKNOWN = datetime(2000, 1, 1, tzinfo=UTC)  # odc-stac wants a date, and none of this depends on it
BLOCK, HEADER, PACKED = 512, 32_768, 0.7  # px, bytes, share: as the public archives' files have them
READERS = 8  # threads, when pixels are wanted now: they wait for the network, not for a core


def read_look(look: Look, geobox: GeoBox, *, clouds: str = "mask", chunks: dict | None = None) -> xr.Dataset:
    """What a look shows on a grid: a variable [y, x] a band, in the sensor's order, native numbers float32.

    NaN where no item measured, and with clouds="mask" where the archive's own classes hide the ground ("keep" leaves
    it). Values are the stored ones where the grids coincide, else bilinear; classes are always the nearest. Where items
    overlap, the first that measured counts. chunks: {"y": 512, "x": 512} reads with Dask, later; None reads now.
    Raises ContractError for an item that lacks a band, and for a file that cannot be read after all tries.
    """
    if clouds not in ("mask", "keep"):
        raise ContractError("clouds", found=repr(clouds), expected="'mask' or 'keep'", cause="a misspelt word")
    if geobox.crs is None:
        raise ContractError("geobox", found="no CRS", expected="a GeoBox with its CRS", cause="a grid of bare pixels")
    bands = [band for band in look.sensor.band_names if band in look.archive.assets]
    merged: dict[str, xr.DataArray] = {}
    for item in look.items:
        seen = _read_item(item, look, bands, geobox, clouds, chunks)
        empty = _all(values.isnull() for values in merged.values()) if merged else None
        merged = {b: seen[b].where(empty, merged[b]) for b in bands} if merged else seen
    out = xr.Dataset(merged)
    for name, band in zip(bands, look.sensor.indices(bands), strict=True):
        out[name].attrs = {"wavelength": look.sensor.bands[band].wavelength}
    out.attrs = {
        "sensor": look.sensor.name,
        "when": "" if look.when is None else look.when.isoformat(),
        "items": list(look.ids),
        "archive": look.archive.name,
    }
    return out


def read_bytes(look: Look, geobox: GeoBox) -> int:
    """Bytes that reading the grid would fetch, estimated from the items alone: nothing is opened.

    Whole internal tiles are fetched, BLOCK pixels a side; items that tell their files' sizes are taken at their word,
    else a number takes PACKED of its width in the file.
    """
    total = 0.0
    grid = cut_at_antimeridian(geobox.footprint("EPSG:4326").geom)
    bands = [band for band in look.sensor.band_names if band in look.archive.assets]
    for item in look.items:
        shape = shapely.geometry.shape(item.geometry)
        shared = shape.intersection(grid)
        if shared.is_empty:
            continue
        sources = [*sources_of(item, look.archive, bands).values(), mask_of(item, look.archive)]
        for source in filter(None, sources):
            across, down = _metres(shared)
            block = BLOCK * (source.gsd or look.archive.gsd)
            area = (across + block) * (down + block)
            whole = math.prod(_metres(shape))
            full = source.size or whole / (source.gsd or look.archive.gsd) ** 2 * source.width * PACKED
            total += full * min(1.0, area / whole) + min(HEADER, full)
    return round(total)


def _metres(shape) -> tuple[float, float]:
    west, south, east, north = shape.bounds
    if east - west > 180:  # the two sides of the antimeridian
        west, _, east, _ = shapely.transform(shape, lambda xy: np.stack([xy[:, 0] % 360, xy[:, 1]], axis=1)).bounds
    return (
        (east - west) * METRES_PER_DEGREE * math.cos(math.radians((south + north) / 2)),
        (north - south) * METRES_PER_DEGREE,
    )


# ---- one item ----


def _read_item(item, look: Look, bands, geobox: GeoBox, clouds: str, chunks) -> dict[str, xr.DataArray]:
    archive = look.archive
    sources = sources_of(item, archive, bands)
    seen = _load(item, sources, geobox, archive, chunks, resampling="bilinear", dtype="float32", nodata=math.nan)
    hides = []
    if archive.together is not None:
        hides.append(_all(seen[band] == archive.together for band in bands))
    if archive.together is not None or archive.alpha:
        whole = {"share": Source(sources[bands[0]].href, 0)}
        share = _load(item, whole, geobox, archive, chunks, resampling="nearest", dtype="float32", nodata=math.nan,
                      of=[(source.href, source.index) for source in sources.values()])  # fmt: skip
        hides.append(~(share["share"] > ALL))
    mask = mask_of(item, archive) if clouds == "mask" else None
    if mask is not None:
        of_classes = replace(archive, nodata=None)  # the fill of the measured bands may be no number of the classes
        classes = _load(
            item, {"mask": mask}, geobox, of_classes, chunks, resampling="nearest", dtype="uint16", nodata=0
        )
        hides.append(
            xr.apply_ufunc(
                hidden, classes["mask"], kwargs={"fields": archive.masks}, dask="parallelized", output_dtypes=[bool]
            )
        )
    for band, source in sources.items():
        if (source.gain, source.bias) != (1, 0):
            seen[band] = seen[band] * np.float32(source.gain) + np.float32(source.bias)
        for hide in hides:
            seen[band] = seen[band].where(~hide)
    return {band: seen[band] for band in bands}


def _load(item, sources: dict[str, Source], geobox, archive, chunks, *, resampling, dtype, nodata, of=()) -> xr.Dataset:
    """Stored numbers of one item on the grid, {name: [y, x]}."""
    plain = pystac.Item(item.id, item.geometry, item.bbox, moment_of(item) or UNKNOWN, {}, collection="look")
    for name, source in sources.items():
        said = {} if source.nodata is None else {"raster:bands": [{"nodata": source.nodata}]}
        address = f"{source.href}#{source.index}"  # the driver takes the band's number off again
        plain.add_asset(name, pystac.Asset(address, media_type=pystac.MediaType.COG, extra_fields=said))
    loaded = odc.stac.load(
        [plain],
        bands=list(sources),
        geobox=geobox,
        chunks=chunks,
        resampling=resampling,
        dtype=dtype,
        nodata=nodata,
        driver=PatientDriver(archive, of),
        pool=READERS if chunks is None else None,
        stac_cfg={"*": {"warnings": "ignore"}},
    )
    return loaded.isel(time=0, drop=True)


def _all(conditions) -> xr.DataArray:
    first, *rest = conditions
    for condition in rest:
        first = first & condition
    return first
