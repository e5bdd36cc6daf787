"""Chips: many small images of one sensor in one array, with their place, date and land cover."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.errors import ContractError
from clay_lib.files import CACHE, atomic_write

if TYPE_CHECKING:
    from clay_lib.world.earth import MiniWorld, Place


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
        """The chips that a slice, an index array or a boolean mask names."""
        part = Chips(self.sensor, *(getattr(self, f.name)[index] for f in fields(self)[1:]))
        if "hashes" in self.__dict__:  # known hashes go along
            part.__dict__["hashes"] = self.hashes[index]
        return part

    @cached_property
    def hashes(self) -> np.ndarray:
        """[N] text: what a chip is, of all that goes into its embedding. Equal for the same chip wherever it is kept."""
        columns = zip(self.pixels, self.lat, self.lon, self.when, strict=True)
        return np.array([content_hash(self.sensor, *chip) for chip in columns], dtype="U32")

    @property
    def land_cover(self) -> np.ndarray:
        """[N] the commonest land-cover code of each chip."""
        return np.array([np.bincount(chip.ravel(), minlength=256).argmax() for chip in self.labels], dtype=np.uint8)

    @property
    def place_and_time(self) -> dict[str, list]:
        """The keyword arguments by which `Clay.embed` and `make_datacube` take place and time."""
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
        raise ContractError(
            "when", repr(when), "ISO text such as '2023-06-10T10:30'", "day and month swapped"
        ) from None
    return np.datetime64(time.astimezone(dt.UTC).replace(tzinfo=None) if time.tzinfo else time, "s")


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
    """`count` chips of the mini-world: land-cover classes in turn, every place seen at `dates` random dates.

    Two sensors with the same seed, split and classes see the same places. first: skip that many places of each class.
    Made once and kept under `cache`.
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

    looks = [_look(spec, n) for n in range(count)]  # places are found once, here; only the observing is shared out
    shares = min(count, 4 * (os.cpu_count() or 1))
    parts = [looks[k::shares] for k in range(shares)]
    made = Parallel(n_jobs=jobs)(delayed(_observe)(spec, part) for part in parts)
    seen = [made[n % shares][n // shares] for n in range(count)]
    chips = Chips(sensor, *(np.stack(column) for column in zip(*seen, strict=True)))
    if path:
        atomic_write(path, lambda partial: np.savez(partial, **{f.name: getattr(chips, f.name) for f in fields(Chips)}))
    return chips


@lru_cache(maxsize=2)
def shared_world(seed: int) -> MiniWorld:
    """One world a process: it remembers the places that it found."""
    from clay_lib.world.earth import MiniWorld

    return MiniWorld(seed)


def _look(spec: dict, n: int) -> tuple[Place, str]:
    """Place and date of chip number n: class n mod K, then the place, then its dates."""
    K = len(spec["classes"])
    place = shared_world(spec["seed"]).place(
        spec["classes"][n % K], spec["first"] + n // (K * spec["dates"]), split=spec["split"]
    )
    rng = np.random.default_rng([spec["seed"], n, *spec["split"].encode()])
    when = np.datetime64("2018-01-01T10:30") + np.timedelta64(int(rng.integers(0, 6 * 365)), "D")
    return place, str(when)


def _observe(spec: dict, looks: Sequence[tuple[Place, str]]) -> list[tuple]:
    world, seen = shared_world(spec["seed"]), []
    for place, when in looks:
        chip = world.observe(place, spec["sensor"], when, size=spec["size"], cloud_cover=spec["cloud_cover"])
        seen.append((chip.pixels, chip.labels, chip.lat, chip.lon, when))
    return seen


def world_version() -> str:
    """A hash of all source that a chip is made by, so that a changed world is never served old chips."""
    library = Path(__file__).resolve().parents[1]
    files = [
        *sorted((library / "world").glob("*.py")),
        library / "sensors.py",
        library / "sensors.yaml",
        Path(__file__),
    ]
    made_by = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(made_by).hexdigest()[:16]
