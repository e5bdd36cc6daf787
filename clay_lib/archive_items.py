"""Archive items: what an item says of its numbers, and which file and band holds each of ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pystac
import shapely.geometry

from clay_lib.archive_profiles import Archive
from clay_lib.contract import ContractError

NEW_BASELINE = 4.0  # of Sentinel-2, January 2022: since then 1000 is added to every number
WIDTHS = {"uint8": 1, "int8": 1, "float32": 4, "float64": 8, "uint32": 4}
BASELINE_OFFSET = -0.1  # reflectance that takes it off again


@dataclass(frozen=True)
class Source:
    """One band of one file, and how its numbers become native: native = stored * gain + bias."""

    href: str
    index: int  # 1-based
    gain: float = 1.0
    bias: float = 0.0
    nodata: float | None = None  # as the item states it
    gsd: float = 0.0  # m; 0: it does not say
    size: float = 0.0  # bytes of this band in the file; 0: it does not say
    width: int = 2  # bytes of a number


def sources_of(item: pystac.Item, archive: Archive, bands) -> dict[str, Source]:
    """{band: Source} of one item. Raises ContractError where it lacks a band, or says too little of its numbers."""
    return {band: _source(item, archive, archive.assets[band]) for band in bands}


def mask_of(item: pystac.Item, archive: Archive) -> Source | None:
    """The classified pixels of one item; None where the archive has none."""
    return _source(item, replace(archive, native=None), archive.mask) if archive.mask else None


def moment_of(item: pystac.Item) -> datetime | None:
    """When it was seen, UTC; of a composite, when its days begin."""
    when = item.datetime or item.common_metadata.start_datetime
    return None if when is None else when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC)


def solar_day(item: pystac.Item):
    """The local date of an item: scenes of one pass share it, wherever midnight UTC falls."""
    west, _, east, _ = shapely.geometry.shape(item.geometry).bounds
    return (moment_of(item) + timedelta(hours=(west + east) / 2 / 15)).date()


def href_of(asset: pystac.Asset, archive: Archive, item: pystac.Item) -> str:
    alternate = asset.extra_fields.get("alternate", {}).get(archive.alternate, {}) if archive.alternate else {}
    href = alternate.get("href") or asset.get_absolute_href() or asset.href
    if "://" not in href and not href.startswith("/"):
        raise ContractError(
            "item",
            found=f"{item.id}: {href}",
            expected="an address",
            cause="a relative link in an item without a place",
        )
    return href


def _asset(item: pystac.Item, archive: Archive, key: str) -> pystac.Asset:
    if key not in item.assets:
        raise ContractError(
            "item",
            found=f"{item.id}, which has {sorted(item.assets)}",
            expected=f"the asset {key!r}",
            cause=f"another product than {archive.collection or archive.name} of {archive.sensor}, or an item that was "
            "published without this band",
        )
    return item.assets[key]


def _source(item: pystac.Item, archive: Archive, key: str) -> Source:
    name, _, number = key.partition(".")
    asset, index = _asset(item, archive, name), int(number or 1)
    said = (asset.extra_fields.get("raster:bands") or asset.extra_fields.get("bands") or [{}] * index)[index - 1 :]
    said = said[0] if said else {}
    nodata = said.get("nodata")
    gain, bias = 1.0, 0.0
    if archive.native is not None:
        scale = _stated(item, archive, said, "scale")
        offset = _baseline_offset(item, said) if archive.baseline else _stated(item, archive, said, "offset", 0.0)
        gain = scale / archive.native["scale"]
        bias = (offset - archive.native["offset"]) / archive.native["scale"]
        gain, bias = (round(value, 6) for value in (gain, bias))  # 0.0001 / 0.0001 and 0.1 / 0.0001, without dust
    bands = asset.extra_fields.get("raster:bands") or asset.extra_fields.get("eo:bands") or [{}]
    return Source(
        href_of(asset, archive, item),
        index,
        gain,
        bias,
        None if nodata is None else float(nodata),
        gsd=float(said.get("spatial_resolution") or asset.extra_fields.get("gsd") or 0),
        size=asset.extra_fields.get("file:size", 0) / len(bands),
        width=WIDTHS.get(said.get("data_type"), 1 if archive.together is not None else 2),
    )


def _stated(item: pystac.Item, archive: Archive, said: dict, key: str, default: float | None = None) -> float:
    value = said.get(f"raster:{key}", said.get(key, archive.stated.get(key, default)))
    if value is None:
        raise ContractError(
            "item",
            found=f"{item.id}, without {key} in its raster:bands",
            expected=f"{key}, since {archive.sensor} is stored in more than one unit",
            cause="an item of another archive, or of an older catalogue",
        )
    return float(value)


def _baseline_offset(item: pystac.Item, said: dict) -> float:
    """Reflectance to add to Sentinel-2's scaled numbers. Some archives have taken the offset off already and say so."""
    properties = item.properties
    if properties.get("earthsearch:boa_offset_applied") is True:
        return 0.0
    baseline = properties.get("s2:processing_baseline", properties.get("processing:version"))
    stated = said.get("raster:offset", said.get("offset"))
    try:
        baseline = None if baseline is None else float(baseline)
    except ValueError:
        baseline = None
    if baseline is None and stated is None:
        raise ContractError(
            "item",
            found=f"{item.id}, without s2:processing_baseline",
            expected=f"the processing baseline: since {NEW_BASELINE:05.2f} the numbers carry an offset of 1000",
            cause="an item of another archive; hand its files to file_look, and take the offset off beforehand",
        )
    if baseline is not None and baseline < NEW_BASELINE:
        return 0.0
    return float(stated) if stated else BASELINE_OFFSET if baseline is not None else 0.0
