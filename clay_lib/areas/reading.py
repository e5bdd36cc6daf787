"""Reading archives: a look onto a grid, in native numbers, with NaN where nothing was measured or clouds hide it.

odc-stac reads the ranges that the grid needs and reprojects, by the patient driver of archive_access.py.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import odc.stac
import pystac
import rasterio
import shapely
import shapely.geometry
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from odc.geo.roi import roi_is_empty, roi_pad
from odc.loader._rio import RioDriver, RioReader, rio_read
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window, from_bounds

from clay_lib.areas.items import Archive, Look, Source, mask_of, moment_of, sources_of
from clay_lib.data.rasters import cut_at_antimeridian, has_mask
from clay_lib.errors import ContractError
from clay_lib.sensors import METERS_PER_DEGREE

Field = tuple[int, int, Sequence[int]]  # first bit, last bit, the values that hide the ground


def hidden(classes: np.ndarray, fields: Sequence[Field]) -> np.ndarray:
    """Classes of any shape, unsigned integers -> bool, True where one of the fields holds one of its values.

    >>> hidden(scl, [(0, 7, [3, 8, 9, 10])])  # an ordinary class band is a field of all its bits
    """
    out = np.zeros(classes.shape, bool)
    for first, last, values in fields:
        out |= np.isin((classes >> first) & ((1 << (last - first + 1)) - 1), list(values))
    return out


# ---- Where an item's files measured: alpha bands, GDAL's masks, and fills that count only where all bands ----

ALL = 0.999  # of the weights that make a pixel, but for their rounding


def measured_share(sources: Sequence[tuple[str, int]], archive: Archive, geobox: GeoBox) -> tuple[tuple, np.ndarray]:
    """(rows and columns of geobox, float32 there): of each pixel the share that was measured.

    sources: (address, 1-based band), one a band of the sensor. Files of coarser bands cover the same ground.
    """
    with ExitStack() as stack:
        opened = {name: stack.enter_context(rasterio.open(name, sharing=False)) for name in dict(sources)}
        bands = [(opened[name], index) for name, index in sources]
        grids = dict.fromkeys((file.shape, file.transform, file.crs) for file in opened.values())
        shares = [_share_on(GeoBox(*grid), bands, archive, geobox, alone=len(grids) == 1) for grid in grids]
    return np.s_[0 : geobox.shape[0], 0 : geobox.shape[1]], np.minimum.reduce(shares)


def _share_on(own: GeoBox, bands, archive: Archive, geobox: GeoBox, alone: bool) -> np.ndarray:
    """float32 [H, W] of geobox, from the pixels of the files' grid `own`. alone: there is no other."""
    way = compute_reproject_roi(own, geobox)
    share = np.zeros(geobox.shape, np.float32)
    if way.paste_ok and way.read_shrink == 1 and alone and not archive.alpha:
        share[way.roi_dst] = 1  # the stored numbers themselves will tell
    elif not (roi_is_empty(way.roi_src) or roi_is_empty(way.roi_dst)):
        roi = roi_pad(way.roi_src, 2 + math.ceil(way.scale), tuple(own.shape))  # what the outermost are made of
        shrink = way.read_shrink if bands[0][0].overviews(1) else 1  # as the bands are read
        part = own[roi].zoom_to(tuple(math.ceil(side / shrink) for side in own[roi].shape))
        share[way.roi_dst], _ = reproject(
            _measured(bands, archive, own, roi, part).astype(np.float32), np.zeros_like(share[way.roi_dst]),
            src_crs=str(own.crs), src_transform=part.transform,
            dst_crs=str(geobox.crs), dst_transform=geobox[way.roi_dst].transform,
            resampling=Resampling.bilinear,
        )  # fmt: skip
    return share


def _measured(bands, archive: Archive, own: GeoBox, roi, part: GeoBox) -> np.ndarray:
    """bool on `part`, which is own[roi] or coarser."""

    def read(file, index):  # nearest; index 0: the mask
        same = (file.shape, file.transform) == (own.shape, own.transform)
        window = Window.from_slices(*roi) if same else from_bounds(*part.boundingbox.bbox, file.transform)
        return (file.read if index else file.read_masks)(index or 1, window=window, out_shape=tuple(part.shape))

    fill = np.full(part.shape, archive.together is not None)
    for file, index in bands:
        if fill.any():
            fill &= read(file, index) == archive.together
    for file in dict.fromkeys(file for file, _ in bands) if archive.alpha else ():
        kinds = file.colorinterp
        if ColorInterp.alpha in kinds:
            fill |= read(file, kinds.index(ColorInterp.alpha) + 1) == 0
        elif has_mask(file):
            fill |= read(file, 0) == 0
    return ~fill


# ---- Access to an archive's files: signed where it wants that, patient with servers, and loud ----

warnings.filterwarnings("ignore", "Dataset has no geotransform", module="rasterio.warp")  # the warper's own arrays
logging.getLogger("odc.loader._rio").setLevel(logging.CRITICAL)  # it tells of reads that are tried again, and then do
TRIES = 3  # of one read, beside what GDAL tries itself
PAUSE = 0.5  # s before the second try, doubled before each further one
HOPELESS = "response code: 40[0-9]|AWS_SECRET_ACCESS_KEY"  # answers that trying again does not change
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
# Amazon's buckets: unsigned, or with keys or a profile of whoever pays. The machine's own identity is never asked for.
OPEN = {"AWS_NO_SIGN_REQUEST": "YES", "CPL_AWS_EC2_API_ROOT_URL": "disabled"}
PAYING = {"AWS_REQUEST_PAYER": "requester", "CPL_AWS_EC2_API_ROOT_URL": "disabled"}


class PatientDriver(RioDriver):
    """odc-stac's reader of rasters that tries again, then raises; it signs addresses as late as may be."""

    def __init__(self, archive: Archive, sources: Sequence[tuple[str, int]] = ()):
        """sources: (address, band) of all bands, for the asset "#0": where they measured."""
        super().__init__()
        self.archive, self.sources = archive, tuple(sources)

    def capture_env(self):
        return options(self.archive)

    def open(self, src, ctx):
        return _PatientReader(src, ctx, self.archive, self.sources)


class _PatientReader(RioReader):
    def __init__(self, src, ctx, archive: Archive, sources):
        super().__init__(src, ctx)
        self.archive, self.sources = archive, sources

    def read(self, cfg, dst_geobox, *, dst=None, selection=None):
        href, _, index = self._src.uri.rpartition("#")
        address = signed(href, self.archive)
        if index == "0":
            sources = [(signed(href, self.archive), band) for href, band in self.sources]
            return patiently(address, lambda: measured_share(sources, self.archive, dst_geobox))
        said = None if self._src.meta is None else self._src.meta.nodata
        fallback = self.archive.nodata
        if self.archive.together is not None:
            said = fallback = None
            if "?" not in address:  # a nodata tag would take single bands out where they measured that number
                address = f"vrt://{_vsi(address)}?a_nodata=none"
        cfg = replace(cfg, src_nodata_override=said, src_nodata_fallback=fallback)
        source = self._src.patch(uri=address, band=int(index))
        return patiently(address, lambda: rio_read(source, cfg, dst_geobox, dst=dst, selection=selection))


def options(archive: Archive) -> dict[str, str]:
    """GDAL's, for files of an archive."""
    bucket = PAYING if archive.signing == "requester-pays" else OPEN
    return bucket if archive.kind == "files" else GDAL | bucket  # files have neighbours: world files, masks, overviews


def patiently(address: str, read):
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
                    f"{_plain(address)}: {told}",
                    "a raster that can be read to its end",
                    _cause(told, remote),
                ) from None
            time.sleep(PAUSE * 2**attempt)


def _plain(address: str) -> str:
    """An address to show: without GDAL's words around it, and without the token behind it."""
    return address.removeprefix("vrt://").removeprefix("/vsicurl/").partition("?")[0]


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


def signed(href: str, archive: Archive) -> str:
    """Microsoft's addresses with a token that is fresh, Amazon's only where someone pays; all others as they are."""
    if href.startswith("s3://") and archive.signing == "requester-pays":
        if not (os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")):
            raise ContractError(
                "archive",
                f"{href}, and neither AWS_ACCESS_KEY_ID nor AWS_PROFILE",
                "keys of an account that pays for what is fetched",
                "a requester-pays bucket: set the variables, or take another of archives_of(sensor)",
            )
        return href
    if archive.signing != "planetary-computer" or not (urlsplit(href).hostname or "").endswith("blob.core.windows.net"):
        return href
    try:
        import planetary_computer
    except ImportError:
        raise ContractError(
            "archive",
            f"{archive.name}, and no planetary_computer package",
            "signed addresses",
            'install it: pip install -e ".[planetary]"',
        ) from None
    return planetary_computer.sign_url(href)


# ---- Reading archives: a look onto a grid, in native numbers, with NaN where nothing was measured or clou ----

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
        raise ContractError("clouds", repr(clouds), "'mask' or 'keep'", "a misspelt word")
    if geobox.crs is None:
        raise ContractError("geobox", "no CRS", "a GeoBox with its CRS", "a grid of bare pixels")
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
        (east - west) * METERS_PER_DEGREE * math.cos(math.radians((south + north) / 2)),
        (north - south) * METERS_PER_DEGREE,
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


# ---- Reading an area ahead of the model, through Dask: a bounded number of blocks, in their order ----
