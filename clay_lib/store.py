"""A store of chips: many more than fit into memory, read a batch at a time from a folder or from object storage.

zarr.json                                            a Zarr v3 group, so that any Zarr reader finds its way
SENSOR-SIZE/PART-SESSION/{pixels,labels}             arrays of one shard each, one chip a chunk
index/SENSOR-SIZE/PART.parquet                       GeoParquet, a row a chip: the part exists once this does
index.parquet                                        the same rows of many parts in one file, for a quick start
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clay_lib.chips import Chips, content_hash
from clay_lib.contract import ContractError
from clay_lib.shards import Shards, filesystem, read_files

if TYPE_CHECKING:
    import geopandas
    import pandas

VERSION = 1
INDEX, ALL = "index", "index.parquet"


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard, and the content hashes of the chips that it takes along."""

    shard: str
    reason: str
    hashes: tuple[str, ...]


class ChipStore:
    """The whole chips of a store. on_damage: "raise" names the shard; "skip" warns of it once and goes on without."""

    def __init__(self, url: str, table: pandas.DataFrame, on_damage: str = "raise"):
        self.url, self.table, self.on_damage = str(url), table, on_damage

    @staticmethod
    def open(url, *, on_damage: str = "raise") -> ChipStore:
        """The chips that are in the store now; what is written later is seen by opening it again."""
        if on_damage not in ("raise", "skip"):
            raise ContractError("on_damage", found=on_damage, expected="'raise' or 'skip'", cause="a misspelling")
        fs, root = filesystem(url)
        try:
            found = json.loads(fs.cat_file(f"{root}/zarr.json"))["attributes"]["clay_chips"]
        except (FileNotFoundError, KeyError, ValueError):
            found = None
        if found != VERSION:
            raise ContractError(
                "url",
                found=f"{url}, {'no store' if found is None else f'version {found}'}",
                expected=f"a store of chips, version {VERSION}",
                cause="a misspelt path, or nothing written yet: `python -m clay_lib chips` makes one",
            )
        return ChipStore(str(url), _read_index(fs, root, on_damage), on_damage)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def index(self) -> geopandas.GeoDataFrame:
        """A row a chip: footprint, sensor, size, time, lat, lon, source, split, content_hash, cover_10..100, shard, row."""
        import geopandas

        shapes = geopandas.GeoSeries.from_wkb(self.table["geometry"], crs="EPSG:4326")
        return geopandas.GeoDataFrame(self.table.drop(columns="geometry"), geometry=shapes)

    def sensor(
        self, name: str, *, split: str | None = None, size: int | None = None, labels: bool = True
    ) -> StoredChips:
        """The chips of one sensor, of one split if named, in a fixed order. labels: False spares reading them."""
        table = self.table[self.table["sensor"] == name]
        table = table if split is None else table[table["split"] == split]
        table = table if size is None else table[table["size"] == size]
        sizes = sorted(set(table["size"]))
        if len(sizes) != 1:
            raise ContractError(
                "sensor" if not sizes else "size",
                found=f"{name}, {split or 'any split'}: {'no chip' if not sizes else f'chips of {sizes} pixels'}",
                expected=f"one of {sorted(set(self.table['sensor']))}, splits {sorted(set(self.table['split']))}",
                cause="a sensor or split that was not written" if not sizes else "two sizes in one store: name size=",
            )
        return StoredChips(self.url, name, table, labels=labels, on_damage=self.on_damage)

    def check(self) -> list[Damage]:
        """Read every byte of every chip against its checksum and content hash; what is damaged, shard by shard."""
        damaged = []
        for shard, table in self.table.groupby("shard", sort=True):
            chips = StoredChips(self.url, table["sensor"].iloc[0], table)
            wrong: dict[int, str] = {}
            for start in range(0, len(chips), 64):
                asked = np.arange(start, min(start + 64, len(chips)))
                wrong |= {start + k: reason for k, reason in chips.failures(asked).items()}
            if wrong:
                reasons = "; ".join(dict.fromkeys(wrong[k] for k in sorted(wrong)))
                damaged.append(Damage(shard, reasons, tuple(chips.hashes[sorted(wrong)])))
        return damaged

    def without(self, damaged: Sequence[Damage]) -> ChipStore:
        """The same store without the chips that `check` found damaged."""
        lost = {name for damage in damaged for name in damage.hashes}
        return ChipStore(self.url, self.table[~self.table["content_hash"].isin(lost)], self.on_damage)


class StoredChips:
    """N chips of one sensor that stay where they are until they are asked for; picklable, and safe to fork."""

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
        return _text(self._time)

    def __getitem__(self, index) -> Chips:
        """The chips that a slice, an index array or a boolean mask names, in memory; fewer where damage is skipped."""
        return self.take(index)[0]

    def take(self, index) -> tuple[Chips, np.ndarray]:
        """(chips [n], kept [B] bool): kept is False for the asked chips that are damaged and were skipped."""
        asked = np.arange(len(self))[index]
        pixels, labels, reasons = self._read(asked)
        kept = np.ones(len(asked), bool)
        kept[list(reasons)] = False
        for k, reason in reasons.items():
            self._report(self._names[self._shard[asked[k]]], reason)
        if not kept.any():
            raise ContractError(
                "chips",
                found=f"none of the {len(asked)} asked",
                expected="at least one",
                cause="an empty index, or damage",
            )
        if reasons:
            asked, pixels, labels = asked[kept], pixels[kept], labels[kept]
        chips = Chips(self.sensor, pixels, labels, self.lat[asked], self.lon[asked], _text(self._time[asked]))
        chips.__dict__["hashes"] = self.hashes[asked]
        return chips, kept

    def failures(self, asked: np.ndarray) -> dict[int, str]:
        """{k: reason} of the asked chips that cannot be read, or are not what the index says."""
        pixels, _, reasons = self._read(asked)
        when = _text(self._time[asked])
        for k, chip in enumerate(asked):
            hashed = (self.sensor, pixels[k], self.lat[chip], self.lon[chip], when[k])
            if k not in reasons and content_hash(*hashed) != self.hashes[chip]:
                reasons[k] = f"chip {self._row[chip]} is not the one that the index names"
        return reasons

    def _read(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """pixels [B, C, H, W], labels [B, H, W] (zeros if they are not to be read), {k: reason}."""
        shards, rows = self._names[self._shard[asked]].tolist(), self._row[asked].tolist()
        pixels, reasons = self._shards.read("pixels", shards, rows)
        if not self.labels:
            return pixels, np.zeros((len(asked), self.size, self.size), np.uint8), reasons
        labels, more = self._shards.read("labels", shards, rows)
        return pixels, labels, more | reasons

    def _report(self, shard: str, reason: str) -> None:
        if self.on_damage == "raise":
            raise ContractError(
                f"shard {self.url}/{shard}",
                found=reason,
                expected="whole chips",
                cause="a disk error or an interrupted copy: `chips STORE --check` lists all such shards, and "
                'ChipStore.open(..., on_damage="skip") goes on without them',
            )
        if shard not in self._warned:
            self._warned.add(shard)
            warnings.warn(f"shard {self.url}/{shard} is damaged: {reason}; its damaged chips are skipped", stacklevel=4)


def _text(times: np.ndarray) -> np.ndarray:
    """datetime64 [n] -> ISO text [n], empty for NaT."""
    return np.where(np.isnat(times), "", np.datetime_as_string(times, unit="s"))


def index_parts(fs, root: str) -> dict[str, str]:
    """{SENSOR-SIZE/PART: path of its index file}: the parts that exist."""
    fs.invalidate_cache()
    try:
        paths = fs.find(f"{root}/{INDEX}")
    except FileNotFoundError:
        return {}
    return {"/".join(p.removesuffix(".parquet").rsplit("/", 2)[1:]): p for p in paths if p.endswith(".parquet")}


def _read_index(fs, root: str, on_damage: str) -> pandas.DataFrame:
    """All rows, in the order of the parts' names, each content once."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, parts = [], index_parts(fs, root)
    if fs.exists(f"{root}/{ALL}"):
        tables.append(pq.read_table(io.BytesIO(fs.cat_file(f"{root}/{ALL}"))))
        for part in pq.read_schema(io.BytesIO(fs.cat_file(f"{root}/{ALL}"))).metadata[b"parts"].decode().split():
            parts.pop(part, None)
    for path, data in zip(parts.values(), read_files(fs, list(parts.values())), strict=True):
        try:
            tables.append(pq.read_table(io.BytesIO(data)))
        except (pa.ArrowInvalid, OSError, TypeError) as error:
            said = ContractError(
                f"index {path}", found=str(error).splitlines()[0], expected="GeoParquet", cause="a disk error"
            )
            if on_damage == "raise":
                raise said from None
            warnings.warn(f"{said}; its chips are left out", stacklevel=3)
    tables = [table for table in tables if len(table)]
    if not tables:
        return pd.DataFrame({name: [] for name in ("sensor", "size", "split", "shard", "content_hash", "geometry")})
    frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    frame["part"] = frame["shard"].str.rsplit("-", n=1).str[0]
    frame = frame.sort_values(["part", "row"], kind="stable").drop(columns="part")
    return frame.drop_duplicates("content_hash").reset_index(drop=True)
