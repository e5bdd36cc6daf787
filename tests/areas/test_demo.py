"""Study areas: a public archive for given bounds, else a local one with a known change."""

import numpy as np
from rasterio.features import geometry_mask

from clay_lib.areas.archives import archives_of, find_acquisitions
from clay_lib.areas.demo import open_study_area
from clay_lib.areas.reading import read_acquisition
from clay_lib.areas.tiles import grid_of, tiles_of

S2, DATES = "sentinel-2-l2a", ("2023-01-15", "2024-01-15")  # summer at the place


def test_bounds_select_a_public_archive(tmp_path):
    study = open_study_area(tmp_path, S2, DATES, bounds=(14.4, 50.0, 14.5, 50.1))
    assert study.url == archives_of(S2)[0].url and study.world is None and not any(tmp_path.iterdir())
    assert (
        open_study_area(tmp_path, S2, DATES, bounds=(14.4, 50.0, 14.5, 50.1), url="http://other").url == "http://other"
    )


def test_vegetation_of_the_synthetic_study_area_is_lost_inside_the_event(tmp_path):
    study = open_study_area(tmp_path, S2, DATES)
    try:
        acquisitions = find_acquisitions(S2, study.bounds, "2023-01-01/2024-12-31", url=study.url)
        before, after = sorted(acquisitions, key=lambda acquisition: acquisition.when)
        tile = tiles_of(before.footprint.centroid, grid_of(before.archive, 64))[0]
        box = tile.geobox(224)  # 512 x 512 pixels
        red, nir = (np.stack([read_acquisition(a, box)[b] for a in (before, after)]) for b in ("red", "nir"))
    finally:
        study.close()
    west, south, east, north = study.bounds
    assert before.footprint.covers(tile.polygon) and west < study.place.lon < east and south < study.place.lat < north
    outside = geometry_mask(study.event_outline(tile.crs), box.shape, box.affine)
    loss = np.subtract(*((nir - red) / (nir + red)))  # [512, 512] decrease of NDVI
    assert np.nanmean(loss[~outside]) > 0.2 > 0.1 > abs(np.nanmedian(loss[outside]))
    code, share = study.land_cover(study.bounds)
    assert code in (10, 20, 30, 40, 50, 80) and 0 < share <= 1
