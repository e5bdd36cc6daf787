"""Reading acquisitions onto a grid: native numbers, NaN where nothing was measured or clouds hide the ground.

odc-stac reads the ranges that the grid needs and reprojects them. Archives fail now and then, so a read is tried again;
a read that failed must never look like missing pixels, so it ends in an error.
"""

import functools
import logging
import math
import operator
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import odc.stac
import pystac
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from odc.geo.roi import roi_is_empty, roi_pad
from odc.geo.xr import xr_coords
from odc.loader._rio import RioDriver, RioReader, rio_read
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window, from_bounds
from scipy.ndimage import distance_transform_edt

from clay_lib.areas.items import Acquisition, Archive, Source, mask_of, moment_of, sources_of
from clay_lib.data.rasters import has_mask
from clay_lib.errors import ContractError

warnings.filterwarnings("ignore", "Dataset has no geotransform", module="rasterio.warp")  # the warper's own arrays
logging.getLogger("odc.loader._rio").setLevel(logging.CRITICAL)  # it reports reads that are retried

UNKNOWN = datetime(2000, 1, 1, tzinfo=UTC)  # odc-stac needs a date; no result depends on it
READERS = 8  # threads of a read over the network, where they wait; on a core they would only slow the model down
THIS_MACHINE = (None, "localhost", "127.0.0.1", "::1")  # hosts of files and of a local archive
FULL = 0.999  # share of a pixel's interpolation weights, all but rounding
TRIES, PAUSE = 3, 0.5  # of one read, beside GDAL's own; s before the second, doubled before each further one
PERMANENT = "response code: 40[0-9]|AWS_SECRET_ACCESS_KEY"  # responses that a retry does not change
GDAL = {  # one request a read where possible, and no listing of folders
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
# Amazon's buckets: unsigned, or with the requester's keys or profile; never the machine's own identity.
OPEN = {"AWS_NO_SIGN_REQUEST": "YES", "CPL_AWS_EC2_API_ROOT_URL": "disabled"}
REQUESTER_PAYS = {"AWS_REQUEST_PAYER": "requester", "CPL_AWS_EC2_API_ROOT_URL": "disabled"}
READ_AHEAD = 2  # blocks beyond those being read
WITHOUT_WORKERS = 120  # s without any worker until a job gives up
IGNORED = ("ignore", None, Warning, None, 0)  # as warnings.simplefilter("ignore") writes it
_readers, _readers_lock = {"now": 0, "ignored before": False}, threading.Lock()


class MissingFile(ContractError):
    """A file that the archive's item names and its server does not have (404)."""


def read_acquisition(
    acquisition: Acquisition,
    geobox: GeoBox,
    *,
    clouds: str = "mask",
    dilation: int = 0,
    chunks: dict | None = None,
) -> xr.Dataset:
    """An acquisition on a grid: a variable [y, x] a band, in the sensor's order, native numbers float32.

    NaN where no item measured, and with clouds="mask" where the archive's own classes hide the ground ("keep" leaves
    it). Values are the stored ones where the grids coincide, else bilinear; classes are always the nearest. Where items
    overlap, the first that measured counts. dilation: pixels around clouds and shadows that are hidden too.
    chunks: {"y": 512, "x": 512} reads lazily with Dask, all but the classes of a dilation; None reads now.
    Raises ContractError for an item that lacks a band, and for a file that cannot be read after all tries.
    """
    if clouds not in ("mask", "keep"):
        raise ContractError("clouds", repr(clouds), "'mask' or 'keep'", "a misspelled word")
    if geobox.crs is None:
        raise ContractError("geobox", "no CRS", "a GeoBox with its CRS", "a grid of plain pixels")
    sensor, bands = acquisition.sensor, acquisition.bands
    merged: dict = {}
    for item in acquisition.items:
        pixels = _read_item(item, acquisition, geobox, clouds, dilation, chunks)
        empty = _all(np.isnan(values) for values in merged.values()) if merged else None
        merged = {band: np.where(empty, pixels[band], merged[band]) for band in bands} if merged else pixels
    variables = {
        name: (geobox.dims, merged[name], {"wavelength": sensor.bands[index].wavelength})
        for name, index in zip(bands, sensor.indices(bands), strict=True)
    }
    attrs = {
        "sensor": sensor.name,
        "when": "" if acquisition.when is None else acquisition.when.isoformat(),
        "items": list(acquisition.ids),
        "archive": acquisition.archive.name,
    }
    return xr.Dataset(variables, xr_coords(geobox), attrs)


@contextmanager
def _warnings_kept() -> Iterator[None]:
    """Undo what rasterio leaves behind where several threads warp at a time: a filter that ignores all warnings.

    It sets the filter during each warp and puts back what it found, which may be the filter of another thread.
    """
    with _readers_lock:
        if not _readers["now"]:
            _readers["ignored before"] = IGNORED in warnings.filters
        _readers["now"] += 1
    try:
        yield
    finally:
        with _readers_lock:
            _readers["now"] -= 1
            while not _readers["ignored before"] and IGNORED in warnings.filters:
                warnings.filters.remove(IGNORED)


# ---- one item ----


def _read_item(
    item, acquisition: Acquisition, geobox: GeoBox, clouds: str, dilation: int, chunks
) -> dict[str, np.ndarray]:
    """{band: [y, x]} in NumPy, or lazily in Dask: xarray would compare coordinates at each of the steps below."""
    archive = acquisition.archive
    sources = sources_of(item, archive, acquisition.bands)
    load = functools.partial(_load, item, archive=archive, geobox=geobox, chunks=chunks)
    pixels = load(sources, resampling="bilinear")
    hidden = []  # conditions [y, x] under which all bands are missing
    if archive.kind == "files":  # whose fill may be untagged; an archive's profile states its own
        hidden.append(_all(pixels[band] == 0 for band in sources))
    if archive.shared_fill is not None:
        hidden.append(_all(pixels[band] == archive.shared_fill for band in sources))
    if archive.shared_fill is not None or archive.alpha:
        bands = [(source.href, source.index) for source in sources.values()]
        share = load({"share": Source(bands[0][0], 0)}, share_of=bands)
        hidden.append(~(share["share"] > FULL))
    if clouds == "mask" and archive.mask and not dilation:
        hidden.append(cloud_mask(_classes(item, archive, geobox, chunks), archive.mask_bits))
    elif clouds == "mask" and archive.mask:
        classified, away = clouds_around(item, archive, geobox, dilation)
        hidden.append(classified | (away <= dilation))
    condition = functools.reduce(operator.or_, hidden) if hidden else None
    for band, source in sources.items():
        if (source.gain, source.bias) != (1, 0):
            pixels[band] = pixels[band] * np.float32(source.gain) + np.float32(source.bias)
        if hidden:
            pixels[band] = np.where(condition, np.float32(np.nan), pixels[band])
    return pixels


def cloud_mask(classes: np.ndarray, fields: Sequence[tuple[int, int, Sequence[int]]]) -> np.ndarray:
    """Unsigned classes of any shape -> bool, True where a bit field (first bit, last bit, values) hides the ground.

    >>> cloud_mask(scl, [(0, 7, [3, 8, 9, 10])])  # an ordinary class band is a field of all its bits
    """
    hidden = (np.isin((classes >> low) & ((1 << (high - low + 1)) - 1), values) for low, high, values in fields)
    return functools.reduce(operator.or_, hidden)


def clouds_around(item, archive: Archive, geobox: GeoBox, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(bool [H, W] where the classes hide the ground, pixels [H, W] to the nearest cloud or shadow, at most reach + 1).

    Clouds up to `reach` pixels beyond the grid count too, so that neighboring grids agree; fill is no cloud.
    """
    classes, inside = _classes(item, archive, geobox.pad(reach), None), np.s_[reach : -reach or None]
    hidden = cloud_mask(classes, archive.mask_bits)
    clouds = hidden & ~np.isin(classes, archive.mask_fill)
    away = distance_transform_edt(~clouds) if clouds.any() else np.full(clouds.shape, np.inf)
    return hidden[inside, inside], np.minimum(away[inside, inside], reach + 1).astype(np.float32)


def _classes(item, archive: Archive, geobox: GeoBox, chunks) -> np.ndarray:
    """The archive's classes [y, x] of one item, uint16, 0 outside of it."""
    source, plain = mask_of(item, archive), replace(archive, nodata=None)  # the bands' fill may be an ordinary class
    return _load(item, {"mask": source}, archive=plain, geobox=geobox, chunks=chunks, dtype="uint16", nodata=0)["mask"]


def _load(
    item, sources: dict[str, Source], *, archive, geobox, chunks, resampling="nearest", dtype="float32", nodata=math.nan,
    share_of=(),
) -> dict[str, np.ndarray]:  # fmt: skip
    """Stored numbers of one item on the grid, {name: [y, x]}."""
    plain = pystac.Item(item.id, item.geometry, item.bbox, moment_of(item) or UNKNOWN, {}, collection="item")
    for name, source in sources.items():
        metadata = {} if source.nodata is None else {"raster:bands": [{"nodata": source.nodata}]}
        address = f"{source.href}#{source.index}"  # the driver takes the band's number off again
        plain.add_asset(name, pystac.Asset(address, media_type=pystac.MediaType.COG, extra_fields=metadata))
    hrefs = [source.href for source in sources.values()]
    waits = any("/vsi" in href or urlsplit(href).hostname not in THIS_MACHINE for href in hrefs)
    loaded = odc.stac.load(
        [plain], bands=list(sources), geobox=geobox, chunks=chunks, resampling=resampling, dtype=dtype, nodata=nodata,
        driver=RetryingDriver(archive, share_of), pool=READERS if waits and chunks is None else None,
        stac_cfg={"*": {"warnings": "ignore"}},
    )  # fmt: skip
    return {name: loaded[name].data[0] for name in sources}


def _all(conditions) -> xr.DataArray:
    return functools.reduce(operator.and_, conditions)


# ---- files of an archive ----


class RetryingDriver(RioDriver):
    """odc-stac's raster driver with retries and an error at their end; addresses are signed just before they are read."""

    def __init__(self, archive: Archive, share_of: Sequence[tuple[str, int]] = ()):
        """share_of: (address, band) of all bands, for the asset "#0": the share of each pixel that was measured."""
        super().__init__()
        self.archive, self.share_of = archive, tuple(share_of)

    def capture_env(self):
        bucket = REQUESTER_PAYS if self.archive.signing == "requester-pays" else OPEN
        return bucket if self.archive.kind == "files" else GDAL | bucket  # files have sidecars: masks, overviews

    def open(self, src, ctx):
        return _RetryingReader(src, ctx, self)


class _RetryingReader(RioReader):
    def __init__(self, src, ctx, driver: RetryingDriver):
        super().__init__(src, ctx)
        self.archive, self.share_of = driver.archive, driver.share_of

    @_warnings_kept()
    def read(self, cfg, dst_geobox, *, dst=None, selection=None):
        href, _, index = self._src.uri.rpartition("#")
        address = sign(href, self.archive)
        if index == "0":
            bands = [(sign(href, self.archive), band) for href, band in self.share_of]
            return with_retries(address, lambda: measured_share(bands, self.archive, dst_geobox))
        nodata = None if self._src.meta is None else self._src.meta.nodata
        fallback = self.archive.nodata
        if self.archive.shared_fill is not None:
            nodata = fallback = None
            if "?" not in address:  # a nodata tag would hide single bands that measured this value
                address = f"vrt://{_vsi(address)}?a_nodata=none"
        cfg = replace(cfg, src_nodata_override=nodata, src_nodata_fallback=fallback)
        source = self._src.patch(uri=address, band=int(index))
        return with_retries(address, lambda: rio_read(source, cfg, dst_geobox, dst=dst, selection=selection))


def with_retries(address: str, read):
    """The result of read(), tried again where the network may be at fault; ContractError when all tries failed."""
    remote = "://" in address.removeprefix("vrt://") or "/vsi" in address
    for attempt in range(TRIES):
        try:
            if not attempt:
                return read()
            # GDAL caches what it fetched, even a truncated range: a second try must not get it
            with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=_vsi(address).removeprefix("vrt://").partition("?")[0]):
                return read()
        except (RasterioError, AssertionError) as error:  # odc-geo asserts a CRS, which a header cut short has lost
            message = " ".join(str(e) for e in (error.__cause__, error) if e) if str(error) else "no CRS"
            if not remote or attempt == TRIES - 1 or re.search(PERMANENT, message):
                plain = address.removeprefix("vrt://").removeprefix("/vsicurl/").partition("?")[0]  # without a token
                kind = MissingFile if "404" in message else ContractError
                found, expected = f"{plain}: {message}", "a raster that can be read to its end"
                raise kind("archive", found, expected, _cause(message, remote)) from None
            time.sleep(PAUSE * 2**attempt)


def _cause(message: str, remote: bool) -> str:
    if "404" in message:
        return "the archive no longer holds this file"
    if "403" in message or "409" in message:
        return 'the archive needs a signed address: pip install -e ".[planetary]", or credentials of a paying account'
    if not remote:
        return "a truncated download, or a file that moved"
    return f"a truncated file, or a server that failed {TRIES} times: try again later, finished parts are kept"


def _vsi(address: str) -> str:
    """An address in the notation of GDAL's virtual file systems."""
    scheme, _, rest = address.partition("://")
    if scheme in ("http", "https"):
        return f"/vsicurl/{address}"
    return {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}[scheme] + rest if rest else address


def sign(href: str, archive: Archive) -> str:
    """Microsoft's addresses with a fresh token; requester-pays buckets only with keys; all others unchanged."""
    if href.startswith("s3://") and archive.signing == "requester-pays":
        if not (os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")):
            found = f"{href}, and neither AWS_ACCESS_KEY_ID nor AWS_PROFILE"
            cause = "a requester-pays bucket: set the variables, or take another of archives_of(sensor)"
            raise ContractError("archive", found, "keys of an account that pays", cause)
        return href
    if archive.signing != "planetary-computer" or not (urlsplit(href).hostname or "").endswith("blob.core.windows.net"):
        return href
    try:
        import planetary_computer
    except ImportError:
        found = f"{archive.name}, and no planetary_computer package"
        raise ContractError("archive", found, "signed addresses", 'pip install -e ".[planetary]"') from None
    return planetary_computer.sign_url(href)


# ---- share of a pixel that was measured ----


def measured_share(bands: Sequence[tuple[str, int]], archive: Archive, geobox: GeoBox) -> tuple[tuple, np.ndarray]:
    """(rows and columns of geobox, float32 there): the share of each pixel's interpolation weights that was measured.

    From alpha bands, GDAL's masks and the shared fill, on the files' own pixels: no fill bleeds into its neighbors.
    bands: (address, 1-based index), one a band of the sensor. Files of coarser bands cover the same ground.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(rasterio.open(name, sharing=False)) for name in dict(bands)}
        opened = [(files[name], index) for name, index in bands]
        grids = dict.fromkeys((file.shape, file.transform, file.crs) for file in files.values())
        shares = [_share_on(GeoBox(*grid), opened, archive, geobox, only=len(grids) == 1) for grid in grids]
    return np.s_[0 : geobox.shape[0], 0 : geobox.shape[1]], np.minimum.reduce(shares)


def _share_on(own: GeoBox, bands, archive: Archive, geobox: GeoBox, only: bool) -> np.ndarray:
    """float32 [H, W] of geobox, from the pixels of the files' grid `own`; only: no file has another grid."""
    overlap = compute_reproject_roi(own, geobox)
    share = np.zeros(geobox.shape, np.float32)
    if overlap.paste_ok and overlap.read_shrink == 1 and only and not archive.alpha:
        share[overlap.roi_dst] = 1  # the same grid: the shared fill shows in the stored numbers themselves
    elif not (roi_is_empty(overlap.roi_src) or roi_is_empty(overlap.roi_dst)):
        roi = roi_pad(overlap.roi_src, 2 + math.ceil(overlap.scale), tuple(own.shape))  # neighbors of the outermost
        shrink = overlap.read_shrink if bands[0][0].overviews(1) else 1  # as the bands are read
        part = own[roi].zoom_to(tuple(math.ceil(side / shrink) for side in own[roi].shape))
        share[overlap.roi_dst], _ = reproject(
            _measured(bands, archive, own, roi, part).astype(np.float32), np.zeros_like(share[overlap.roi_dst]),
            src_crs=str(own.crs), src_transform=part.transform,
            dst_crs=str(geobox.crs), dst_transform=geobox[overlap.roi_dst].transform,
            resampling=Resampling.bilinear,
        )  # fmt: skip
    return share


def _measured(bands, archive: Archive, own: GeoBox, roi, part: GeoBox) -> np.ndarray:
    """bool on `part`, which is own[roi] or coarser."""

    def read(file, index):  # nearest; index 0: the mask
        same = (file.shape, file.transform) == (own.shape, own.transform)
        window = Window.from_slices(*roi) if same else from_bounds(*part.boundingbox.bbox, file.transform)
        return (file.read if index else file.read_masks)(index or 1, window=window, out_shape=tuple(part.shape))

    fill = np.full(part.shape, archive.shared_fill is not None)
    for file, index in bands:
        if fill.any():
            fill &= read(file, index) == archive.shared_fill
    for file in dict.fromkeys(file for file, _ in bands) if archive.alpha else ():
        kinds = file.colorinterp
        if ColorInterp.alpha in kinds:
            fill |= read(file, kinds.index(ColorInterp.alpha) + 1) == 0
        elif has_mask(file):
            fill |= read(file, 0) == 0
    return ~fill


# ---- blocks of an area, through Dask ----


def read_block(acquisition: Acquisition, geobox: GeoBox, clouds: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(pixels float32 [C, H, W] with NaN for holes, names of the bands); runs on a Dask worker."""
    with picklable():
        dataset = read_acquisition(acquisition, geobox, clouds=clouds)
        return np.stack([np.asarray(dataset[name], np.float32) for name in acquisition.bands]), acquisition.bands


@contextmanager
def picklable() -> Iterator[None]:
    """ContractErrors without GDAL's own error as their context, which cannot be sent by a worker."""
    try:
        yield
    except ContractError as error:
        error.__context__ = None
        raise


def read_ahead(client, blocks: Sequence, read, *, overlap: int, clouds: str) -> Iterator[tuple]:
    """(job, (pixels, bands) or the exception) of all jobs of the blocks (`jobs.Block`), in their order.

    read: `read_block`, or that of composites.
    READ_AHEAD blocks more than there are workers are in progress or waiting: memory does not grow with the area.
    """
    waiting: deque = deque()
    rest = iter(blocks)
    try:
        while True:
            while len(waiting) < READ_AHEAD + sum(client.nthreads().values()) and (block := next(rest, None)):
                arguments = block.acquisition, block.geobox(overlap), clouds
                waiting.append((block, client.submit(read, *arguments, pure=False, retries=1)))
            if not waiting:
                return
            block, future = waiting.popleft()
            error = _exception(client, future)
            result = future.result() if error is None else error
            del future  # so that its worker frees the pixels
            for job in block.jobs:
                yield job, result if error is not None else (result[0][:, *block.window(job, overlap)], result[1])
    finally:
        client.cancel([future for _, future in waiting])


def _exception(client, future) -> BaseException | None:
    """The exception of a read, None if it succeeded. Raises ContractError when no worker is left."""
    last_seen = time.monotonic()
    while True:
        try:
            return future.exception(timeout=5)
        except TimeoutError:
            last_seen = time.monotonic() if client.nthreads() else last_seen
            if time.monotonic() - last_seen > WITHOUT_WORKERS:
                cause = "all were killed, probably out of memory: use fewer workers or smaller tiles, and run it again"
                found = f"no worker for {WITHOUT_WORKERS} s"
                raise ContractError("scheduler", found, "at least one that reads", cause) from None
