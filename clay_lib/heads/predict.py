"""Prediction on rasters: a dense head's output for a scene of any size, written on the scene's own grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clay_lib.data.bands import Bands
from clay_lib.data.check import check_image
from clay_lib.data.images import blend_ramp
from clay_lib.data.rasters import Header, read_header, write_raster
from clay_lib.data.scenes import Scene, read_padded, read_scene
from clay_lib.errors import ContractError
from clay_lib.heads.finetune import Finetuned, check_compatible

NODATA = 255  # in 8 bits: not measured; 65535 in 16 bits, where there are more classes


@dataclass(frozen=True, eq=False)
class Prediction:
    """Class numbers or values of a scene's pixels, on its grid. crs, transform: the scene's.

    Class numbers are uint16 for more than 254 classes; the largest number of the dtype is not measured.
    """

    values: np.ndarray  # [H, W] class numbers, uint8 or uint16; or values, float32, NaN where not measured
    confidence: np.ndarray | None  # [H, W] uint8, percent: probability of the predicted class; NODATA: not measured
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
    """Predict a raster of any size window by window, with one row of windows and the output in memory.

    tile: side of a window in pixels, as in training; neighbors share `overlap` pixels, an even number, over which their
    scores are blended by linear ramps. when: the scene's date. bands: as `read_scene` takes them.
    Raises ContractError for a scene that differs from the chips of training in bands or ground distance, or whose first
    measured window fails the check of its values.
    """
    P = tuned.clay.model.config.patch_size
    if tuned.task not in ("segmentation", "dense regression"):
        cause = "labels of chips: use tuned.predict on chips"
        raise ContractError("tuned", f"a head for {tuned.task}", "one that predicts every pixel", cause)
    if tile < P or overlap % 2 or not 0 <= overlap <= tile // 2:
        expected = f"tile >= {P}, an even overlap up to tile / 2"
        raise ContractError("overlap", f"tile {tile}, overlap {overlap}", expected, "percent instead of pixels")
    header, K = read_header(path), len(tuned.classes) or 1
    H, W = header.height, header.width
    # starts of the windows along each side; the last one ends with it
    tops, lefts = ([*range(0, side - tile, tile - overlap), max(0, side - tile)] for side in (H, W))
    boxes = [(left, top, tile, tile) for top in tops for left in lefts]
    scene_metadata = dict(when=when, in_decibel=_check_scene(tuned, header, boxes, when, bands).in_decibel)
    fade = blend_ramp(tile - overlap, overlap // 2)
    fade = fade[:, None] * fade  # [tile, tile]
    dtype, fill = (
        (np.float32, np.nan) if not tuned.classes else (np.uint8, NODATA) if K < NODATA else (np.uint16, 65535)
    )
    values = np.full((H, W), fill, dtype)
    confidence = np.full((H, W), NODATA, np.uint8) if tuned.classes else None
    total = np.zeros((K + 1, tile, max(W, tile)), np.float32)  # a row of windows: weighted scores, and their weight
    known = np.zeros((tile, max(W, tile)), bool)
    for top, following in zip(tops, [*tops[1:], H], strict=True):
        row = _predict_row(tuned, header, top, lefts, tile, bands, batch_size, **scene_metadata)
        for left, scores, measured in row:
            total[:K, :, left : left + tile] += scores * fade
            total[K, :, left : left + tile] += fade
            known[:, left : left + tile] |= measured
        done = min(following, H) - top  # rows that no later window covers
        mean = total[:K, :done, :W] / np.maximum(total[K:, :done, :W], 1e-9)
        rows, missing = slice(top, top + done), ~known[:done, :W]
        if tuned.classes:
            values[rows] = np.where(missing, fill, mean.argmax(0))
            confidence[rows] = np.where(missing, NODATA, np.round(100 * mean.max(0)))
        else:
            values[rows] = np.where(missing, fill, mean[0])
        for strip in (total, known):  # the next row of windows begins `done` pixels further down
            strip[..., : tile - done, :] = strip[..., done:, :].copy()
            strip[..., tile - done :, :] = 0
    if header.crs is None:
        return Prediction(values, confidence, None, None)
    return Prediction(values, confidence, header.crs.to_string(), header.transform)


def predict_raster(
    tuned: Finetuned, path: str | Path, out: str | Path, *, codes: Sequence[int] | None = None, **options
) -> Path:
    """`predict_scene`, written as a GeoTIFF with the georeference of the scene.

    Classes: two bands, the class's number in codes (by default that of the label files, else 0, 1, 2 and so on) and its
    probability in percent; uint8 with nodata 255, or uint16 with the largest free number where a code is above 254.
    Values: one float32 band, NaN where not measured. The names of the classes are in the description of band 1.
    """
    if Path(out).resolve() == Path(path).resolve():
        raise ContractError("out", str(out), "another file than path", "the scene would be overwritten")
    codes = (tuned.metadata.get("codes") or range(len(tuned.classes))) if codes is None else codes
    fits = len(codes) == len(tuned.classes) and all(0 <= code <= 65535 for code in codes)
    free = {NODATA} if max(codes, default=0) < NODATA else {*range(101, 65536)} - {*codes}  # 100 is a probability
    if tuned.classes and not (fits and free):
        expected = f"{len(tuned.classes)} numbers from 0 to 65535, of which one above 100 is free for nodata"
        found = f"{len(codes)} numbers, {[*codes][:5]} and so on"
        raise ContractError("codes", found, expected, "codes of other classes: give codes=[...]")
    prediction = predict_scene(tuned, path, **options)
    georeference = dict(crs=prediction.crs, transform=prediction.transform)
    if not tuned.classes:
        return write_raster(out, prediction.values, nodata=np.nan, descriptions=["value"], **georeference)
    fill, missing = max(free), prediction.confidence == NODATA
    numbers = np.array(codes, np.uint8 if fill == NODATA else np.uint16)
    names = ", ".join(f"{code} {name}" for code, name in zip(codes, tuned.classes, strict=True))
    bands = numbers[np.where(missing, 0, prediction.values)], prediction.confidence
    bands = np.where(missing, fill, np.stack(bands)).astype(numbers.dtype)
    return write_raster(out, bands, nodata=fill, descriptions=[names, "probability (%)"], **georeference)


def _check_scene(tuned: Finetuned, header: Header, boxes, when, bands: Bands) -> Scene:
    """The first window that is at least half measured, else the most measured one, checked against head and sensor."""
    best, share = None, 2.0  # of missing pixels
    for box in boxes:
        scene = read_scene(header.path, tuned.sensor, bands=bands, when=when, window=header.clip(box))
        missing = scene.missing.all(0).mean()
        if missing < share:
            best, share = scene, missing
        if share <= 0.5:
            break
    names = [band for band in tuned.bands if band in best.bands]  # a file may hold more than the head uses
    check_compatible(tuned.metadata, best.sensor, names, tuned.metadata["gsd"] if best.crs is None else best.gsd)
    if share < 1:
        pixels = best.measured()[[best.bands.index(band) for band in names]]
        metadata = dict(when=when, lat=best.lat, lon=best.lon, in_decibel=best.in_decibel)
        check_image(pixels, tuned.sensor, bands=names, **metadata)
    return best


def _predict_row(tuned, header: Header, top: int, lefts, tile: int, bands, batch_size: int, **metadata) -> Iterator:
    """A row of windows, each as (left, scores [K, tile, tile], measured [tile, tile])."""
    for first in range(0, len(lefts), batch_size):
        batch = lefts[first : first + batch_size]
        scenes = [read_padded(header.path, (left, top, tile, tile), tuned.sensor, bands) for left in batch]
        order = [scenes[0].bands.index(band) for band in tuned.bands]
        pixels = np.stack([scene.pixels[order] for scene in scenes])
        if header.crs is not None:
            lat, lon = zip(*(header.at(left + tile / 2, top + tile / 2) for left in batch), strict=True)
            metadata |= dict(lat=lat, lon=lon)
        options = dict(bands=tuned.bands, gsd=tuned.metadata["gsd"], check=False)
        scores = tuned.scores(tuned.clay.cube(pixels, tuned.sensor, **options, **metadata)).cpu().numpy()
        yield from zip(batch, scores, np.isfinite(pixels).any(1), strict=True)
