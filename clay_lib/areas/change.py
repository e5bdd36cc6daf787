"""Change between two dates or periods: the distance of their patch vectors, where both were seen.

>>> change = map_change("seasons/2023Q2", "seasons/2023Q3", "change.tif", figure="change.png")
"""

from pathlib import Path

import numpy as np
import xarray as xr

from clay_lib.areas.embeddings import read_embeddings
from clay_lib.data.rasters import write_raster
from clay_lib.errors import ContractError
from clay_lib.figures import Layer, save, static_map

LABEL = "1 - cosine of patch vectors"


def map_change(before, after, out: str | Path = "", *, figure: str | Path = "", area=None, center: bool = True):
    """Cosine distance of the vectors of each patch, a DataArray [y, x] float32, 0 to 2; NaN where one date has none.

    before, after: rasters of embeddings on one grid, as `read_embeddings` takes them, or FOLDER/LABEL of a raster that
    `clay embed --dense` wrote, such as seasons/2023Q2. Patches without enough clear pixels on one of the dates are NaN.
    out: also as a GeoTIFF. figure: also as a map. area: the part to compare.
    center: subtract the mean of each date first, so that haze and season, common to all patches, count less.
    """
    pair = [read_embeddings(_raster_of(source), area=area) for source in (before, after)]
    for opened in pair:
        if not isinstance(opened, xr.DataArray):
            raise ContractError("before, after", "a table", "two rasters", "embedded without --dense cog")
    crs, dims = {str(one.odc.geobox.crs) for one in pair}, {len(one) for one in pair}
    first, second = xr.align(*pair, join="inner", exclude=["band"])
    if len(crs) > 1 or len(dims) > 1 or not first.size:
        found = f"CRS {sorted(crs)}, {sorted(dims)} numbers, {first[0].size} common cells"
        expected, cause = "two rasters of one model and grid", "other areas: give both --like"
        raise ContractError("before, after", found, expected, cause)
    box, frame = first.odc.geobox, first.isel(band=0, drop=True)
    first, second = first.values, second.values  # [D, h, w]
    known = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    if not known.any():
        raise ContractError("before, after", "no cell with both", "a common cell", "clouds on one date: longer periods")
    if center:
        first, second = (v - v[:, known].mean(axis=1)[:, None, None] for v in (first, second))
    lengths = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    cosine = (first * second).sum(axis=0) / np.maximum(lengths, 1e-9)
    change = frame.copy(data=np.where(known, 1 - cosine, np.nan).astype(np.float32)).rename("change")
    place = dict(crs=str(box.crs), transform=tuple(box.affine)[:6])
    if out:
        write_raster(out, change.values, nodata=float("nan"), descriptions=[LABEL], **place)
    if figure:
        limits = (0.0, float(np.nanpercentile(change, 99.5)))
        layer = Layer("change of embeddings", change.values, *place.values(), "magma", limits, LABEL)
        save(static_map([layer]), figure)
    return change


def change(before: str, after: str, out: str = "change.tif", *, figure: str = "", area: str = "") -> int:
    """Map what changed between two dates or periods that `clay embed --dense` embedded: cosine distance per patch.

    Example: clay change seasons/2023Q2 seasons/2023Q3 change.tif --figure change.png

    Args:
        before: a raster of embeddings, or FOLDER/LABEL, such as seasons/2023Q2
        after: the same, later
        out: GeoTIFF, NaN where one of them has no clear observation
        figure: PNG of the map
        area: the part to compare: a file, or "west,south,east,north"
    """
    distance = map_change(before, after, out, figure=figure, area=area or None).values
    known = np.isfinite(distance)
    middle, top = np.nanpercentile(distance, [50, 99])
    print(f"{known.sum():,} patches compared, {known.mean():.0%} of the raster")
    print(f"{LABEL}: median {middle:.3f}, 99 % below {top:.3f}")
    print("\n".join(filter(None, (out, figure))))
    return 0


def _raster_of(source):
    """The only raster FOLDER/dense/*/*/LABEL-* of a source FOLDER/LABEL; anything else unchanged."""
    if not isinstance(source, str | Path) or Path(source).exists():
        return source
    folder, label = Path(source).parent, Path(source).name
    found = sorted(p for p in folder.glob(f"dense/*/*/{label}-*") if p.suffix in (".tif", ".zarr"))
    if len(found) != 1:
        names = ", ".join(str(p.relative_to(folder)) for p in found) or "none"
        cause = "several zones: embed with --crs; or embedded without --dense" if found else "embedded without --dense"
        raise ContractError("before, after", f"{source}: {names}", "one raster of this label", cause)
    return found[0]
