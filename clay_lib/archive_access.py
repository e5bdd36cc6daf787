"""Access to an archive's files: signed where it wants that, patient with servers, and loud.

Archives answer with errors now and then, so that a read is tried again; and a read that failed must never look like
missing pixels, so that it ends in an error.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import rasterio
from odc.loader._rio import RioDriver, RioReader, rio_read
from rasterio.errors import RasterioError

from clay_lib.archive_measured import measured_share
from clay_lib.archive_profiles import Archive
from clay_lib.contract import ContractError

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
                    found=f"{_plain(address)}: {told}",
                    expected="a raster that can be read to its end",
                    cause=_cause(told, remote),
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
