"""Teacher targets, computed once: what a frozen teacher says of every chip and its flips, kept beside the chips.

    STORE/targets/FINGERPRINT/teacher.json               which teacher this is
    STORE/targets/FINGERPRINT/SENSOR-STATISTICS/PART.npy two arrays in one file: a table of keys, then the targets

A key is a chip's content hash and its flip, so a changed chip has no target until it is asked about; the fingerprint is
of the teacher and STATISTICS of how the sensor is shown to it, so neither change is ever served an old target. A part
is published whole by one rename and named after its table, which holds a checksum of every target: damage is told by
name. Nothing is ever rewritten, and several processes or machines may fill one cache.
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

from clay_lib.data.augment import flipped
from clay_lib.data.store import ChipStore, filesystem
from clay_lib.errors import ContractError
from clay_lib.files import PARTIAL, atomic_write, hash_tensors
from clay_lib.sensors import SENSORS
from clay_lib.teacher import RELEASED

VERSION = 1  # of the files, and of what happens to chips before the teacher sees them: `make_datacube`, `training.ask`
TABLE = np.dtype([("key", "S17"), ("crc", "<u4")])  # 16 bytes of content hash and one of the flip; CRC-32 of the target
PART_ROWS, PART_SECONDS = 65_536, 60.0  # a part is published when it is full or so old: what a killed process loses
OPEN_PARTS = 512  # files mapped at a time


class TargetCache:
    """The targets of one teacher. Picklable; loading processes that are forked share its index.

    folder_or_url: a store, its `targets` folder, or one teacher's folder in it. fingerprint: of the teacher; None where
    the folder holds the targets of one teacher only. dim: width of a target, if it is to be checked.
    """

    def __init__(self, folder_or_url, fingerprint: str | None = None, dim: int | None = None):
        self.url = _home(str(folder_or_url), fingerprint)
        fs, root = filesystem(self.url)
        about = json.loads(fs.cat_file(f"{root}/teacher.json"))
        self.fingerprint, self.dim, self.teacher = about["fingerprint"], int(about["dim"]), about["teacher"]
        if dim is not None and dim != self.dim:
            raise ContractError("targets", f"{self.dim} numbers a chip", dim, "ClayConfig(teacher_dim=...) of another")
        self._sensors: dict[str, _Sensor] = {}

    @classmethod
    def open(cls, folder, teacher: nn.Module) -> TargetCache:
        """This teacher's cache in a store."""
        return cls(folder, fingerprint(teacher), teacher.dim)

    def has(self, sensor: str, hashes, flip: int = 0) -> np.ndarray:
        """[N] bool: which of the chips with these content hashes have a target of this flip."""
        return self._of(sensor).find(_keys(hashes, flip)) >= 0

    def lookup(self, sensor: str, hashes, flips) -> Tensor:
        """[B, dim] float16: targets of chips with these content hashes [B], flipped as these bits say [B].

        flips: bit 0 up and down, bit 1 left and right.
        """
        return torch.from_numpy(self._of(sensor).read(_keys(hashes, flips), hashes, flips))

    def _of(self, sensor: str) -> _Sensor:
        if sensor not in self._sensors:
            self._sensors[sensor] = _Sensor(self.url, sensor, self.dim)
        return self._sensors[sensor]


class _Sensor:
    """One sensor's parts and where each key is."""

    def __init__(self, url: str, sensor: str, dim: int):
        self.url, self.sensor, self.dim = url, sensor, dim
        fs, root = filesystem(url)
        fs.invalidate_cache()
        self.paths = [
            p for p in sorted(_listed(fs, f"{root}/{shown_as(sensor)}")) if p.endswith(".npy") and PARTIAL not in p
        ]
        tables, self.offsets = [], []
        for path in self.paths:
            table, offset = _read_table(fs, path, dim)
            tables.append(table)
            self.offsets.append(offset)
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
        at = self.find(keys)
        if (at < 0).any():
            self._tell_missing(at < 0, hashes, flips)
        out = np.empty((len(keys), self.dim), np.float16)
        parts, rows, crcs = self.part[at], self.row[at].tolist(), self.crcs[at].tolist()
        for part in np.unique(parts).tolist():
            mine = np.flatnonzero(parts == part).tolist()
            for k, target in zip(mine, self._targets(part, [rows[k] for k in mine]), strict=True):
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

    def _tell_missing(self, missing: np.ndarray, hashes, flips) -> None:
        first = int(np.flatnonzero(missing)[0])
        flip = int(np.broadcast_to(flips, missing.shape)[first])
        raise ContractError(
            "targets",
            f"no target for {missing.sum()} of {len(missing)} chips of {self.sensor} in {self.url}, the first "
            f"with content hash {np.asarray(hashes)[first]} and flip {flip}",
            "a target for every chip and flip",
            "chips or the sensor's statistics changed, or were never shown to this teacher: "
            "`python -m clay_lib targets STORE --teacher NAME` computes what is missing",
        )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}


def fill_targets(
    chips_like,
    teacher: nn.Module,
    folder,
    *,
    batch_size: int = 32,
    flips: Sequence[int] = (0, 1, 2, 3),
    progress: bool = True,
    label: str = "",
) -> TargetCache:
    """Ask the teacher about every chip and flip that the cache lacks; killed at any moment, the same call goes on.

    chips_like: `Chips` or `StoredChips`. folder: the store. label: of the progress bar. The teacher runs where and in which dtype its weights are.
    """
    from tqdm.auto import tqdm

    cache = open_or_begin(folder, teacher)
    lacking = missing(chips_like, cache, flips)  # [N, flips]
    chosen = np.flatnonzero(lacking.any(1))
    part, begun = _PartWriter(cache, chips_like.sensor), time.monotonic()
    with tqdm(total=int(lacking.sum()), unit="target", disable=not progress, desc=label or chips_like.sensor) as bar:
        for start in range(0, len(chosen), batch_size):
            indices = chosen[start : start + batch_size]
            chips = chips_like[indices]  # fewer where a damaged shard is skipped
            wanted = lacking[indices][np.isin(chips_like.hashes[indices], chips.hashes)]
            for k, flip in enumerate(flips):
                asked = chips[np.flatnonzero(wanted[:, k])]
                if len(asked):
                    part.add(_keys(asked.hashes, flip), told(teacher, asked, flip))
            bar.update(int(lacking[indices].sum()))
            if part.rows >= PART_ROWS or time.monotonic() - begun > PART_SECONDS:
                part.publish()
                begun = time.monotonic()
    part.publish()
    return TargetCache(cache.url)


def missing(chips_like, cache: TargetCache, flips: Sequence[int]) -> np.ndarray:
    """[N, len(flips)] bool: what the teacher is still to be asked; a content that comes twice is asked about once."""
    first = np.zeros(len(chips_like), bool)
    first[np.unique(chips_like.hashes, return_index=True)[1]] = True
    found = [cache.has(chips_like.sensor, chips_like.hashes, flip) for flip in flips]
    return np.stack([first & ~there for there in found], axis=1)


def told(teacher: nn.Module, chips, flip: int) -> np.ndarray:
    """[n, dim] float16: what the teacher says of chips in memory, flipped. As in a training step with a live teacher."""
    from clay_lib.datacube import make_datacube
    from clay_lib.training import ask

    pixels = flipped(chips.pixels, flip)
    device = next(iter([*teacher.parameters(), *teacher.buffers()]), torch.empty(0)).device
    seen = make_datacube(np.ascontiguousarray(pixels), chips.sensor).pixels.to(device)
    with torch.inference_mode():
        targets = ask(teacher.eval(), seen, chips.sensor).to(torch.float16).cpu().numpy()
    if not np.isfinite(targets).all():
        raise ContractError(
            "teacher",
            f"targets of {chips.sensor} that float16 cannot hold",
            "finite numbers below 65504",
            "broken weights, or features that were never scaled",
        )
    return targets


def fingerprint(teacher: nn.Module) -> str:
    """32 hex digits: SHA-256 over a teacher's kind, weights, configuration, size and the version of preprocessing."""
    config = getattr(getattr(teacher, "network", teacher), "config", None)
    config = config.to_dict() if hasattr(config, "to_dict") else config or {}
    skipped = {"transformers_version", "dtype", "torch_dtype"}  # of the library, not of the teacher
    config = {k: v for k, v in config.items() if not k.startswith("_") and k not in skipped}
    told = [
        VERSION,
        type(teacher).__qualname__,
        getattr(teacher, "size", None),
        getattr(teacher, "sees", "rgb"),
        config,
    ]
    return hash_tensors(teacher.state_dict(), json.dumps(told, sort_keys=True, default=str))[:32]


def shown_as(sensor: str) -> str:
    """A sensor's name and eight digits of all that decides how its chips are normalised and shown."""
    s = SENSORS[sensor]
    what = repr([s.decibel, s.rgb, *((band.name, band.mean, band.std) for band in s.bands)])
    return f"{sensor}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


# ---- files ----


class _PartWriter:
    """Rows in memory until they are published together."""

    def __init__(self, cache: TargetCache, sensor: str):
        self.url, self.sensor, self.rows = cache.url, sensor, 0
        self.keys: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []

    def add(self, keys: np.ndarray, targets: np.ndarray) -> None:
        self.keys.append(keys)
        self.targets.append(targets.astype("<f2"))
        self.rows += len(keys)

    def publish(self) -> None:
        if not self.rows:
            return
        targets = np.concatenate(self.targets)
        table = np.empty(self.rows, TABLE)
        table["key"], table["crc"] = np.concatenate(self.keys), [zlib.crc32(row) for row in targets]
        buffer = io.BytesIO()
        np.save(buffer, table)
        np.save(buffer, targets)
        fs, root = filesystem(self.url)
        _put(fs, f"{root}/{shown_as(self.sensor)}/{_name(table)}.npy", buffer.getbuffer())
        self.keys, self.targets, self.rows = [], [], 0


def _name(table: np.ndarray) -> str:
    return hashlib.sha256(table.tobytes()).hexdigest()[:16]


def _put(fs, path: str, data) -> None:
    """A file that is whole once its name is there; object stores put whole by themselves."""
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    if "file" not in fs.protocol:
        fs.pipe_file(path, bytes(data))
        return
    atomic_write(path, lambda partial: partial.write_bytes(data))


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
    if table.dtype != TABLE or _name(table) != path.rsplit("/", 1)[1].removesuffix(".npy"):
        raise _damaged(path, "its table is not the one that it is named after")
    if (shape, dtype) != ((len(table), dim), np.dtype("<f2")) or size != start + 2 * dim * len(table):
        raise _damaged(path, f"{size - start} bytes for {len(table)} targets of {dim}")
    return table, start


def _damaged(path: str, why: str) -> ContractError:
    return ContractError(
        f"targets {path}",
        why,
        "a whole part",
        "a disk error or an interrupted copy: delete this file, and the `targets` command computes it again",
    )


def _keys(hashes, flips) -> np.ndarray:
    """Content hashes [B], hexadecimal, and flips -> keys [B] of 17 bytes. The last byte is never zero, which is padding."""
    hashes = np.asarray(hashes)
    raw = np.frombuffer(bytes.fromhex("".join(hashes.tolist())), np.uint8).reshape(len(hashes), 16)
    last = np.broadcast_to(np.asarray(flips, np.uint8) + 1, len(hashes))[:, None]
    return np.ascontiguousarray(np.concatenate([raw, last], axis=1)).view("S17")[:, 0]


def open_or_begin(folder, teacher: nn.Module) -> TargetCache:
    """The teacher's cache, begun if it is new; what killed writers left in it is deleted."""
    fs, root = filesystem(folder)
    name = fingerprint(teacher)
    home = f"{root}/targets/{name}"
    if not fs.exists(f"{home}/teacher.json"):
        kind = type(getattr(teacher, "network", teacher)).__name__
        about = {"version": VERSION, "fingerprint": name, "dim": teacher.dim, "teacher": kind}
        about["size"] = getattr(teacher, "size", None)
        _put(fs, f"{home}/teacher.json", json.dumps(about, indent=2).encode())
    if "file" in fs.protocol:
        for partial in Path(home).glob(f"**/{PARTIAL}*"):
            if time.time() - partial.stat().st_mtime > 3600:  # nobody takes so long over a file
                partial.unlink(missing_ok=True)
    return TargetCache(folder, name, teacher.dim)


def _home(url: str, name: str | None) -> str:
    """The folder of one teacher's targets."""
    fs, root = filesystem(url)
    fs.invalidate_cache()
    base = url.rstrip("/")
    found = {}
    if fs.exists(f"{root}/teacher.json"):
        found[root.rsplit("/", 1)[1]] = base
    for below in ("", "/targets"):
        names = [folder.rsplit("/", 1)[1] for folder in _listed(fs, f"{root}{below}")]
        found |= {n: f"{base}{below}/{n}" for n in names if fs.exists(f"{root}{below}/{n}/teacher.json")}
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        raise ContractError(
            "targets",
            f"{url} with targets of {sorted(found) or 'no teacher'}",
            f"those of {name}" if name else "those of one teacher: name its folder",
            "another teacher, or none asked yet: `python -m clay_lib targets STORE --teacher NAME` makes them",
        )
    return found[name]


def _listed(fs, folder: str) -> list[str]:
    try:
        return [path.rstrip("/") for path in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []


# ---- The command `targets`: what a teacher says of the chips of a store, computed once, with a forecast f ----

FLIPS = (0, 1, 2, 3)  # what training draws from; validation sees chips as they are


def targets(
    store: str,
    *,
    teacher: str = RELEASED,
    sensors: str = "all",
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "float32",
    forecast: bool = False,
) -> int:
    """Compute the teacher's targets for all chips of a store, training chips in four flips. The same command resumes.

    Args:
        store: folder or URL of the chips; the targets are kept in its folder targets
        teacher: a folder or hub name with DINOv2 weights, stand-in, textures, or package.module:function
        sensors: names, separated by commas, or "all"
        batch_size: images the teacher sees at once
        device: auto, cpu or cuda
        precision: of the teacher's weights: float32 or bfloat16, which are two teachers to the cache
        forecast: say what it would take, and stop
    """
    import torch

    from clay_lib.runs.pretrain import find_teacher

    if precision not in ("float32", "bfloat16") or batch_size < 1:
        raise ContractError("precision, batch_size", (precision, batch_size), "float32 or bfloat16, >= 1", "a slip")
    held = ChipStore.open(store)
    known = sorted(set(held.table["sensor"]))
    names = known if sensors == "all" else sensors.split(",")
    if unknown := sorted(set(names) - set(known)):
        raise ContractError("sensors", unknown, f"some of {known}", "not in this store")
    network = find_teacher(teacher)
    if network is None:
        raise ContractError("teacher", teacher, "a teacher", "none was named")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    network = network.to(device, getattr(torch, precision) if precision != "float32" else None)
    cache = open_or_begin(store, network)

    groups = held.table[held.table["sensor"].isin(names)].groupby(["sensor", "size", "split"]).size()
    work = []
    for sensor, size, split in groups.index:
        chips = held.sensor(sensor, split=split, size=int(size), labels=False)
        flips = FLIPS if split == "train" else (0,)
        work.append((f"{sensor} {size} px {split}", chips, flips, int(missing(chips, cache, flips).sum())))
    total = sum(count for *_, count in work)
    print(f"teacher {cache.teacher}, {cache.fingerprint}, {cache.dim} numbers; on {device}")
    seconds = _seconds_a_target(network, work, batch_size) if total else 0.0
    print(f"{'to be computed':<34}{'targets':>10}{'MB':>10}{'minutes':>9}")
    for name, count in [*((name, count) for name, _, _, count in work), ("all", total)]:
        size = count * (2 * cache.dim + TABLE.itemsize)
        print(f"{name:<34}{count:>10}{size / 1e6:>10.1f}{count * seconds / 60:>9.1f}", flush=True)
    if forecast:
        return 0
    for name, chips, flips, count in work:
        if count:
            fill_targets(chips, network, store, batch_size=batch_size, flips=flips, label=name)
    print(f"{total} targets computed; `data.targets: {store}` in a training configuration uses them")
    return 0


def _seconds_a_target(teacher, work: list, batch_size: int) -> float:
    """From up to a batch of the first chips that lack one, after one that warms up."""
    chips = next(chips for _, chips, _, count in work if count)
    few = chips[: min(batch_size, 4 if next(teacher.parameters(), None) is not None else 16, len(chips))]
    told(teacher, few[:1], 0)
    start = time.perf_counter()
    told(teacher, few, 0)
    return (time.perf_counter() - start) / len(few)
