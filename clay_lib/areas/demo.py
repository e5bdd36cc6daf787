"""A study area for notebook 08: a small archive of the synthetic Earth with a known change, served on this machine."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np

from clay_lib.areas.archives import archives_of
from clay_lib.areas.local import Event, serve_archive, write_archive
from clay_lib.sensors import SENSORS
from clay_lib.world.earth import MiniWorld, Place

METERS_A_DEGREE = 111_320


@dataclass
class StudyArea:
    """Where to read: url of a STAC API and bounds (west, south, east, north) in degrees.

    world, place, event: of the synthetic Earth, where land cover and the change are known; else None.
    """

    url: str
    bounds: Sequence[float]
    world: MiniWorld | None = None
    place: Place | None = None
    event: Event | None = None
    server: ExitStack = field(default_factory=ExitStack)

    def land_cover(self, bounds: Sequence[float]) -> tuple[int, float]:
        """(most common WorldCover code of 5 x 5 points within bounds, its share), known on the synthetic Earth alone."""
        west, south, east, north = bounds
        lon, lat = np.meshgrid(np.linspace(west, east, 7)[1:-1], np.linspace(south, north, 7)[1:-1])
        codes, counts = np.unique(self.world.land_cover(lat, lon), return_counts=True)
        return int(codes[counts.argmax()]), counts.max() / counts.sum()

    def event_outline(self, crs: str) -> gpd.GeoSeries:
        """A circle around the change, in a projected CRS in meters."""
        center = gpd.GeoSeries.from_xy([self.place.lon], [self.place.lat], crs="EPSG:4326").to_crs(crs)
        return center.translate(self.event.east, self.event.north).buffer(self.event.radius)

    def close(self) -> None:
        self.server.close()


def open_study_area(
    folder: str | Path,
    sensor: str,
    dates: Sequence[str],
    *,
    bounds: Sequence[float] = (),
    url: str = "",
    extent: float = 5760,
    tile: int = 64,
    seed: int = 0,
) -> StudyArea:
    """With bounds, the sensor's public archive (or url). Without, an archive of the synthetic Earth, written to folder and
    served on this machine until `close`: two dates of one place, between which a forest is cleared.

    extent: meters a side; tile: pixels a side of the tiles to be embedded, which have to lie within the images.
    """
    if bounds:
        return StudyArea(url or archives_of(sensor)[0].url, list(bounds))
    world = MiniWorld(seed)
    place = world.place(30, 3, "test")  # grassland, forest, fields, a town and a river
    event = Event("2023-09-01", 60, 0.225 * extent, 0.295 * extent, 0.07 * extent)
    kwargs = dict(place=place, extent=extent, dates=list(dates), events=[event], seed=seed)
    server = ExitStack()
    atexit.register(server.close)
    address = server.enter_context(serve_archive(write_archive(folder, sensors=[sensor], **kwargs)))
    north = (extent / 2 - tile * SENSORS[sensor].gsd) / METERS_A_DEGREE
    east = north / np.cos(np.radians(place.lat))
    bounds = [place.lon - east, place.lat - north, place.lon + east, place.lat + north]
    return StudyArea(address, bounds, world, place, event, server)
