"""Reading archives: a look onto a grid, in native numbers, with NaN where nothing was measured or clouds hide it.

odc-stac reads the ranges that the grid needs and reprojects; its driver is made patient here, since archives answer
with errors now and then, and loud, since a read that failed must never look like missing pixels.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import odc.stac
import pystac
import rasterio
import shapely.geometry
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.loader._rio import RioDriver, RioReader, rio_read
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from clay_lib.archive_items import Source, mask_of, moment_of, sources_of
from clay_lib.archive_profiles import Archive, Look
from clay_lib.clouds import hidden
from clay_lib.contract import ContractError
from clay_lib.scenes import METRES_PER_DEGREE

warnings.filterwarnings("ignore", "Dataset has no geotransform", module="rasterio.warp")  # the warper's own arrays
UNKNOWN = datetime(2000, 1, 1, tzinfo=UTC)  # odc-stac wants a date, and none of this depends on it
logging.getLogger("odc.loader._rio").setLevel(logging.CRITICAL)  # it tells of reads that are tried again, and then do
BLOCK, HEADER, PACKED = 512, 32_768, 0.7  # px, bytes, share: as the public archives' files have them
TRIES = 3  # of one read, beside what GDAL tries itself
# Amazon's buckets: unsigned, or with keys or a profile of whoever pays. The machine's own identity is never asked for.
OPEN = {"AWS_NO_SIGN_REQUEST": "YES", "CPL_AWS_EC2_API_ROOT_URL": "disabled"}
PAYING = {"AWS_REQUEST_PAYER": "requester", "CPL_AWS_EC2_API_ROOT_URL": "disabled"}
HOPELESS = "response code: 40[0-9]|AWS_SECRET_ACCESS_KEY"  # answers that trying again does not change
READERS = 8  # threads, when pixels are wanted now: they wait for the network, not for a core
PAUSE = 0.5  # s before the second try, doubled before each further one
GDAL = {  # one request a read where that can be, and no listing of folders
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_RETRY_CODES": "429,500,502,503,504",
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",  # s below the limit (bytes a second) until a request counts as dead
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "VSI_CACHE": "FALSE",
}


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
    grid = geobox.footprint("EPSG:4326").geom
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
    mask = mask_of(item, archive) if clouds == "mask" else None
    if mask is not None:
        classes = _load(item, {"mask": mask}, geobox, archive, chunks, resampling="nearest", dtype="uint16", nodata=0)
        hides.append(
            xr.apply_ufunc(
                hidden, classes["mask"], kwargs={"fields": archive.masks}, dask="parallelized", output_dtypes=[bool]
            )
        )
    alpha = _alpha_of(sources[bands[0]], archive) if archive.alpha else None
    if alpha is not None:
        opaque = _load(item, {"alpha": alpha}, geobox, archive, chunks, resampling="nearest", dtype="uint8", nodata=0)
        hides.append(opaque["alpha"] == 0)
    for band, source in sources.items():
        if (source.gain, source.bias) != (1, 0):
            seen[band] = seen[band] * np.float32(source.gain) + np.float32(source.bias)
        for hide in hides:
            seen[band] = seen[band].where(~hide)
    return {band: seen[band] for band in bands}


def _load(item, sources: dict[str, Source], geobox, archive, chunks, *, resampling, dtype, nodata) -> xr.Dataset:
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
        driver=PatientDriver(archive),
        pool=READERS if chunks is None else None,
        stac_cfg={"*": {"warnings": "ignore"}},
    )
    return loaded.isel(time=0, drop=True)


def _alpha_of(source: Source, archive: Archive) -> Source | None:
    """The alpha band of a file, if it has one: items do not tell."""
    address = _signed(source.href, archive)

    def meanings():
        with rasterio.Env(**_options(archive)), rasterio.open(address) as file:
            return file.colorinterp

    found = _patiently(address, meanings)
    return Source(source.href, found.index(ColorInterp.alpha) + 1) if ColorInterp.alpha in found else None


def _all(conditions) -> xr.DataArray:
    first, *rest = conditions
    for condition in rest:
        first = first & condition
    return first


# ---- the driver ----


class PatientDriver(RioDriver):
    """odc-stac's reader of rasters that tries again, then raises; it signs addresses as late as may be."""

    def __init__(self, archive: Archive):
        super().__init__()
        self.archive = archive

    def capture_env(self):
        return _options(self.archive)

    def open(self, src, ctx):
        return _PatientReader(src, ctx, self.archive)


class _PatientReader(RioReader):
    def __init__(self, src, ctx, archive: Archive):
        super().__init__(src, ctx)
        self.archive = archive

    def read(self, cfg, dst_geobox, *, dst=None, selection=None):
        href, _, index = self._src.uri.rpartition("#")
        said = None if self._src.meta is None else self._src.meta.nodata
        address = _signed(href, self.archive)
        fallback = self.archive.nodata
        if self.archive.together is not None:
            said = fallback = None
            if "?" not in address:  # a nodata tag would take single bands out where they measured that number
                address = f"vrt://{_vsi(address)}?a_nodata=none"
        cfg = replace(cfg, src_nodata_override=said, src_nodata_fallback=fallback)
        source = self._src.patch(uri=address, band=int(index))
        return _patiently(address, lambda: rio_read(source, cfg, dst_geobox, dst=dst, selection=selection))


def _options(archive: Archive) -> dict[str, str]:
    return GDAL | (PAYING if archive.signing == "requester-pays" else OPEN)


def _patiently(address: str, read):
    """What read() returns, tried again where the network may have been at fault. ContractError when it never does."""
    remote = "://" in address.removeprefix("vrt://") or "/vsi" in address
    for attempt in range(TRIES):
        try:
            if not attempt:
                return read()
            # GDAL keeps what it fetched, a range that was cut short included: a second try must not meet it
            with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=_vsi(address).removeprefix("vrt://").partition("?")[0]):
                return read()
        except RasterioError as error:
            told = " ".join(str(e) for e in (error.__cause__, error) if e)
            if not remote or attempt == TRIES - 1 or re.search(HOPELESS, told):
                raise ContractError(
                    "archive",
                    found=f"{urlsplit(address)._replace(query='').geturl()}: {told}",
                    expected="a raster that can be read to its end",
                    cause=_cause(told, remote),
                ) from None
            time.sleep(PAUSE * 2**attempt)


def _cause(told: str, remote: bool) -> str:
    if "404" in told:
        return "the archive no longer holds this file"
    if "403" in told or "409" in told:
        return 'the archive wants a signed address: pip install -e ".[planetary]", or credentials of a paying account'
    if not remote:
        return "a truncated download, or a file that moved"
    return f"a truncated file, or a server that failed {TRIES} times: try again later, what was read is kept"


def _vsi(address: str) -> str:
    """An address as GDAL's own file systems call it."""
    scheme, _, rest = address.partition("://")
    if scheme in ("http", "https"):
        return f"/vsicurl/{address}"
    return {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}[scheme] + rest if rest else address


def _signed(href: str, archive: Archive) -> str:
    """Microsoft's addresses with a token that is fresh, Amazon's only where someone pays; all others as they are."""
    if href.startswith("s3://") and archive.signing == "requester-pays":
        if not (os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")):
            raise ContractError(
                "archive",
                found=f"{href}, and neither AWS_ACCESS_KEY_ID nor AWS_PROFILE",
                expected="keys of an account that pays for what is fetched",
                cause="a requester-pays bucket: set the variables, or take another of archives_of(sensor)",
            )
        return href
    if archive.signing != "planetary-computer" or not (urlsplit(href).hostname or "").endswith("blob.core.windows.net"):
        return href
    try:
        import planetary_computer
    except ImportError:
        raise ContractError(
            "archive",
            found=f"{archive.name}, and no planetary_computer package",
            expected="signed addresses",
            cause='install it: pip install -e ".[planetary]"',
        ) from None
    return planetary_computer.sign_url(href)
