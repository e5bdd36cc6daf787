"""Archives: where the images of a sensor lie, and how that archive's items speak of bands, numbers and clouds.

Profiles of the public archives are in archives.yaml. A `Look` is what one sensor saw on one day over the area.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources

import pystac
import shapely
import shapely.geometry
import yaml

from clay_lib.contract import ContractError
from clay_lib.sensors import SENSORS, Sensor


@dataclass(frozen=True)
class Archive:
    """One archive of one sensor. assets: {band: asset key, or key.n for the n-th band of a file}.

    crs: "utm"; "utm-north", as Landsat has it: northern zones on both hemispheres; or the one of all its tiles. anchor,
    gsd: metres; pixel corners lie at anchor modulo gsd, a pair where x and y differ.
    native, stated: {scale, offset}, see archives.yaml. baseline: Sentinel-2's offset follows the processing baseline.
    nodata: where neither item nor file says it; together: a fill that counts where all bands hold it, since one band
    may measure it. mask, masks: the asset that classifies pixels, and what hides the ground. alpha: files may have an
    alpha band, or GDAL's mask, inside or beside them.
    alternate: which of an asset's other addresses to read; signing: "", "planetary-computer" or "requester-pays".
    """

    name: str
    sensor: str
    url: str
    assets: Mapping[str, str]
    collection: str = ""
    kind: str = "api"  # or static: a catalogue to walk
    crs: str = "utm"
    anchor: float | tuple[float, float] = 0.0  # m
    gsd: float = 0.0  # m; 0: the sensor's own
    native: Mapping[str, float] | None = None
    stated: Mapping[str, float] = field(default_factory=dict)
    baseline: bool = False
    nodata: float | None = None
    together: float | None = None
    mask: str = ""
    masks: tuple = ()
    alpha: bool = False
    alternate: str = ""
    signing: str = ""

    def __post_init__(self):
        object.__setattr__(
            self, "gsd", float(self.gsd or SENSORS[self.sensor].gsd if self.sensor in SENSORS else self.gsd)
        )
        object.__setattr__(self, "masks", tuple((low, high, tuple(values)) for low, high, values in self.masks))


@dataclass(frozen=True, eq=False)
class Look:
    """What one sensor saw on one solar day. when: UTC, of the first item; cloud_cover: per cent, mean of the items."""

    sensor: Sensor
    archive: Archive
    when: datetime | None
    items: tuple[pystac.Item, ...]
    cloud_cover: float | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(item.id for item in self.items)

    @property
    def footprint(self) -> shapely.Geometry:
        """Where the items are, WGS84."""
        return shapely.union_all([shapely.geometry.shape(item.geometry) for item in self.items])


@functools.cache
def _profiles() -> dict[str, tuple[Archive, ...]]:
    entries = yaml.safe_load(resources.files("clay_lib").joinpath("archives.yaml").read_text())
    return {
        sensor: tuple(Archive(name=name, sensor=sensor, **entry) for name, entry in archives.items())
        for sensor, archives in entries.items()
    }


def archives_of(sensor: str | Sensor) -> list[Archive]:
    """The archives of a sensor, the default first."""
    sensor = SENSORS.resolve(sensor)
    found = _profiles().get(sensor.name)
    if not found:
        raise ContractError(
            "sensor",
            found=sensor.name,
            expected=f"one of {list(_profiles())}",
            cause="no public archive of it is known: hand in files instead, with file_look",
        )
    return list(found)


def choose_archive(sensor: Sensor, archive: str | Archive | None) -> Archive:
    """An archive of the sensor by its name; None: the default."""
    if isinstance(archive, Archive):
        return archive
    known = {known.name: known for known in archives_of(sensor)}
    if archive is None:
        return next(iter(known.values()))
    if archive not in known:
        raise ContractError(
            "archive", found=repr(archive), expected=f"one of {list(known)} for {sensor.name}", cause="a misspelt name"
        )
    return known[archive]
