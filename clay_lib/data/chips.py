"""Chips: many small images of one sensor with place, date and land cover, in memory or in a store's shards."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from clay_lib.cluster import cores
from clay_lib.errors import ContractError
from clay_lib.files import CACHE, atomic_write, filesystem

NATIVE = {  # dtypes on disk; other sensors are kept in float32
    "sentinel-2-l2a": "uint16", "planetscope-sr": "uint16", "landsat-c2l1": "uint16", "landsat-c2l2-sr": "uint16",
    "satellogic-MSI-L1D": "uint16", "naip": "uint8", "linz": "uint8", "modis": "int16",
}  # fmt: skip
NO_CHUNK = np.uint64(2**64 - 1)  # in a shard's table: this chunk was never written


@dataclass(frozen=True)
class Chips:
    """N chips of one sensor, of one size, in native numbers."""

    sensor: str
    pixels: np.ndarray  # [N, C, H, W]
    labels: np.ndarray  # [N, H, W] land-cover codes
    lat: np.ndarray  # [N] degrees, NaN: unknown
    lon: np.ndarray  # [N] degrees
    when: np.ndarray  # [N] ISO 8601 text, empty: unknown

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index) -> Chips:
        """The chips of a slice, an index array or a boolean mask."""
        part = Chips(self.sensor, *(getattr(self, f.name)[index] for f in fields(self)[1:]))
        if "hashes" in self.__dict__:  # not computed again
            part.__dict__["hashes"] = self.hashes[index]
        return part

    @cached_property
    def hashes(self) -> np.ndarray:
        """[N] text: a hash of all that goes into a chip's embedding, the same wherever the chip is kept."""
        columns = zip(self.pixels, self.lat, self.lon, self.when, strict=True)
        return np.array([content_hash(self.sensor, *chip) for chip in columns], dtype="U32")

    @property
    def land_cover(self) -> np.ndarray:
        """[N] the most frequent land-cover code of each chip."""
        return np.array([np.bincount(chip.ravel(), minlength=256).argmax() for chip in self.labels], dtype=np.uint8)

    @property
    def place_and_time(self) -> dict[str, list]:
        """Place and time as keyword arguments of `Clay.embed` and `make_datacube`."""
        degrees = {name: [None if np.isnan(v) else float(v) for v in getattr(self, name)] for name in ("lat", "lon")}
        return {"when": [text or None for text in self.when.tolist()], **degrees}


def content_hash(sensor: str, pixels: np.ndarray, lat: float, lon: float, when: str) -> str:
    """128 bits of SHA-256 in hexadecimal, over sensor, dtype, shape, place, time and the bytes of pixels [C, H, W]."""
    head = f"{sensor} {pixels.dtype.str} {pixels.shape} {float(lat)!r} {float(lon)!r} {moment(when)}"
    return hashlib.sha256(head.encode() + b"\0" + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]


def moment(when: str | None) -> np.datetime64:
    """ISO 8601 text -> its second in UTC; NaT where it is unknown."""
    if not when:
        return np.datetime64("NaT", "s")
    try:
        time = dt.datetime.fromisoformat(str(when))
    except ValueError:
        expected = "ISO text such as '2023-06-10T10:30'"
        raise ContractError("when", repr(when), expected, "day and month swapped") from None
    return np.datetime64(time.astimezone(dt.UTC).replace(tzinfo=None) if time.tzinfo else time, "s")


def native(chips: Chips) -> np.ndarray:
    """Pixels in the sensor's own dtype; ContractError for numbers out of its range."""
    dtype = np.dtype(NATIVE.get(chips.sensor, "float32"))
    pixels = chips.pixels
    if pixels.dtype != dtype and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not (np.isfinite(pixels).all() and pixels.min() >= limits.min and pixels.max() <= limits.max):
            found = f"{chips.sensor}: {pixels.dtype} from {pixels.min()} to {pixels.max()}"
            cause = "reflectance or another product's scaling: pass scale and offset"
            raise ContractError("pixels", found, f"native numbers that fit {dtype}", cause)
        pixels = np.rint(pixels)
    return np.ascontiguousarray(pixels, dtype)


def world_chips(
    sensor: str,
    count: int,
    *,
    split: str = "train",
    size: int = 64,
    seed: int = 0,
    first: int = 0,
    classes: Sequence[int] | None = None,
    dates: int = 1,
    cloud_cover: float = 0.0,
    jobs: int = -1,
    cache: Path | None = CACHE,
) -> Chips:
    """`count` chips of the mini-world: land-cover classes in turn, every place observed on `dates` random dates.

    Two sensors with the same seed, split and classes have the same places. first: skip that many places of each class.
    Generated once and kept under `cache`.
    """
    from clay_lib.world.earth import CLASSES

    if count < 1 or dates < 1:
        raise ContractError("count, dates", (count, dates), "at least 1", "an empty request")
    classes = list(CLASSES) if classes is None else list(classes)
    spec = dict(sensor=sensor, count=count, split=split, size=size, seed=seed, first=first, classes=classes)
    spec |= dict(dates=dates, cloud_cover=cloud_cover, world=world_version())
    path = cache and Path(cache) / f"world-{sensor}-{hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]}.npz"
    if path and path.is_file():
        with np.load(path) as file:
            return Chips(**{f.name: file[f.name] if f.name != "sensor" else sensor for f in fields(Chips)})

    from joblib import Parallel, delayed

    acquisitions = [_acquisition(spec, n) for n in range(count)]  # places are chosen here, observed in the workers
    shares = min(count, 4 * cores())
    observe = delayed(_observe)
    parts = Parallel(n_jobs=jobs)(observe(spec, acquisitions[k::shares]) for k in range(shares))
    rows = [parts[n % shares][n // shares] for n in range(count)]
    chips = Chips(sensor, *(np.stack(column) for column in zip(*rows, strict=True)))
    if path:
        with suppress(OSError):  # a cache that is shared read-only
            atomic_write(
                path, lambda partial: np.savez(partial, **{f.name: getattr(chips, f.name) for f in fields(Chips)})
            )
    return chips


@lru_cache(maxsize=2)
def shared_world(seed: int):
    """One MiniWorld for each process, since it caches its places."""
    from clay_lib.world.earth import MiniWorld

    return MiniWorld(seed)


def _acquisition(spec: dict, n: int) -> tuple:
    """Place and date of chip number n: class n mod K, then the place, then its dates."""
    K = len(spec["classes"])
    cover, index = spec["classes"][n % K], spec["first"] + n // (K * spec["dates"])
    rng = np.random.default_rng([spec["seed"], n, *spec["split"].encode()])
    when = np.datetime64("2018-01-01T10:30") + np.timedelta64(int(rng.integers(0, 6 * 365)), "D")
    return shared_world(spec["seed"]).place(cover, index, split=spec["split"]), str(when)


def _observe(spec: dict, acquisitions: Sequence[tuple]) -> list[tuple]:
    world, rows = shared_world(spec["seed"]), []
    for place, when in acquisitions:
        chip = world.observe(place, spec["sensor"], when, size=spec["size"], cloud_cover=spec["cloud_cover"])
        rows.append((chip.pixels, chip.labels, chip.lat, chip.lon, when))
    return rows


def world_version() -> str:
    """A hash of all source that a chip depends on, so that a changed world never uses cached chips."""
    library = Path(__file__).resolve().parents[1]
    files = [
        *sorted((library / "world").glob("*.py")),
        library / "sensors.py",
        library / "sensors.yaml",
        Path(__file__),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


# ---- chips in shards: files of some hundred chips, each compressed by itself ----


def encode(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """{key: bytes} of a Zarr group of these arrays [N, ...]: one shard an array, one row a chunk.

    Bit-shuffled LZ4: within 5 % of Zstandard's size on noisy imagery, and read two to three times as fast. Each chunk
    has a checksum of its own.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    store: dict = {}
    memory = zarr.storage.MemoryStore(store)
    zarr.create_group(memory, zarr_format=3)
    for name, values in arrays.items():
        blosc = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=values.dtype.itemsize)
        array = zarr.create_array(
            memory,
            name=name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(1, *values.shape[1:]),
            shards=values.shape,
            filters=None,
            compressors=[blosc, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},  # a black chip is a chip
        )
        array[:] = values
    return {key: value.to_bytes() for key, value in store.items()}


@dataclass(frozen=True)
class _Shard:
    """An opened array: everything needed to read its rows."""

    path: str  # of the one file that holds it
    dtype: np.dtype
    chunk: tuple[int, ...]  # shape of a row
    table: np.ndarray  # [N, 2] uint64: offset and length of each row


class Shards:
    """Reads rows of shards below a URL; opened shards are cached. Picklable, and safe to fork.

    Not by zarr: zarr-python 3.1 reads a shard's table again for every chip, fills in zeros where a shard is missing, and
    takes 20 ms a chip. This takes one request a chip, decodes it into the batch, and reports damage.
    """

    def __init__(self, url: str):
        self.url = str(url)
        self._open: dict[str, _Shard] = {}

    def __getstate__(self) -> dict:
        return {"url": self.url, "_open": {}}

    def read(self, name: str, shards: Sequence[str], rows: Sequence[int]) -> tuple[np.ndarray, dict[int, str]]:
        """Rows [B, ...] of the array `name`, the k-th of shards[k], and {k: reason} of those that cannot be read."""
        fs, root = filesystem(self.url)
        failed = self._open_shards(fs, root, name, set(shards))
        reasons = {k: failed[shard] for k, shard in enumerate(shards) if shard in failed}
        requests = []
        for k, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            if k in reasons:
                continue
            opened = self._open[f"{shard}/{name}"]
            if row >= len(opened.table) or opened.table[row, 0] == NO_CHUNK:
                reasons[k] = f"{name} of chip {row} were never written"
            else:
                requests.append((k, opened, *map(int, opened.table[row])))
        if not requests:
            return np.empty((len(shards), 0)), reasons
        paths, starts = [opened.path for _, opened, *_ in requests], [start for *_, start, _ in requests]
        stops = [start + length for *_, start, length in requests]
        out = np.empty((len(shards), *requests[0][1].chunk), requests[0][1].dtype)
        for (k, *_), chunk in zip(requests, fs.cat_ranges(paths, starts, stops, on_error="return"), strict=True):
            if reason := _decode(chunk, out[k]):
                reasons[k] = f"{name} of chip {rows[k]}: {reason}"
        return out, reasons

    def _open_shards(self, fs, root: str, name: str, shards: set[str]) -> dict[str, str]:
        """Open new shards; {shard: reason} of those that cannot be opened, which are tried again the next time."""
        new = sorted(shard for shard in shards if f"{shard}/{name}" not in self._open)
        failed, shapes = {}, {}
        for shard, meta in zip(new, read_files(fs, [f"{root}/{s}/{name}/zarr.json" for s in new]), strict=True):
            try:
                shapes[shard] = _shape(meta)
            except (ValueError, KeyError, TypeError, OSError) as error:
                failed[shard] = f"{name}/zarr.json: {type(error).__name__} {error}".splitlines()[0]
        paths = [f"{root}/{shard}/{name}/{'/'.join(['c', *'0' * len(shape)])}" for shard, (shape, _) in shapes.items()]
        sizes = [-(16 * shape[0] + 4) for shape, _ in shapes.values()]
        tails = fs.cat_ranges(paths, sizes, None, on_error="return") if paths else []
        for (shard, (shape, dtype)), path, tail in zip(shapes.items(), paths, tails, strict=True):
            try:
                table = np.frombuffer(_checked(tail), "<u8").reshape(shape[0], 2)
                self._open[f"{shard}/{name}"] = _Shard(path, dtype, tuple(shape[1:]), table)
            except (ValueError, OSError) as error:
                failed[shard] = f"table of {name}: {type(error).__name__} {error}".splitlines()[0]
        return failed


def read_files(fs, paths: Sequence[str]) -> list[bytes | Exception]:
    """Contents of complete files, fetched together; unlike with `fs.cat`, names are no patterns."""
    return fs.cat_ranges(list(paths), None, None, on_error="return") if paths else []


def _shape(meta: bytes | Exception) -> tuple[list[int], np.dtype]:
    """Shape and dtype from an array's zarr.json; ValueError for other codecs than those of `encode`."""
    if isinstance(meta, Exception):
        raise meta
    meta = json.loads(meta)
    (sharding,) = meta["codecs"]
    inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    if sharding["name"] != "sharding_indexed" or inner != ["bytes", "blosc", "crc32c"]:
        raise ValueError(f"codecs {inner} instead of bytes, blosc, crc32c")
    return meta["shape"], np.dtype(meta["data_type"])


def _decode(chunk: bytes | Exception, out: np.ndarray) -> str:
    """Decompress into `out`; returns the reason if that fails."""
    from numcodecs import blosc

    try:
        blosc.decompress(_checked(chunk), out)
    except (OSError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__} {error}".splitlines()[0]
    return ""


def _checked(data: bytes | Exception) -> np.ndarray:
    """The bytes without their final CRC-32C, which must agree."""
    import google_crc32c

    if isinstance(data, Exception):
        raise data
    body = np.frombuffer(data, np.uint8)[:-4]  # no copy, and unlike a memoryview accepted by google_crc32c
    if len(data) < 5 or google_crc32c.value(body) != int.from_bytes(data[-4:], "little"):
        raise ValueError("the checksum differs, or the file is cut short")
    return body


class StoredChips:
    """N chips of one sensor that stay in the store until they are indexed; picklable, and safe to fork."""

    def __init__(self, url: str, sensor: str, table, *, labels: bool = True, on_damage: str = "raise"):
        self.url, self.sensor, self.labels, self.on_damage = url, sensor, labels, on_damage
        self.size = int(table["size"].iloc[0])
        self.hashes = table["content_hash"].to_numpy("U32")  # [N]
        self.lat, self.lon = table["lat"].to_numpy(np.float64), table["lon"].to_numpy(np.float64)  # [N]
        self._time = table["time"].to_numpy("datetime64[s]")
        self._names, self._shard = np.unique(table["shard"].to_numpy(str), return_inverse=True)
        self._row = table["row"].to_numpy(np.int64)
        self._shards = Shards(url)
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def when(self) -> np.ndarray:
        """[N] ISO 8601 text, empty where the time is unknown."""
        return _iso(self._time)

    def __getitem__(self, index) -> Chips:
        """The chips of a slice, an index array or a boolean mask, in memory; fewer where damage is skipped."""
        return self.take(index)[0]

    def take(self, index) -> tuple[Chips, np.ndarray]:
        """(chips [n], kept [B] bool): kept is False for damaged chips, which were skipped."""
        indices = np.arange(len(self))[index]
        pixels, labels, reasons = self._read(indices)
        kept = np.ones(len(indices), bool)
        kept[list(reasons)] = False
        for k, reason in reasons.items():
            self._report(self._names[self._shard[indices[k]]], reason)
        if not kept.any():
            raise ContractError("chips", f"none of {len(indices)}", "at least one", "an empty index, or damage")
        if reasons:
            indices, pixels, labels = indices[kept], pixels[kept], labels[kept]
        chips = Chips(self.sensor, pixels, labels, self.lat[indices], self.lon[indices], _iso(self._time[indices]))
        chips.__dict__["hashes"] = self.hashes[indices]
        return chips, kept

    def failures(self, indices: np.ndarray) -> dict[int, str]:
        """{k: reason} of the chips that cannot be read or differ from the index."""
        pixels, _, reasons = self._read(indices)
        when = _iso(self._time[indices])
        for k, chip in enumerate(indices):
            content = (self.sensor, pixels[k], self.lat[chip], self.lon[chip], when[k])
            if k not in reasons and content_hash(*content) != self.hashes[chip]:
                reasons[k] = f"chip {self._row[chip]} is not the one in the index"
        return reasons

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """pixels [B, C, H, W], labels [B, H, W] (zeros with labels=False), {k: reason}."""
        shards, rows = self._names[self._shard[indices]].tolist(), self._row[indices].tolist()
        pixels, reasons = self._shards.read("pixels", shards, rows)
        if not self.labels:
            return pixels, np.zeros((len(indices), self.size, self.size), np.uint8), reasons
        labels, more = self._shards.read("labels", shards, rows)
        return pixels, labels, more | reasons

    def _report(self, shard: str, reason: str) -> None:
        if self.on_damage == "raise":
            cause = (
                "a disk error or an interrupted copy: `clay chips STORE --check` lists all such shards, and "
                'ChipStore.open(..., on_damage="skip") leaves them out'
            )
            raise ContractError(f"shard {self.url}/{shard}", reason, "complete chips", cause)
        if shard not in self._warned:
            self._warned.add(shard)
            warnings.warn(f"shard {self.url}/{shard} is damaged: {reason}; its damaged chips are skipped", stacklevel=4)


def _iso(times: np.ndarray) -> np.ndarray:
    """datetime64 [n] -> ISO text [n], empty for NaT."""
    return np.where(np.isnat(times), "", np.datetime_as_string(times, unit="s"))
