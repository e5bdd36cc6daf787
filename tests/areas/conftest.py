"""A local archive of every sensor, and servers that fail."""

import pytest
from archive_scenes import PLACE

from clay_lib.areas import archives, reading
from clay_lib.areas.local import serve_archive, write_archive
from clay_lib.sensors import WORLD_SENSORS


@pytest.fixture(scope="session")
def archive_folder(tmp_path_factory):
    """64 pixels a side, two dates, the first cloudier."""
    dates, out = ("2023-05-20", "2023-08-20"), tmp_path_factory.mktemp("archive")
    return write_archive(out, sensors=WORLD_SENSORS, place=PLACE, extent=1, dates=dates, clouds=(0.4, 0.0))


@pytest.fixture(scope="session")
def url(archive_folder):
    with serve_archive(archive_folder) as address:
        yield address


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(reading, "PAUSE", 0.01)
    monkeypatch.setitem(reading.GDAL, "GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setattr(archives, "BACKOFF", 0.01)
