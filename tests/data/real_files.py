"""Real images beside the checkout: (sensor, file below realdata, how to read it)."""

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
