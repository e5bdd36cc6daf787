"""Jobs: which tiles of which looks an area asks for, how each is called, and what shapes its vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import shapely
import shapely.geometry

from clay_lib.contract import ContractError
from clay_lib.sensors import Sensor
from clay_lib.tiles import Tile

VERSION = 1  # of all that happens between a file's pixels and a vector


@dataclass(frozen=True, eq=False)
class Job:
    """One tile in one look. look: with only the items that meet the tile. time: of the first of them, UTC."""

    id: str
    tile: Tile
    look: object
    time: datetime | None


@dataclass(frozen=True)
class Settings:
    """All that shapes a vector, beside weights and pixels; see `embed.embed_area`."""

    size: int = 256
    clouds: str = "mask"
    min_valid: float = 0.5
    store: str = "float16"


def plan(tiles: Sequence[Tile], looks: Sequence, pick: str) -> list[Job]:
    """Jobs in the order of the tiles. pick: "all" looks at a tile, or the "best", whose clear share promises most.

    The promise is the share of the tile under the look's footprint times one minus its items' cloud cover; of equal
    ones the first look wins. Tiles that no look meets have no job.
    """
    if pick not in ("best", "all"):
        raise ContractError("pick", found=repr(pick), expected="best or all", cause="a misspelling")
    if not tiles or not looks:
        return []
    outlines = np.array([tile.polygon for tile in tiles])
    areas, promise = shapely.area(outlines), np.zeros((len(looks), len(tiles)))
    for k, look in enumerate(looks):
        covered = shapely.area(shapely.intersection(outlines, look.footprint)) / areas
        promise[k] = np.round(covered, 3) * (1 - (look.cloud_cover or 0) / 100 + 1e-6)
    jobs = []
    for n, tile in enumerate(tiles):
        chosen = [int(promise[:, n].argmax())] if pick == "best" else range(len(looks))
        jobs += [_job(tile, looks[k]) for k in chosen if promise[k, n] > 0]
    return jobs


def _job(tile: Tile, look) -> Job:
    items = tuple(i for i in look.items if shapely.intersects(shapely.geometry.shape(i.geometry), tile.polygon))
    look = replace(look, items=items or look.items)
    times = [item.datetime for item in look.items if item.datetime]
    when = min(times) if times and look.when else None
    # The solar day at the tile: the same wherever UTC's midnight falls, and whichever other items the area meets.
    day = f"{when + timedelta(hours=tile.centre[1] / 15):%Y%m%d}" if when else "undated"
    name = f"{tile.id}_{look.sensor.name}_{day}"
    stamp = _file_stamp(look)
    return Job(f"{name}_{stamp}" if stamp else name, tile, look, when)


def _file_stamp(look) -> str:
    """Eight digits of which local files these are, as they stand; "" for archives, whose items do not change."""
    if look.archive.kind != "files":
        return ""
    hrefs = sorted({asset.href for item in look.items for asset in item.assets.values()})
    paths = [path for href in hrefs if (path := Path(href)).is_file()]
    told = [*hrefs], [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def weights_hash(model) -> str:
    """16 hex digits of the encoder's tensors: the same for every file that holds them, with or without a decoder."""
    import torch

    digest = hashlib.sha256(repr([model.config.ladder, model.config.patch_size, model.config.heads]).encode())
    for name, values in sorted(model.encoder.state_dict().items()):
        values = values.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def configuration_of(clay, sensor: Sensor, archive, settings: Settings) -> dict:
    """All that shapes a vector beside the pixels themselves, in words, and its hash under "configuration"."""
    about = {
        "version": VERSION,
        "weights": weights_hash(clay.model),
        "reading": clay.reading,
        "sensor": sensor.name,
        "bands": {band.name: [band.wavelength, band.mean, band.std] for band in sensor.bands},
        "archive": f"{archive.name} {archive.collection}".strip(),
        "gsd": archive.gsd,
        **vars(settings),
    }
    return about | {"configuration": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]}
