"""Writing a store of chips: in parallel, append-only, resumable, and whole at every moment.

What is to be made is cut into parts by number. A worker writes a part's shards under a name that holds its writer's
session; then the index file of the part is published under a name that says which chips it holds. That file is the
commit: a part exists once it does, and a part that exists is not made again. What a killed writer left has no index
file; the next writer deletes it, unless its session is still alive.
"""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from clay_lib.chips import Chips, moment
from clay_lib.contract import ContractError
from clay_lib.sampling import cover_fractions
from clay_lib.sessions import Session, clean, gather_index, make_groups, refuse_other_folders
from clay_lib.shards import encode, filesystem
from clay_lib.store import INDEX, index_parts

PIXELS = {  # native dtypes; a sensor of one's own is kept in float32
    "sentinel-2-l2a": "uint16", "planetscope-sr": "uint16", "landsat-c2l1": "uint16", "landsat-c2l2-sr": "uint16",
    "satellogic-MSI-L1D": "uint16", "naip": "uint8", "linz": "uint8", "modis": "int16",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """Chips as they come from a maker, with what only the maker knows."""

    chips: Chips
    footprints: Sequence  # [n] shapely geometries in WGS84, or None
    splits: Sequence[str]  # [n]
    source: str


class Maker(Protocol):
    """A numbered series of chips of one sensor and size, the same whoever asks and whenever."""

    sensor: str
    size: int
    recipe: str  # a short name of all that its chips depend on, but not of how many there are

    def __len__(self) -> int: ...

    def part(self, numbers: range) -> Callable[[], Made | None]:
        """A picklable call that makes these chips, or as many of them as are fit to keep."""


@dataclass(frozen=True)
class Part:
    kind: str  # SENSOR-SIZE
    name: str  # RECIPE-FIRST-LAST
    numbers: range
    make: Callable[[], Made | None]


def write_chips(
    url, makers: Sequence[Maker], *, chips_per_part: int = 256, jobs: int = -1, progress: bool = True
) -> int:
    """Make the chips that the store lacks and add them; returns how many are new.

    Interrupted or killed at any moment, the store opens and holds whole chips only; the same call again makes the rest.
    jobs: processes, -1 for one a core. Several such calls, on several machines, may write to one store at a time.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    from tqdm.auto import tqdm

    fs, root = filesystem(url)
    refuse_other_folders(fs, root)
    session = Session(fs, root)
    try:
        make_groups(session, {kind_of(maker) for maker in makers})
        clean(fs, root)
        parts = pending(fs, root, makers, chips_per_part)
        random.Random(session.name).shuffle(parts)  # so that several writers begin at different ends
        jobs = 1 if "memory" in fs.protocol else jobs  # which no other process sees
        calls = (delayed(_write_part)(str(url), part, session.name, os.getpid()) for part in parts)
        done, new = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")(calls), 0
        with tqdm(total=sum(len(part.numbers) for part in parts), unit="chip", disable=not progress) as bar:
            for part, shard, rows, count in done:
                if rows and session.commit(f"{root}/{INDEX}/{part}.parquet", rows):
                    new += count
                elif count:  # another writer was first
                    fs.rm(f"{root}/{shard}", recursive=True)
                session.sign()
                first, last = part.rsplit("-", 2)[1:]
                bar.update(int(last) - int(first) + 1)
        gather_index(session)
        return new
    except TerminatedWorkerError:
        raise ContractError(
            "jobs",
            found="a worker that was killed",
            expected=f"{jobs} processes that live (-1: one a core)",
            cause="too little memory for so many; what was written is kept: run it again with fewer",
        ) from None
    finally:
        session.close()


def kind_of(maker: Maker) -> str:
    return f"{maker.sensor}-{maker.size}"


def pending(fs, root: str, makers: Sequence[Maker], chips_per_part: int) -> list[Part]:
    """The parts still to be made."""
    there: dict[str, list[tuple[int, int]]] = {}
    for part in index_parts(fs, root):
        series, first, last = part.rsplit("-", 2)
        there.setdefault(series, []).append((int(first), int(last)))
    parts = []
    for maker in makers:
        kind, recipe, missing = kind_of(maker), maker.recipe, np.ones(len(maker), bool)
        for first, last in there.get(f"{kind}/{recipe}", ()):
            missing[first : last + 1] = False
        runs = _runs(missing, chips_per_part)
        parts += [Part(kind, f"{recipe}-{run[0]:08d}-{run[-1]:08d}", run, maker.part(run)) for run in runs]
    return parts


def _runs(missing: np.ndarray, most: int) -> Iterator[range]:
    """Unbroken runs of what is missing, none across a multiple of `most`: so parts are cut alike whoever cuts them."""
    for start in range(0, len(missing), most):
        numbers = start + np.flatnonzero(missing[start : start + most])
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1):
            if len(run):
                yield range(int(run[0]), int(run[-1]) + 1)


# ---- in a worker ----


def _write_part(url: str, part: Part, session: str, parent: int) -> tuple[str, str, bytes, int]:
    """Make a part and write its shards: (part, shard, index file's bytes, number of chips); no bytes if it is there."""
    _end_with(parent)
    fs, root = filesystem(url)
    shard = f"{part.kind}/{part.name}-{session}"
    fs.invalidate_cache()
    if fs.exists(f"{root}/{INDEX}/{part.kind}/{part.name}.parquet"):
        return f"{part.kind}/{part.name}", shard, b"", 0
    made = part.make()
    if made is not None:
        made = replace(made, chips=replace(made.chips, pixels=native(made.chips)))
        for key, data in encode({"pixels": made.chips.pixels, "labels": made.chips.labels}).items():
            path = f"{root}/{shard}/{key}"
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(path, data)
    rows = _rows(made, shard)
    return f"{part.kind}/{part.name}", shard, rows, 0 if made is None else len(made.chips)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """A worker outlives a parent that was killed: end it then, rather than let it write for nobody."""
    if os.getpid() == parent:
        return

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def native(chips: Chips) -> np.ndarray:
    """Pixels in the sensor's own dtype; numbers that it cannot hold are refused."""
    dtype = np.dtype(PIXELS.get(chips.sensor, "float32"))
    pixels = chips.pixels
    if pixels.dtype != dtype and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not (np.isfinite(pixels).all() and pixels.min() >= limits.min and pixels.max() <= limits.max):
            raise ContractError(
                "pixels",
                found=f"{chips.sensor}: {pixels.dtype} from {pixels.min()} to {pixels.max()}",
                expected=f"native numbers that fit {dtype}",
                cause="reflectance or another product's scaling: hand in scale and offset",
            )
        pixels = np.rint(pixels)
    return np.ascontiguousarray(pixels, dtype)


def _rows(made: Made | None, shard: str) -> bytes:
    """The part's index as GeoParquet."""
    import geopandas
    import pandas as pd

    if made is None:
        frame = pd.DataFrame({"shard": pd.Series([], dtype=str)})
        return _parquet(geopandas.GeoDataFrame(frame, geometry=[], crs="EPSG:4326"))
    chips, n = made.chips, len(made.chips)
    frame = pd.DataFrame(
        {
            "sensor": chips.sensor,
            "size": np.full(n, chips.pixels.shape[-1], np.int32),
            "time": np.array([moment(text) for text in chips.when], "datetime64[ms]"),
            "lat": chips.lat.astype(np.float64),
            "lon": chips.lon.astype(np.float64),
            "source": made.source,
            "split": list(made.splits),
            "content_hash": chips.hashes,
            **cover_fractions(chips.labels),
            "shard": shard,
            "row": np.arange(n, dtype=np.int32),
        }
    )
    return _parquet(geopandas.GeoDataFrame(frame, geometry=list(made.footprints), crs="EPSG:4326"))


def _parquet(frame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
