"""The work of embedding an area: pixels that were read ahead, one model, parts that are kept.

    jobs -> read (Dask, a bounded number ahead) -> Clay.embed -> vectors, dense features

What is published stays; the same jobs go on where they stopped, in the same batches, so that work that was killed ends
in the same numbers as work that was not.
"""

from __future__ import annotations

import fcntl
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clay_lib import dense, vectors
from clay_lib.area_jobs import Block, Job, Settings
from clay_lib.area_reading import read_ahead
from clay_lib.contract import ContractError, warn
from clay_lib.files import write_json

PART_ROWS, PART_SECONDS = 1024, 60.0  # rows are published when so many or so old: what a killed job computes again
# Warnings that say nothing here: tiles reach over the edges of scenes and into clouds; valid_share says how far.
USUAL = "their outcome is NaN|of the pixels missing"
FAILURES = 20  # so many tiles that fail, and most of those tried, end the job early


@dataclass
class Tally:
    """What a job did: rows written, tiles with nothing to embed, tiles that failed, seconds of the model's own work."""

    rows: int = 0
    empty: int = 0
    failed: tuple[tuple[str, Exception], ...] = ()  # (id, error) of tiles that could not be read
    refused: tuple[tuple[str, Exception], ...] = ()  # of those that are not what their sensor's images are
    pixels_read: int = 0  # bytes of pixels that came back from reading
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # that the model waited for pixels


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """One job at a time writes under a folder; the lock goes with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ContractError(
                "out",
                found=f"another job at work in {out}",
                expected="one job a folder at a time",
                cause="the same command runs in another window",
            ) from None
        yield


@contextmanager
def ended_gently() -> Iterator[None]:
    """SIGTERM, which a cluster sends before it kills, ends the work as Ctrl-C does: what is whole is published."""
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """A disk that is full, or a folder that cannot be written, told once; what was published is whole."""
    try:
        yield
    except OSError as error:
        raise ContractError(
            "out",
            found=f"{out}: {error.strerror or error}",
            expected="room for the results (--forecast tells how much), in a folder that can be written to",
            cause="the disk or a quota is full: make room and give the same command again, it goes on from what is there",
        ) from error


def embed_jobs(
    clay,
    client,
    blocks: Sequence[Block],
    out: Path,
    about: dict,
    settings: Settings,
    *,
    lacking: set[str],
    rows_there: set[str],
    overlap: int | None,
    batch_size: int,
    bar,
) -> Tally:
    """Embed the jobs whose id is lacking, batch by batch; publish rows and dense parts as they come.

    rows_there: ids whose row is there already, and only the dense part is not. overlap: None for no dense features.
    Batches are cut from all jobs, lacking or not, so that they are always the same.
    """
    writer, tally = Writer(out, about, settings.store, clay.model.config.dim), Tally()
    home = dense.folder(out, about, overlap or 0)
    jobs = [job for block in blocks for job in block.jobs]
    batches = [[job for job in jobs[k : k + batch_size] if job.id in lacking] for k in range(0, len(jobs), batch_size)]
    asked = [block for block in blocks if any(job.id in lacking for job in block.jobs)]
    ahead = read_ahead(client, asked, overlap=overlap or 0, clouds=settings.clouds)
    pixels = ((job, got) for job, got in ahead if job.id in lacking)
    seen: set[str] = set()
    with closing(ahead), closing(pixels):
        try:
            for batch in filter(None, batches):
                start = time.perf_counter()
                read = [next(pixels) for _ in batch]
                tally.waited_seconds += time.perf_counter() - start
                start = time.perf_counter()
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always", UserWarning)
                    made = embed_batch(clay, read, settings, overlap)
                tally.model_seconds += time.perf_counter() - start
                tally.pixels_read += sum(got[0].nbytes for _, got in read if not isinstance(got, Exception))
                _warn_once(told, seen, batch[0], bar)
                done = {}
                for (job, got), row in zip(read, made, strict=True):
                    if isinstance(got, Exception):
                        tally.failed += ((job.id, got),)
                    elif isinstance(row, Exception):
                        tally.refused += ((job.id, row),)
                    else:
                        if row is not None and overlap is not None:
                            with writing(out):
                                dense.write_part(home, job, row["patches"])
                        if job.id not in rows_there:
                            done[job.id] = row
                writer.add(done)
                writer.publish(now=False)
                bar.update(len(batch))
                bar.set_postfix_str(f"{tally.pixels_read / 1e6:,.0f} MB of pixels")
                bad = len(tally.failed) + len(tally.refused)
                if bad >= FAILURES and bad > writer.rows + writer.empty:
                    break
        finally:  # interrupted as well
            writer.publish()
    tally.rows, tally.empty = writer.rows, writer.empty
    return tally


class Writer:
    """Rows in memory until they are published together."""

    def __init__(self, out: Path, about: dict, store: str, dim: int):
        self.out, self.store, self.dim = out, store, dim
        self.shared = {name: about[name] for name in ("sensor", "gsd", "model", "weights", "configuration")}
        self.waiting: dict[str, dict | None] = {}
        self.rows = self.empty = 0
        self.began = time.monotonic()

    def add(self, batch: dict[str, dict | None]) -> None:
        """{id: row, or None for a tile that holds nothing to embed}, all at once: an interruption leaves whole batches,
        since a batch cut in two would have other numbers in its last digits."""
        self.waiting |= batch
        empty = sum(row is None for row in batch.values())
        self.rows, self.empty = self.rows + len(batch) - empty, self.empty + empty

    def publish(self, *, now: bool = True) -> None:
        """Now, or when there is enough of it or it is old."""
        due = len(self.waiting) >= PART_ROWS or time.monotonic() - self.began > PART_SECONDS
        if not self.waiting or not (now or due):
            return
        rows = [row for row in self.waiting.values() if row is not None]
        empty = [job_id for job_id, row in self.waiting.items() if row is None]
        with writing(self.out):
            vectors.write_part(self.out, rows, empty, self.shared, self.dim, self.store)
        self.waiting, self.began = {}, time.monotonic()


def embed_batch(clay, read: Sequence[tuple], settings: Settings, overlap: int | None) -> list:
    """A row for each (job, (pixels, bands) or exception): as `vectors.write_part` takes it, with "patches" [h, w, D].

    None: nothing there to embed; an exception: could not be read, or is not what its sensor's images are.
    The chip's vector is that of the tile alone, whether or not dense features want a wider look at it.
    """
    wide = overlap or 0
    core = slice(wide, wide + settings.size)
    out: list = [got if isinstance(got, Exception) else None for _, got in read]
    held = [k for k, (_, got) in enumerate(read) if out[k] is None and np.isfinite(got[0][:, core, core]).any()]
    if not held:
        return out
    whole = np.stack([read[k][1][0] for k in held])
    pixels, jobs, bands = whole[..., core, core], [read[k][0] for k in held], read[held[0]][1][1]
    try:
        made = _embed(clay, pixels, jobs, bands, settings)
        wider = _embed(clay, whole, jobs, bands, settings) if wide else made
    except ContractError as error:
        if len(held) == 1:
            out[held[0]] = error
        else:  # one bad tile must not lose the others
            for k in held:
                (out[k],) = embed_batch(clay, [read[k]], settings, overlap)
        return out
    chips, means = made.chip.cpu().numpy(), made.mean.cpu().numpy()
    for n, k in enumerate(held):
        if np.isfinite(chips[n]).all():
            out[k] = dict(
                id=jobs[n].id,
                tile=jobs[n].tile.id,
                geometry=jobs[n].tile.polygon,
                time=jobs[n].time,
                items=[item.id for item in jobs[n].items],
                cloud_cover=jobs[n].cloud_cover,
                valid_share=float(np.isfinite(pixels[n]).mean()),
                vector=chips[n],
                patch_mean=means[n],
                patches=None if overlap is None else wider.patches[n].cpu().numpy().astype(np.float16),
            )
    return out


def _embed(clay, pixels: np.ndarray, jobs: Sequence[Job], bands: Sequence[str], settings: Settings):
    lat, lon = zip(*(job.tile.centre for job in jobs), strict=True)
    return clay.embed(
        pixels,
        jobs[0].look.sensor,
        bands=bands,
        when=[job.time for job in jobs],
        lat=list(lat),
        lon=list(lon),
        gsd=jobs[0].tile.gsd,
        min_valid=settings.min_valid,
    )


def write_about(out: Path, about: dict) -> Path:
    """OUT/configuration-HASH.json: what the hash stands for."""
    path = out / f"configuration-{about['configuration']}.json"
    if not path.is_file():
        with writing(out):
            write_json(path, about)
    return path


def _warn_once(told, seen: set[str], first: Job, bar) -> None:
    """What a batch was warned of, unless a batch before was for the same cause."""
    for warning in told:
        text = str(warning.message)
        cause = text.rpartition("Likely cause: ")[2]
        if cause not in seen and not re.search(USUAL, text):
            seen.add(cause)
            bar.clear()
            warn(f"{text} (told once, of the batch from tile {first.tile.id} on)", warning.category)


def check_failures(tally: Tally, asked: int) -> None:
    """ContractError in the words of the first tile that could not be read, or else was refused by the contract check."""
    some = tally.failed or tally.refused
    if not some:
        return
    first, error = some[0]
    if not isinstance(error, ContractError):
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        cause = "a server or file that fails again and again"
        error = ContractError("reading", found=line, expected="pixels of every tile", cause=cause)
    kept = "all other tiles are kept"
    raise ContractError(
        error.field,
        found=f"{error.found} ({len(some)} of {asked} tiles failed, the first {first})",
        expected=error.expected,
        cause=f"{error.cause}; {kept}"
        + (": the same command asks again for those that failed" if tally.failed else ""),
    )
