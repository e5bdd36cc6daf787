"""Real images beside the checkout: (sensor, file below realdata, how to read it), and what the check says of each."""

from typing import NamedTuple

COLLECTION_2 = dict(scale=1e-4 / 0.0000275, offset=0.2 / 0.0000275)  # reflectance x 1e4 -> Collection 2 numbers
WITHOUT_THERMAL = ["blue", "green", "red", "nir08", "swir16", "swir22", None, None]
FILES = [
    *(("sentinel-2-l2a", f"sentinel-2-l2a/{tile}.tif", {}) for tile in ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1")),
    *(("sentinel-1-rtc", f"sentinel-1-rtc/{tile}.tif", {}) for tile in ("282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1")),
    ("landsat-c2l1", "landsat-c2l1", {}),
    ("landsat-c2l2-sr", "landsat-sr/LE70220491999322EDC01_stack.tif", COLLECTION_2 | dict(bands=WITHOUT_THERMAL)),
    ("naip", "naip/m_3607717_sw_18_1_20160620_subset.tif", {}),
    ("naip", "naip/NAIP-VA-b*.tiff", {}),
    ("modis", "modis", {}),
    ("linz", "aerial-rgb/OSBS_029.tif", {}),
]  # fmt: skip


class Expected(NamedTuple):
    """What the makers' description says of a file in FILES, in the same order, and what decides its first band."""

    lat: float
    lon: float
    gsd: float
    day: str | None
    decided: str
    holes: float = 0.0


EXPECTED = [
    Expected(-25.316, -48.106, 10, None, "ESA's order, band 2 of 12"),
    Expected(-3.401, 34.066, 10, None, "ESA's order, band 2 of 12"),
    Expected(-38.831, -72.479, 10, None, "ESA's order, band 2 of 12"),
    Expected(-25.316, -48.106, 10, "2021-07-21", "the sensor's order, band 1 of 2"),
    Expected(-3.401, 34.066, 10, "2023-06-10", "the sensor's order, band 1 of 2"),
    Expected(-38.831, -72.479, 10, "2020-04-11", "the sensor's order, band 1 of 2"),
    Expected(38.393, -78.632, 29.9, None, "its name, 'b4'"),
    Expected(15.721, -93.316, 30, "1999-11-18", "bands=[...], band 1"),
    Expected(36.622, -78.002, 1, "2016-06-20", "the sensor's order, band 1 of 4"),
    Expected(37.997, -78.937, 1, None, "its name, 'b1'"),
    Expected(10.8, -73.0, 463.3, "2018-07-04", "its name, 'b01'", 0.096),
    Expected(29.693, -81.990, 0.1, None, "the sensor's order, band 1 of 3", 0.003),
]
