"""Static catalogs: only surveys and tiles that may fit are fetched."""

import numpy as np
import pytest
from archive_scenes import around
from faulty_server import FaultyServer
from pyproj import Transformer

from clay_lib.areas.archives import find_acquisitions
from clay_lib.areas.catalogs import tile_bounds
from clay_lib.errors import ContractError


def test_tile_names_give_their_bounds():
    """LINZ publishes BN28_2000_1225 with the box 173.98241, -40.67623, 173.99394 (its north is open sea)."""
    bounds = tile_bounds("BN28_2000_1225.json")
    west, south, east, _ = Transformer.from_crs("EPSG:2193", "EPSG:4326", always_xy=True).transform_bounds(*bounds)
    np.testing.assert_allclose((west, south, east), (173.9824136, -40.6762278, 173.9939358), atol=3e-5)
    assert tile_bounds("BJ32_500_004003")[2] - tile_bounds("BJ32_500_004003")[0] == 240
    assert tile_bounds("BI28_2000_1225") is None and tile_bounds("linz_48.2") is None


def test_only_overlapping_surveys_are_fetched(url, short_waits):
    with FaultyServer(url) as server:
        server.faults = [["collection.json", "500", 2]]
        acquisitions = find_acquisitions("linz", around(), "2023-05-01/2023-06-30", url=server.url)
        assert [a.when.month for a in acquisitions] == [5] and not any(left for *_, left in server.faults)
        fetched = {line for line in server.requests if "/files/survey" in line}
        assert len(fetched) == 3  # two surveys, and the one tile of the survey in time
        server.requests.clear()
        with pytest.raises(ContractError, match="no items"):
            find_acquisitions("linz", around(), "2010-01-01/2012-01-01", url=server.url)
        assert not [line for line in server.requests if "survey" in line]  # their years are in the path
