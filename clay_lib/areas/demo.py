"""Study areas for notebook 08: a public archive, or a local one of the synthetic Earth with a known change."""

import atexit
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import geopandas as gpd
import numpy as np

from clay_lib.areas.archives import archives_of
from clay_lib.areas.local import Event, serve_archive, write_archive
from clay_lib.sensors import METERS_PER_DEGREE, SENSORS
from clay_lib.world.earth import MiniWorld, Place


@dataclass
class StudyArea:
    """Address of a STAC API and bounds (west, south, east, north) in degrees.

    world, place, event: the synthetic Earth with its known land cover and change; None for a public archive.
    """

    url: str
    bounds: Sequence[float]
    world: MiniWorld | None = None
    place: Place | None = None
    event: Event | None = None
    server: ExitStack = field(default_factory=ExitStack)

    def land_cover(self, bounds: Sequence[float]) -> tuple[int, float]:
        """(most common WorldCover code of 5 x 5 points within bounds, its share), only on the synthetic Earth."""
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
    """With bounds, the sensor's public archive or url. Without, an archive of the synthetic Earth, written to folder
    and served locally until `close`: images of one place on the given dates, where a forest is cleared on 2023-09-01.

    extent: side of the images, meters. tile: side of a tile to embed, pixels; bounds leave a margin of one.
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
    north = (extent / 2 - tile * SENSORS[sensor].gsd) / METERS_PER_DEGREE
    east = north / np.cos(np.radians(place.lat))
    bounds = [place.lon - east, place.lat - north, place.lon + east, place.lat + north]
    return StudyArea(address, bounds, world, place, event, server)
