"""Cached teacher targets: a frozen teacher's output for every chip and its flips, stored with the chips.

    STORE/targets/FINGERPRINT/teacher.json               which teacher this is
    STORE/targets/FINGERPRINT/SENSOR-STATISTICS/PART.npy two arrays in one file: a table of keys, then the targets

A key is a chip's content hash and its flip, so a changed chip has no target until it is computed. FINGERPRINT is a hash
of the teacher, and STATISTICS one of the sensor's normalization, so that a change of either excludes old targets.
A part is written atomically and named after its table, which holds a checksum of every target. Nothing is ever
rewritten, and several processes or machines may fill one cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clay_lib.cluster import progress_bar
from clay_lib.data.augment import flipped
from clay_lib.datacube import make_datacube
from clay_lib.errors import ContractError
from clay_lib.files import PARTIAL, PartBuffer, filesystem, hash_tensors, put
from clay_lib.sensors import SENSORS
from clay_lib.teacher import teacher_target

VERSION = 1  # of the files, and of the preprocessing: make_datacube, teacher_target
TABLE = np.dtype([("key", "S17"), ("crc", "<u4")])  # 16 bytes of content hash and one of the flip; CRC-32 of the target
PART_ROWS, PART_SECONDS = 65_536, 60.0  # a part is written when it is full or this old
OPEN_PARTS = 512  # files mapped at a time
FLIPS = (0, 1, 2, 3)  # of training chips; validation uses chips as they are


class TargetCache:
    """The targets of one teacher. Picklable; loading processes that are forked share its index.

    folder_or_url: a store, its `targets` folder, or one teacher's folder in it. fingerprint: of the teacher; None where
    the folder holds the targets of one teacher only. dim: expected width of a target; None: any.
    """

    def __init__(self, folder_or_url, fingerprint: str | None = None, dim: int | None = None):
        self.url = _teacher_folder(str(folder_or_url), fingerprint)
        fs, root = filesystem(self.url)
        metadata = json.loads(fs.cat_file(f"{root}/teacher.json"))
        self.fingerprint, self.dim, self.teacher = metadata["fingerprint"], int(metadata["dim"]), metadata["teacher"]
        self.flips = tuple(metadata.get("flips", FLIPS))
        if dim is not None and dim != self.dim:
            cause = "ClayConfig(teacher_dim=...) of another teacher"
            raise ContractError("targets", f"{self.dim} numbers a chip", dim, cause)
        self._sensors: dict[str, _SensorTargets] = {}

    @classmethod
    def open(cls, folder, teacher: nn.Module) -> TargetCache:
        """The cache of this teacher in a store."""
        return cls(folder, fingerprint(teacher), teacher.dim)

    def has(self, sensor: str, hashes, flip: int = 0) -> np.ndarray:
        """[N] bool: which of the chips with these content hashes have a target of this flip."""
        return self._of(sensor).find(_keys(hashes, flip)) >= 0

    def lookup(self, sensor: str, hashes, flips) -> Tensor:
        """[B, dim] float16: targets of chips with these content hashes [B] and flips [B], bits of augment.flipped.

        A flip that is not in the teacher's `flips` looks to it like the unflipped chip, and has that chip's target.
        """
        flips = np.where(np.isin(flips, self.flips), flips, 0)
        return torch.from_numpy(self._of(sensor).read(_keys(hashes, flips), hashes, flips))

    def missing(self, chips, flips: Sequence[int]) -> np.ndarray:
        """[N, len(flips)] bool: the targets still to compute; of chips with equal content only the first."""
        first = np.zeros(len(chips), bool)
        first[np.unique(chips.hashes, return_index=True)[1]] = True
        return np.stack([first & ~self.has(chips.sensor, chips.hashes, flip) for flip in flips], axis=1)

    def _of(self, sensor: str) -> _SensorTargets:
        if sensor not in self._sensors:
            self._sensors[sensor] = _SensorTargets(self.url, sensor, self.dim)
        return self._sensors[sensor]


class _SensorTargets:
    """One sensor's parts, and the part and row of each key."""

    def __init__(self, url: str, sensor: str, dim: int):
        self.url, self.sensor, self.dim = url, sensor, dim
        fs, root = filesystem(url)
        fs.invalidate_cache()
        folder = f"{root}/{sensor_folder(sensor)}"
        self.paths = [p for p in sorted(_listed(fs, folder)) if p.endswith(".npy") and PARTIAL not in p]
        parts = [_read_table(fs, path, dim) for path in self.paths]
        tables, self.offsets = [table for table, _ in parts], [offset for _, offset in parts]
        table = np.concatenate([np.empty(0, TABLE), *tables])
        lengths = [len(t) for t in tables]
        order = np.argsort(table["key"], kind="stable")
        self.keys, self.crcs = table["key"][order], table["crc"][order]
        self.part = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)[order]
        self.row = np.concatenate([np.empty(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])[order]
        self._maps: dict[int, np.ndarray] = {}

    def find(self, keys: np.ndarray) -> np.ndarray:
        """[B] position of each key, -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def read(self, keys: np.ndarray, hashes, flips) -> np.ndarray:
        """[B, dim] float16; hashes and flips name the missing ones."""
        at = self.find(keys)
        if (at < 0).any():
            first = int(np.flatnonzero(at < 0)[0])
            flip = int(np.broadcast_to(flips, at.shape)[first])
            raise ContractError(
                "targets",
                f"no target for {(at < 0).sum()} of {len(at)} chips of {self.sensor} in {self.url}, the first with "
                f"content hash {np.asarray(hashes)[first]} and flip {flip}",
                "a target for every chip and flip",
                "chips or the sensor's statistics changed, or were never computed: `clay targets STORE --teacher NAME` "
                "computes what is missing",
            )
        out = np.empty((len(keys), self.dim), np.float16)
        parts, rows, crcs = self.part[at], self.row[at].tolist(), self.crcs[at].tolist()
        for part in np.unique(parts).tolist():
            members = np.flatnonzero(parts == part).tolist()
            for k, target in zip(members, self._targets(part, [rows[k] for k in members]), strict=True):
                if zlib.crc32(target) != crcs[k]:
                    raise _damaged(self.paths[part], f"target {rows[k]} differs from its checksum")
                out[k] = target
        return out

    def _targets(self, part: int, rows: list[int]) -> Sequence[np.ndarray]:
        """[dim] each."""
        fs, _ = filesystem(self.url)
        path, start, size = self.paths[part], self.offsets[part], 2 * self.dim
        if "file" in fs.protocol:
            if part not in self._maps:
                if len(self._maps) >= OPEN_PARTS:
                    self._maps.clear()
                self._maps[part] = np.asarray(np.memmap(path, "<f2", "r", start).reshape(-1, self.dim))
            return [self._maps[part][row] for row in rows]
        starts = [start + row * size for row in rows]
        chunks = fs.cat_ranges([path] * len(rows), starts, [at + size for at in starts])
        return [np.frombuffer(chunk, "<f2") for chunk in chunks]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}


def fill_targets(
    chips,
    teacher: nn.Module,
    folder,
    *,
    batch_size: int = 32,
    flips: Sequence[int] = FLIPS,
    progress: bool = True,
    label: str = "",
    views=None,
) -> TargetCache:
    """Compute the targets missing from the cache; after a kill the same call computes the rest.

    chips: Chips or StoredChips. folder: the store. label: of the progress bar. views: chips of another sensor at the
    same places and dates, which the teacher sees instead. The teacher runs on the device and in the dtype of its
    weights.
    """
    places = {} if views is None else _same_places(chips, views)
    cache = open_or_create(folder, teacher)
    missing = cache.missing(chips, flips)  # [N, flips]
    chosen = np.flatnonzero(missing.any(1))

    def publish(rows: list) -> None:
        _write_part(cache.url, chips.sensor, *zip(*rows, strict=True))

    part = PartBuffer(publish, rows=PART_ROWS, seconds=PART_SECONDS)
    with progress_bar(total=int(missing.sum()), unit="target", disable=not progress, desc=label or chips.sensor) as bar:
        for start in range(0, len(chosen), batch_size):
            indices = chosen[start : start + batch_size]
            batch = chips[indices]  # fewer where a damaged shard is skipped
            batch_missing = missing[indices][np.isin(chips.hashes[indices], batch.hashes)]
            for k, flip in enumerate(flips):
                subset = batch[np.flatnonzero(batch_missing[:, k])]
                if len(subset):
                    seen = subset if views is None else views[[places[place] for place in _places(subset)]]
                    part.add(*zip(_keys(subset.hashes, flip), compute_targets(teacher, seen, flip), strict=True))
            bar.update(int(missing[indices].sum()))
    part.flush()
    return TargetCache(cache.url)


def _places(chips) -> list[tuple]:
    """Place and date of each chip."""
    return list(zip(chips.lat.tolist(), chips.lon.tolist(), chips.when.tolist(), strict=True))


def _same_places(chips, views) -> dict[tuple, int]:
    """{place and date: index of the view there}; ContractError unless every chip has one with the same pixels."""
    places = {place: k for k, place in enumerate(_places(views))}
    missing = sum(place not in places for place in _places(chips))
    names, gsd = (chips.sensor, views.sensor), [SENSORS[part.sensor].gsd for part in (chips, views)]
    if missing or gsd[0] != gsd[1]:
        found = f"{missing} of {len(chips)} chips of {names[0]} without one of {names[1]}; {gsd[0]} m and {gsd[1]} m"
        cause = "chips of other counts or seeds, or sensors of another GSD"
        raise ContractError("views", found, "the same places, dates and GSD", cause)
    return places


def compute_targets(teacher: nn.Module, chips, flip: int) -> np.ndarray:
    """[n, dim] float16: the teacher's output for chips in memory, flipped, as in a training step with a live teacher."""
    device = next(iter([*teacher.parameters(), *teacher.buffers()]), torch.empty(0)).device
    pixels = make_datacube(np.ascontiguousarray(flipped(chips.pixels, flip)), chips.sensor).pixels.to(device)
    with torch.inference_mode():
        targets = teacher_target(teacher.eval(), pixels, chips.sensor).to(torch.float16).cpu().numpy()
    if not np.isfinite(targets).all():
        cause = "broken weights, or unscaled features"
        found = f"targets of {chips.sensor} that float16 cannot hold"
        raise ContractError("teacher", found, "finite numbers below 65504", cause)
    return targets


def flips_of(teacher: nn.Module) -> Sequence[int]:
    """The flips of training chips that this teacher tells apart."""
    return getattr(teacher, "flips", FLIPS)


def fingerprint(teacher: nn.Module) -> str:
    """32 hex digits: SHA-256 over a teacher's kind, weights, configuration, size and the version of preprocessing."""
    config = getattr(getattr(teacher, "network", teacher), "config", None)
    config = config.to_dict() if hasattr(config, "to_dict") else config or {}
    skipped = {"transformers_version", "dtype", "torch_dtype"}  # of the library, not of the teacher
    config = {k: v for k, v in config.items() if not k.startswith("_") and k not in skipped}
    size, sees = getattr(teacher, "size", None), getattr(teacher, "sees", "rgb")
    metadata = [VERSION, type(teacher).__qualname__, size, sees, config]
    if views := getattr(teacher, "views", None):  # the sensor that it sees instead of radar
        metadata.append(views)
    return hash_tensors(teacher.state_dict(), json.dumps(metadata, sort_keys=True, default=str))[:32]


def sensor_folder(sensor: str) -> str:
    """A sensor's name and eight digits of a hash of everything that determines its normalization."""
    s = SENSORS[sensor]
    statistics = repr([s.decibel, s.rgb, *((band.name, band.mean, band.std) for band in s.bands)])
    return f"{sensor}-{hashlib.sha256(statistics.encode()).hexdigest()[:8]}"


# ---- files ----


def _write_part(url: str, sensor: str, keys: Sequence[bytes], targets: Sequence[np.ndarray]) -> None:
    table = np.empty(len(keys), TABLE)
    targets = np.stack(targets).astype("<f2")
    table["key"], table["crc"] = keys, [zlib.crc32(row) for row in targets]
    buffer = io.BytesIO()
    np.save(buffer, table)
    np.save(buffer, targets)
    fs, root = filesystem(url)
    put(fs, f"{root}/{sensor_folder(sensor)}/{_part_name(table)}.npy", buffer.getvalue())


def _part_name(table: np.ndarray) -> str:
    return hashlib.sha256(table.tobytes()).hexdigest()[:16]


def _read_table(fs, path: str, dim: int) -> tuple[np.ndarray, int]:
    """A part's table, checked against its name, and the byte at which its targets begin."""
    try:
        with fs.open(path, "rb") as file:
            table = np.lib.format.read_array(file, allow_pickle=False)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start, size = file.tell(), fs.size(path)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(path, str(error)) from None
    if table.dtype != TABLE or _part_name(table) != path.rsplit("/", 1)[1].removesuffix(".npy"):
        raise _damaged(path, "its table does not match its name")
    if (shape, dtype) != ((len(table), dim), np.dtype("<f2")) or size != start + 2 * dim * len(table):
        raise _damaged(path, f"{size - start} bytes for {len(table)} targets of {dim}")
    return table, start


def _damaged(path: str, reason: str) -> ContractError:
    cause = "a disk error or an interrupted copy: delete this file, and the `targets` command computes it again"
    return ContractError(f"targets {path}", reason, "a complete part", cause)


def _keys(hashes, flips) -> np.ndarray:
    """Content hashes [B], hexadecimal, and flips -> keys [B] of 17 bytes. The last byte is not zero, the padding."""
    hashes = np.asarray(hashes)
    raw = np.frombuffer(bytes.fromhex("".join(hashes.tolist())), np.uint8).reshape(len(hashes), 16)
    last = np.broadcast_to(np.asarray(flips, np.uint8) + 1, len(hashes))[:, None]
    return np.ascontiguousarray(np.concatenate([raw, last], axis=1)).view("S17")[:, 0]


def open_or_create(folder, teacher: nn.Module) -> TargetCache:
    """The teacher's cache, created if needed; unfinished files of killed writers are deleted."""
    fs, root = filesystem(folder)
    name = fingerprint(teacher)
    home = f"{root}/targets/{name}"
    if not fs.exists(f"{home}/teacher.json"):
        kind = type(getattr(teacher, "network", teacher)).__name__
        metadata = {"version": VERSION, "fingerprint": name, "dim": teacher.dim, "teacher": kind}
        metadata |= {"size": getattr(teacher, "size", None), "flips": flips_of(teacher)}
        put(fs, f"{home}/teacher.json", json.dumps(metadata, indent=2).encode())
    if "file" in fs.protocol:
        for partial in Path(home).glob(f"**/{PARTIAL}*"):
            if time.time() - partial.stat().st_mtime > 3600:  # no write takes this long
                partial.unlink(missing_ok=True)
    return TargetCache(folder, name, teacher.dim)


def _teacher_folder(url: str, name: str | None) -> str:
    """The folder of one teacher's targets."""
    fs, root = filesystem(url)
    fs.invalidate_cache()
    base, folders = url.rstrip("/"), {}
    if fs.exists(f"{root}/teacher.json"):
        folders[root.rsplit("/", 1)[1]] = base
    for below in ("", "/targets"):
        names = [folder.rsplit("/", 1)[1] for folder in _listed(fs, f"{root}{below}")]
        folders |= {n: f"{base}{below}/{n}" for n in names if fs.exists(f"{root}{below}/{n}/teacher.json")}
    if name is None and len(folders) == 1:
        return next(iter(folders.values()))
    if name not in folders:
        found = f"{url} with targets of {sorted(folders) or 'no teacher'}"
        expected = f"those of {name}" if name else "those of one teacher: name its folder"
        cause = "another teacher, or nothing computed yet: `clay targets STORE --teacher NAME` does it"
        raise ContractError("targets", found, expected, cause)
    return folders[name]


def _listed(fs, folder: str) -> list[str]:
    try:
        return [path.rstrip("/") for path in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
