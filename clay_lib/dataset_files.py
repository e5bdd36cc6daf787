"""Data sets from one's own files: images in class folders, rasters with label rasters, points on a scene."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine, rowcol

from clay_lib.contract import ContractError, warn
from clay_lib.datasets import IGNORE, LabelledSet, Sample, place_table
from clay_lib.georeference import centre
from clay_lib.scenes import RASTER_ENDINGS, read_scene
from clay_lib.sensors import SENSORS, Sensor

Bands = Mapping[str, int] | Sequence[str | None] | None  # as `scenes.read_scene` takes them


def class_folders(
    folder: str | Path, sensor: str | Sensor, *, bands: Bands = None, size: int | None = None, when: str | None = None
) -> LabelledSet:
    """folder/CLASS/image: the name of a subfolder is the class of every raster in it (EuroSAT, UC Merced).

    size: pixels a side, of the middle of larger images; smaller ones are missing at their border. None: the first
    image's longer side. bands: as `scenes.read_scene` takes them.
    """
    sensor, folder = SENSORS.resolve(sensor), Path(folder)
    kinds = sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))
    paths = [path for kind in kinds for path in _rasters(kind)]
    classes = sorted({path.parent.name for path in paths})
    if len(classes) < 2:
        raise ContractError(
            "folder", found=f"{folder}: images in {len(classes)} subfolder(s)", expected="two or more classes",
            cause="the class folders lie one folder below or above",
        )  # fmt: skip
    heads = [head_of(path) for path in paths]
    first = read_scene(paths[0], sensor, bands=bands)
    size = size or max(first.pixels.shape[1:])
    boxes = [((h.width - size) // 2, (h.height - size) // 2, size, size) for h in heads]
    labels = [classes.index(path.parent.name) for path in paths]
    lat, lon = np.array([h.place for h in heads], float).T
    return LabelledSet(
        sensor=sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=tuple(classes),
        dense=False,
        places=place_table([f"{p.parent.name}/{p.name}" for p in paths], lat, lon, when or ""),
        read=partial(_chip_sample, paths, boxes, labels, sensor, bands),
        in_decibel=first.in_decibel,
    )


def raster_pairs(
    images: str | Path | Sequence,
    labels: str | Path | Sequence,
    sensor: str | Sensor,
    *,
    classes: Mapping[int, str] | Sequence[str] | None,
    ignore: int | None = None,
    size: int = 64,
    bands: Bands = None,
    when: str | None = None,
) -> LabelledSet:
    """Rasters and label rasters of the same names and grids, cut into windows of size x size pixels.

    images, labels: files, or folders of them, paired by name without ending. classes: {number in the files: name}, or
    the names of 0, 1, 2 and so on; None: the labels are values (dense regression). ignore, and the label file's nodata:
    not labelled. Windows at a border are filled up with missing pixels; those without one label are left out.
    """
    sensor = SENSORS.resolve(sensor)
    pairs = _paired(images, labels)
    codes = None if classes is None else dict(classes) if isinstance(classes, Mapping) else dict(enumerate(classes))
    rows, names, lat, lon, group = [], [], [], [], []
    for image, label in pairs:
        head = head_of(image)
        _same_grid(head, head_of(label))
        values = _labels(label, codes, ignore)
        for top in range(0, head.height, size):
            for left in range(0, head.width, size):
                part = values[top : top + size, left : left + size]
                if np.isfinite(part).any() if codes is None else (part != IGNORE).any():
                    box = (left, top, size, size)
                    rows.append((image, label, box))
                    names.append(f"{image.stem} row {top} column {left}")
                    a, b = head.at(left + part.shape[1] / 2, top + part.shape[0] / 2)
                    lat.append(a), lon.append(b), group.append(image.stem)
    if not rows:
        raise ContractError(
            "labels", found=f"{len(pairs)} pair(s), every pixel ignored", expected="labelled pixels",
            cause="ignore= or nodata is the number of the only class",
        )  # fmt: skip
    first = read_scene(pairs[0][0], sensor, bands=bands, window=clip_box(rows[0][2], head_of(pairs[0][0])))
    return LabelledSet(
        sensor=sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=() if codes is None else tuple(codes.values()),
        dense=True,
        places=place_table(names, lat, lon, when or "", group),
        read=partial(_pair_sample, rows, sensor, bands, codes, ignore),
        in_decibel=first.in_decibel,
        codes=() if codes is None else tuple(int(code) for code in codes),
    )


def points_on_scene(
    points,
    scene: str | Path,
    sensor: str | Sensor,
    *,
    label: str,
    size: int = 32,
    bands: Bands = None,
    when: str | None = None,
) -> LabelledSet:
    """Chips of size x size pixels around the points of a GeoDataFrame; its column `label` holds classes or values.

    Text, categories, bools and columns of integers are classes, columns of floats values, unless gaps alone made
    floats of integers. Points without a label or outside the scene are left out with a warning; a chip that reaches
    over the scene's border is missing there. Chips that share pixels, directly or over others, are one group.
    """
    from sklearn.cluster import DBSCAN

    sensor = SENSORS.resolve(sensor)
    head = head_of(scene)
    if label not in points:
        raise ContractError(
            "label", found=repr(label), expected=f"one of {list(points.columns)}", cause="a misspelling"
        )
    if points.crs is None or head.crs is None:
        which = "the points" if points.crs is None else str(scene)
        raise ContractError("crs", found=f"{which} without CRS", expected="one of each", cause="set_crs was forgotten")
    if kinds := set(points.geom_type.dropna()) - {"Point"}:
        raise ContractError(
            "geometry", found=", ".join(sorted(kinds)), expected="points",
            cause="areas: points.representative_point() or rasterise them for raster_pairs; many in one: points.explode()",
        )  # fmt: skip
    labelled = points[label].notna()
    if not labelled.any():
        raise ContractError("label", found=f"{label!r} without a value", expected="labels", cause="another column")
    if not labelled.all():
        warn(f"{(~labelled).sum()} of {len(points)} points have no label in {label!r} and are left out")
        points = points[labelled]
        if points[label].dtype.kind == "f" and (points[label] % 1 == 0).all():  # as tables hold integers with gaps
            points = points.assign(**{label: points[label].astype(int)})
    placed = points.to_crs(head.crs).geometry
    rows, columns = rowcol(Affine(*head.transform), placed.x.to_numpy(), placed.y.to_numpy(), op=np.asarray)
    inside = (columns >= 0) & (columns < head.width) & (rows >= 0) & (rows < head.height)
    if not inside.any():
        raise ContractError(
            "points", found=f"none of {len(points)} on {scene}", expected="points on the scene",
            cause="another place, or latitude and longitude swapped",
        )  # fmt: skip
    if not inside.all():
        warn(f"{(~inside).sum()} of {len(points)} points lie outside the scene and are left out")
    values = points[label][inside]
    numbers = values.dtype.kind == "f"
    classes = () if numbers else tuple(sorted(values.unique(), key=str))
    boxes = [
        (math.floor(c) - size // 2, math.floor(r) - size // 2, size, size)
        for c, r in zip(columns[inside], rows[inside], strict=True)
    ]
    corners = np.array([box[:2] for box in boxes])
    clumps = DBSCAN(eps=size - 0.5, min_samples=1, metric="chebyshev").fit_predict(corners)
    first = read_scene(scene, sensor, bands=bands, window=clip_box(boxes[0], head))
    lonlat = points.to_crs("EPSG:4326").geometry[inside]
    labels = [float(v) if numbers else classes.index(v) for v in values]
    return LabelledSet(
        sensor=sensor,
        bands=first.bands,
        gsd=first.gsd,
        classes=tuple(map(str, classes)),
        dense=False,
        places=place_table(
            [f"point {i}" for i in values.index], lonlat.y, lonlat.x, when or "", clumps, corners / size
        ),
        read=partial(_chip_sample, [Path(scene)] * len(boxes), boxes, labels, sensor, bands),
        in_decibel=first.in_decibel,
    )


# ---- files ----


class Head:
    """What a raster says of itself before its pixels are read."""

    def __init__(self, path: Path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(path) as source:
                    self.path, self.height, self.width, self.crs = path, source.height, source.width, source.crs
                    self.transform = tuple(source.transform)[:6]
        except RasterioError as error:
            raise ContractError(
                "path", found=f"{path}: {error}", expected="a raster", cause="another file, or a broken download"
            ) from None

    def at(self, column: float, row: float) -> tuple[float, float]:
        """(lat, lon) of a place in pixels from the upper left corner; NaN without a CRS."""
        if self.crs is None:
            return math.nan, math.nan
        a, b, c, d, e, f = self.transform
        moved = Affine(a, b, a * column + b * row + c, d, e, d * column + e * row + f)
        lon, lat = centre(self.crs, moved, 0, 0)
        return lat, lon

    @property
    def place(self) -> tuple[float, float]:
        return self.at(self.width / 2, self.height / 2)


def head_of(path) -> Head:
    """Asked of the file every time: in a notebook it may be another one by now."""
    return Head(Path(path))


def _rasters(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in RASTER_ENDINGS and not p.name.startswith("."))


def _listed(source, field: str) -> list[Path]:
    many = [source] if isinstance(source, (str, Path)) else list(source)
    paths = [p for one in many for p in (_rasters(Path(one)) if Path(one).is_dir() else [Path(one)])]
    if lacking := [str(p) for p in paths if not p.is_file()] or ([] if paths else [str(source)]):
        raise ContractError(
            field, found=f"no raster at {lacking[0]}", expected="files or a folder", cause="a misspelling"
        )
    return paths


def _paired(images, labels) -> list[tuple[Path, Path]]:
    images, labels = _listed(images, "images"), _listed(labels, "labels")
    if len(images) == len(labels) == 1:
        return [(images[0], labels[0])]
    by_name = {p.stem: p for p in labels}
    lacking = [p.name for p in images if p.stem not in by_name]
    if lacking:
        raise ContractError(
            "labels", found=f"no label raster for {', '.join(lacking[:3])}", expected="a file of the same name each",
            cause="names differ by more than their ending",
        )  # fmt: skip
    return [(p, by_name[p.stem]) for p in images]


def _same_grid(image: Head, label: Head) -> None:
    def told(head):
        return f"{head.height} x {head.width} pixels, {head.crs or 'no CRS'}, corner {head.transform[2]:g}, {head.transform[5]:g}, pixel {head.transform[0]:g}"

    size = (image.height, image.width) == (label.height, label.width)
    placed = (
        image.crs is None
        or label.crs is None
        or (
            image.crs == label.crs
            and np.allclose(image.transform, label.transform, rtol=1e-6, atol=1e-3 * abs(image.transform[0]))
        )
    )
    if not (size and placed):
        raise ContractError(
            "labels", found=f"{label.path.name}: {told(label)}", expected=f"the grid of {image.path.name}: {told(image)}",
            cause="labels of another resolution, extent or projection: warp them onto the image's grid, nearest neighbour",
        )  # fmt: skip


def _labels(path: Path, codes: Mapping[int, str] | None, ignore: int | None, window=None) -> np.ndarray:
    """[H, W]: class numbers in the order of codes, IGNORE where not labelled; or values, NaN where not known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            part = None if window is None else rasterio.windows.Window(*window)
            values, fill = source.read(1, window=part), source.nodata
    blank = np.zeros(values.shape, bool)
    for number in (ignore, fill):
        if number is not None:
            blank |= np.isnan(values) if np.isnan(number) else values == number
    if codes is None:
        return np.where(blank, np.nan, values).astype(np.float32)
    out = np.full(values.shape, IGNORE)
    for position, code in enumerate(codes):
        out[values == code] = position
    if wrong := np.unique(values[(out == IGNORE) & ~blank]).tolist():
        raise ContractError(
            "labels",
            found=f"{path.name}: class {', '.join(f'{v:g}' for v in wrong[:5])}",
            expected=f"one of {dict(codes)}"
            + (f", or {ignore} for what is not labelled" if ignore is not None else ""),
            cause="a class without a name in classes=, or a fill value: ignore=",
        )
    out[blank] = IGNORE
    return out


def clip_box(box, head: Head) -> tuple[int, int, int, int]:
    """The part of a box (column, row, width, height) that lies on the raster."""
    left, top, wide, high = box
    right, bottom = min(left + wide, head.width), min(top + high, head.height)
    left, top = max(left, 0), max(top, 0)
    return left, top, right - left, bottom - top


def cut(path: Path, box, sensor: Sensor, bands: Bands) -> tuple[np.ndarray, tuple[slice, slice], dict, tuple[str, ...]]:
    """Of a box (column, row, width, height) that may reach over the raster's border: pixels [C, H, W], NaN where there are
    none; the rows and columns of them on the raster; their georeference; their bands."""
    head, (left, top, wide, high) = head_of(path), box
    part = clip_box(box, head)
    scene = read_scene(path, sensor, bands=bands, window=part)
    rows, columns = (
        slice(p - start, p - start + n) for p, start, n in ((part[1], top, part[3]), (part[0], left, part[2]))
    )
    pixels = np.full((len(scene.bands), high, wide), np.nan, np.float32)
    pixels[:, rows, columns] = np.where(scene.missing, np.nan, scene.pixels.astype(np.float32))
    transform = None
    if head.crs is not None:
        a, b, c, d, e, f = head.transform
        transform = (a, b, a * left + b * top + c, d, e, d * left + e * top + f)
    return pixels, (rows, columns), dict(crs=scene.crs, transform=transform), scene.bands


def _chip_sample(paths, boxes, labels, sensor: Sensor, bands: Bands, n: int) -> Sample:
    pixels, _, where, _ = cut(paths[n], boxes[n], sensor, bands)
    return Sample(pixels, labels[n], **where)


def _pair_sample(rows, sensor: Sensor, bands: Bands, codes, ignore, n: int) -> Sample:
    image, label, box = rows[n]
    pixels, (y, x), where, _ = cut(image, box, sensor, bands)
    known = _labels(label, codes, ignore, clip_box(box, head_of(image)))
    labels = np.full(pixels.shape[1:], IGNORE if codes is not None else np.nan, known.dtype)
    labels[y, x] = known
    return Sample(pixels, labels, **where)
