"""Composites: one image of a month, quarter or year from all of its clear observations, pixel by pixel.

    >>> acquisitions = find_acquisitions("sentinel-2-l2a", area, "2023-01-01/2023-12-31")
    >>> spring = composites_of(acquisitions, "median", "quarter")[1]
    >>> read_composite(spring, geobox)  # an xarray Dataset: the bands, the number of clear observations, their mean day

| method | value of a pixel |
| --- | --- |
| median | of each band, the median of its clear observations |
| medoid | the clear observation with the least sum of distances to the others over all bands (Flood 2013) |
| best-pixel | the clear observation far from clouds and near the middle of the period (White et al. 2014) |

Radar sees through clouds: its power is averaged, whatever the method. Days are read one by one, in windows small enough
that all days of one fit into WINDOW_BYTES, so memory does not grow with the number of days.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from clay_lib.areas.items import Acquisition, mean_cloud_cover, moment_of, solar_day
from clay_lib.areas.reading import MissingFile, clouds_around, picklable, read_acquisition
from clay_lib.errors import ContractError, warn

METHODS = ("median", "medoid", "best-pixel")
PERIODS = {"month": "M", "quarter": "Q", "year": "Y"}
WINDOW_BYTES = 128e6  # of all days of the pixels that are composed at once
REACH = 50  # pixels from a cloud beyond which an observation gets no better (White et al.)
STEEPNESS = 0.2  # of that score a pixel


@dataclass(frozen=True, eq=False)
class Composite(Acquisition):
    """All items of a period, to become one image. when: of the first.

    dilation: pixels around clouds and shadows that do not count. min_clear: observations below which a pixel is a hole.
    """

    period: pd.Period | None = None
    method: str = "median"
    dilation: int = 0
    min_clear: int = 1

    @property
    def label(self) -> str:
        """Such as 202306, 2023Q2 or 2023."""
        return str(self.period).replace("-", "")

    @property
    def days(self) -> list[Acquisition]:
        """The acquisitions of each solar day, the earliest first."""
        days: dict = {}
        for item in sorted(self.items, key=lambda item: (moment_of(item), item.id)):
            days.setdefault(solar_day(item), []).append(item)
        return [Acquisition(self.sensor, self.archive, moment_of(items[0]), tuple(items)) for items in days.values()]


def composites_of(
    acquisitions: Sequence[Acquisition], method: str, period: str, *, dilation: int = 3, min_clear: int = 1
) -> list[Composite]:
    """One composite a period that has images, the earliest first; see the module and `Composite` for the options."""
    if method not in METHODS or period not in PERIODS:
        found, expected = (method, period), f"one of {METHODS}, one of {tuple(PERIODS)}"
        raise ContractError("composite, period", found, expected, "a misspelling")
    if dilation < 0 or min_clear < 1:
        raise ContractError("dilation, min_clear", (dilation, min_clear), "pixels, at least 0, and at least 1 clear "
                            "observation", "0 clear observations are a hole")  # fmt: skip
    if any(acquisition.when is None for acquisition in acquisitions):
        raise ContractError("dates", "images without a date", "a date for each", "scenes whose names have none")
    periods: dict = {}
    for acquisition in acquisitions:
        for item in acquisition.items:
            periods.setdefault(pd.Period(solar_day(item), PERIODS[period]), []).append(item)
    sensor, archive = acquisitions[0].sensor, acquisitions[0].archive
    return [
        Composite(sensor, archive, min(map(moment_of, items)), tuple(items), mean_cloud_cover(items), when, method,
                  dilation, min_clear)
        for when, items in sorted(periods.items())
    ]  # fmt: skip


# ---- reading ----


def read_composite(composite: Composite, geobox: GeoBox, *, clouds: str = "mask", chunks: dict | None = None):
    """A composite on a grid, an xarray Dataset: a variable [y, x] a band as in `read_acquisition`, `clear` and `day`.

    clear: number of days on which the pixel was measured and clear. day: mean of the days that its value is made of,
    counted from the first day of the period; NaN in holes. chunks: {"y": 512, "x": 512} reads lazily with Dask.
    Items without a band or without their files are left out with a warning; ContractError for all other faults.
    """
    layers = _lazy(composite, geobox, clouds, chunks and (chunks["y"], chunks["x"]))
    layers = layers if chunks else layers.compute(scheduler="synchronous")
    variables = {name: (("y", "x"), layers[n]) for n, name in enumerate((*composite.bands, "clear", "day"))}
    attrs = {"sensor": composite.sensor.name, "archive": composite.archive.name, "period": composite.label}
    return xr.Dataset(variables, xr_coords(geobox, dims=("y", "x")), attrs)


def read_block(composite: Composite, geobox: GeoBox, clouds: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float32 [C + 2, H, W]: the bands, `clear` and `day` of `read_composite`, names of the bands), for `read_ahead`."""
    with picklable():
        return _lazy(composite, geobox, clouds, None).compute(scheduler="synchronous"), composite.bands


def _lazy(composite: Composite, geobox: GeoBox, clouds: str, sides: tuple[int, int] | None):
    """[C + 2, H, W] as a Dask array, by default in windows whose days fit into WINDOW_BYTES."""
    layers = len(composite.bands) + 2
    side = max(1, int((WINDOW_BYTES / 4 / layers / len(composite.days)) ** 0.5))
    fitted = tuple(-(-n // -(-n // side)) for n in geobox.shape)  # windows of about one size
    chunks = da.core.normalize_chunks((layers, *(sides or fitted)), (layers, *geobox.shape))
    starts = [np.cumsum([0, *lengths]) for lengths in chunks[1:]]

    def window(block_id: tuple[int, int, int]) -> np.ndarray:
        part = (slice(int(s[k]), int(s[k + 1])) for s, k in zip(starts, block_id[1:], strict=True))
        return _compose(composite, geobox[tuple(part)], clouds)

    return da.map_blocks(window, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))


def _compose(composite: Composite, geobox: GeoBox, clouds: str) -> np.ndarray:
    """[C + 2, H, W] of one window."""
    shape, first = (len(composite.bands), *geobox.shape), composite.period.start_time.date()
    stack, days, faults = np.empty((len(composite.days), *shape), np.float32), [], []
    for day in composite.days:
        image, day = _read_day(day, geobox, clouds, composite.dilation, faults)
        if image is not None and np.isfinite(image).any():
            stack[len(days)] = image
            days.append(day)
    if len(faults) == len(composite.items):
        raise faults[0]
    for fault in faults:
        warn(f"{fault}. It is left out of the composite")
    if not days:
        return np.stack([*np.full(shape, np.nan), np.zeros(shape[1:]), np.full(shape[1:], np.nan)]).astype(np.float32)
    stack = stack[: len(days)]
    numbers = np.array([(solar_day(day.items[0]) - first).days for day in days], np.float32)
    clear = np.isfinite(stack).any(axis=1)  # [T, H, W]
    count = clear.sum(axis=0, dtype=np.float32)
    if composite.sensor.decibel:
        image, weight = mean(stack), clear
    elif composite.method == "median":
        image, weight = median(stack), clear
    else:
        if composite.method == "medoid":
            score = -distances(stack, clear)
        else:
            away = [np.minimum.reduce([clouds_around(item, day.archive, geobox, REACH)[1] for item in day.items])
                    if day.archive.mask and clouds == "mask" else np.full(shape[1:], REACH) for day in days]  # fmt: skip
            score = quality(np.stack(away), numbers, (composite.period.end_time.date() - first).days + 1)
        chosen = np.where(clear, score, -np.inf).argmax(axis=0)
        image = np.take_along_axis(stack, chosen[None, None], axis=0)[0]
        weight = np.arange(len(stack))[:, None, None] == chosen
    enough = count >= composite.min_clear
    with np.errstate(invalid="ignore"):
        day = np.einsum("t,thw->hw", numbers, weight, dtype=np.float32) / weight.sum(axis=0)
    holes = [np.where(enough, layer, np.nan) for layer in (*image, day)]
    return np.stack([*holes[:-1], count, holes[-1]]).astype(np.float32)


def _read_day(day: Acquisition, geobox: GeoBox, clouds: str, dilation: int, faults: list[ContractError]):
    """(float32 [C, H, W] or None, the acquisition) of the items that have all bands and files; the others become faults."""
    try:
        dataset = read_acquisition(day, geobox, clouds=clouds, dilation=dilation)
        return np.stack([dataset[band].values for band in day.bands]), day
    except ContractError as error:
        if error.field != "item" and not isinstance(error, MissingFile):
            raise
        if len(day.items) == 1:
            faults.append(error)
            return None, day
    alone = [replace(day, items=(item,)) for item in day.items]
    readable = [one.items[0] for one in alone if _read_day(one, geobox, clouds, dilation, faults)[0] is not None]
    rest = replace(day, items=tuple(readable))
    return _read_day(rest, geobox, clouds, dilation, faults) if readable else (None, day)


# ---- methods ----


def mean(stack: np.ndarray) -> np.ndarray:
    """Means [C, H, W] over the finite numbers of each pixel of [T, C, H, W]; of radar, in power."""
    known = np.isfinite(stack)
    with np.errstate(invalid="ignore"):
        return np.where(known, stack, 0).sum(axis=0, dtype=np.float64) / known.sum(axis=0)


def median(stack: np.ndarray) -> np.ndarray:
    """Medians [C, H, W] over the finite numbers of each pixel of [T, C, H, W]; np.nanmedian takes thirty times as long."""
    medians = []
    for band in np.moveaxis(stack, 1, 0):
        count, ordered = np.isfinite(band).sum(axis=0)[None], np.sort(band, axis=0)  # NaN last
        low, high = (np.take_along_axis(ordered, k.clip(min=0), axis=0)[0] for k in ((count - 1) // 2, count // 2))
        medians.append((low + high) / 2)
    return np.stack(medians)


def distances(stack: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """[T, H, W] sums of the distances of each observation [T, C, H, W] to the other clear ones, in native numbers."""
    total = np.zeros(clear.shape, np.float32)
    for a in range(len(stack)):
        for b in range(a):
            both = clear[a] & clear[b]
            apart = np.where(both, np.sqrt(np.nansum((stack[a] - stack[b]) ** 2, axis=0)), 0)
            total[a] += apart
            total[b] += apart
    return total


def quality(away: np.ndarray, numbers: np.ndarray, length: int) -> np.ndarray:
    """[T, H, W] scores 0 to 2 of White et al. (2014), from the distances to clouds [T, H, W], pixels, and the days [T].

    The day's score is a Gaussian around the middle of the period of `length` days, a quarter of it wide.
    """
    from_clouds = 1 / (1 + np.exp(-STEEPNESS * (np.minimum(away, REACH) - REACH / 2)))
    from_middle = np.exp(-0.5 * ((numbers + 0.5 - length / 2) / (length / 4)) ** 2)
    return from_clouds + from_middle[:, None, None]


# ---- dates ----


def dated(job, read, size: int):
    """A job with the date that the model is given and the mean number of clear observations, and its pixels and bands.

    read: (pixels [C + 2, H, W], bands) of `read_block`, or an exception; size: side of the tile without its overlap.
    The date is the middle of what was used: the mean over the tile's pixels of `day`, at the mean solar time of the
    items; the mean of moments of several days would be an hour at which the satellite never passes.
    """
    if isinstance(read, Exception):
        return job, read
    (pixels, bands), o, when = read, (read[0].shape[-1] - size) // 2, job.time
    clear, day = pixels[len(bands) :, o : o + size, o : o + size]
    if np.isfinite(day).any():
        longitude, first = timedelta(hours=job.tile.center[1] / 15), job.acquisition.period.start_time.date()
        solar = [moment_of(item) + longitude for item in job.items]
        seconds = np.mean([(m - datetime.combine(m, time(), UTC)).total_seconds() for m in solar])
        days = timedelta(round(float(np.nanmean(day, dtype=float))), float(seconds))
        when = (datetime.combine(first, time(), UTC) + days - longitude).replace(microsecond=0)
    return replace(job, time=when, clear_count=float(clear.mean())), (pixels[: len(bands)], bands)
