"""Predictions: a dense head's answer to a scene of any size, written on the scene's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clay_lib.data.bands import Bands
from clay_lib.data.check import check_image
from clay_lib.data.images import blend_ramp
from clay_lib.data.rasters import Header, Scene, read_header, read_padded, read_scene, write_raster
from clay_lib.errors import ContractError
from clay_lib.heads.finetune import Finetuned, check_like

NOTHING = 255  # in a raster of classes: not measured


@dataclass(frozen=True, eq=False)
class Prediction:
    """values [H, W]: class numbers uint8 (NOTHING: not measured), or values float32 (NaN). crs, transform: the scene's."""

    values: np.ndarray
    confidence: np.ndarray | None  # [H, W] uint8, per cent: probability of the class that is answered
    crs: str | None
    transform: tuple[float, ...] | None


def predict_scene(
    tuned: Finetuned,
    path: str | Path,
    *,
    tile: int = 64,
    overlap: int = 32,
    when: str | None = None,
    bands: Bands = None,
    batch_size: int = 16,
) -> Prediction:
    """A raster file of any size, window by window; memory holds one row of windows and the answer.

    tile: pixels a side of a window, as large as the chips of training; neighbours share `overlap` pixels, an even
    number, over which their scores change over by linear ramps. when: the scene's date. bands: as `read_scene` takes them.
    Raises ContractError for a scene unlike the chips of training in bands or ground distance, or whose first window that
    holds pixels does not pass the contract check.
    """
    P = tuned.clay.model.config.patch_size
    if tuned.about["task"] not in ("segmentation", "dense regression"):
        raise ContractError("tuned", f"a head for {tuned.task}", "one that answers for every pixel", "labels of whole chips: use tuned.predict on chips")  # fmt: skip
    if tile < P or overlap % 2 or not 0 <= overlap <= tile // 2:
        raise ContractError("overlap", f"tile {tile}, overlap {overlap}", f"tile >= {P}, an even overlap up to tile / 2", "per cent instead of pixels")  # fmt: skip
    head, K = read_header(path), len(tuned.classes) or 1
    height, width = head.height, head.width
    fade = blend_ramp(tile - overlap, overlap // 2)
    fade = fade[:, None] * fade
    tops, lefts = _starts(height, tile, tile - overlap), _starts(width, tile, tile - overlap)
    boxes = ((left, top, tile, tile) for top in tops for left in lefts)
    said = dict(when=when, in_decibel=_looked_at(tuned, path, head, boxes, when, bands).in_decibel)
    values = np.full(
        (height, width), np.nan if not tuned.classes else NOTHING, np.uint8 if tuned.classes else np.float32
    )
    confidence = np.zeros((height, width), np.uint8) if tuned.classes else None
    total = np.zeros((K + 1, tile, max(width, tile)), np.float32)  # a row of windows: scores, and their weight last
    known = np.zeros((tile, max(width, tile)), bool)
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for some, scores, measured in _row(tuned, path, head, top, lefts, tile, bands, batch_size, **said):
            for left, score, seen in zip(some, scores, measured, strict=True):
                total[:K, :, left : left + tile] += score * fade
                total[K, :, left : left + tile] += fade
                known[:, left : left + tile] |= seen
        done = min(following, height) - top
        mean = total[:K, :done, :width] / np.maximum(total[K:, :done, :width], 1e-9)
        rows, seen = slice(top, top + done), known[:done, :width]
        if tuned.classes:
            values[rows] = np.where(seen, mean.argmax(0), NOTHING)
            confidence[rows] = np.where(seen, np.round(100 * mean.max(0)), NOTHING)
        else:
            values[rows] = np.where(seen, mean[0], np.nan)
        total, known = _moved(total, done), _moved(known, done)
    placed = head.crs is not None
    return Prediction(values, confidence, head.crs.to_string() if placed else None, head.transform if placed else None)


def predict_raster(
    tuned: Finetuned, path: str | Path, out: str | Path, *, codes: Sequence[int] | None = None, **how
) -> Path:
    """`predict_scene`, written as a GeoTIFF with the georeference of the scene.

    Classes: band 1 the class's number in codes, by default that of the label files, else 0, 1, 2 and so on; band 2 its
    probability in per cent; 255 is nodata. Values: one float32 band, NaN where not measured. The names of the classes
    stand in the description of band 1.
    """
    if Path(out).resolve() == Path(path).resolve():
        raise ContractError("out", str(out), "another file than path", "the scene would be lost")
    if codes is None:
        codes = tuned.about.get("codes") or range(len(tuned.classes))
    if tuned.classes and (len(codes) != len(tuned.classes) or not all(0 <= c < NOTHING for c in codes)):
        expected = f"{len(tuned.classes)} numbers from 0 to {NOTHING - 1}"
        raise ContractError("codes", list(codes), expected, "codes of other classes: give codes=[...]")
    made = predict_scene(tuned, path, **how)
    placed = dict(crs=made.crs, transform=made.transform)
    if not tuned.classes:
        return write_raster(out, made.values, nodata=np.nan, descriptions=["value"], **placed)
    numbers = np.array([*codes, *[NOTHING] * (256 - len(codes))])
    names = ", ".join(f"{numbers[k]} {name}" for k, name in enumerate(tuned.classes))
    bands = np.stack([numbers[made.values].astype(np.uint8), made.confidence])
    return write_raster(out, bands, nodata=NOTHING, descriptions=[names, "probability (%)"], **placed)


def _starts(length: int, tile: int, step: int) -> list[int]:
    """Where windows begin so that they cover a side; the last one ends at its end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, step), length - tile]


def _looked_at(tuned: Finetuned, path, head: Header, boxes, when, bands: Bands) -> Scene:
    """The first window that is measured at least by half, else the most measured one, held against the head and the sensor."""
    best = None
    for box in boxes:
        scene = read_scene(path, tuned.sensor, bands=bands, when=when, window=head.clip(box))
        if best is None or scene.missing.all(0).mean() < best.missing.all(0).mean():
            best = scene
        if best.missing.all(0).mean() <= 0.5:
            break
    some = [band for band in tuned.bands if band in best.bands]  # a file may hold more than the head looks at
    check_like(tuned.about, best.sensor, some, tuned.about["gsd"] if best.crs is None else best.gsd)
    if not best.missing.all():
        pixels = best.measured()[[best.bands.index(band) for band in some]]
        said = dict(when=when, lat=best.lat, lon=best.lon, in_decibel=best.in_decibel)
        check_image(pixels, tuned.sensor, bands=some, **said)
    return best


def _row(tuned, path, head, top, lefts, tile, bands, batch_size, **said) -> Iterator[tuple]:
    """Batches of a row of windows: (lefts, scores [B, K, tile, tile], measured [B, tile, tile])."""
    for first in range(0, len(lefts), batch_size):
        some = lefts[first : first + batch_size]
        scenes = [read_padded(path, (left, top, tile, tile), tuned.sensor, bands) for left in some]
        order = [scenes[0].bands.index(band) for band in tuned.bands]
        pixels = np.stack([scene.pixels[order] for scene in scenes])
        lat, lon = zip(*(head.at(left + tile / 2, top + tile / 2) for left in some), strict=True)
        placed = {} if head.crs is None else dict(lat=lat, lon=lon)
        cube = tuned.clay.cube(
            pixels, tuned.sensor, bands=tuned.bands, gsd=tuned.about["gsd"], check=False, **said, **placed
        )
        yield some, tuned.scores(cube).cpu().numpy(), np.isfinite(pixels).any(1)


def _moved(strip: np.ndarray, rows: int) -> np.ndarray:
    """A row of windows, further south by `rows`."""
    out = np.zeros_like(strip)
    out[..., : strip.shape[-2] - rows, :] = strip[..., rows:, :]
    return out
