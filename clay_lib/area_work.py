"""The work of embedding an area: read ahead through Dask, one model, parts that are kept.

    jobs -> read (Dask, a bounded number ahead) -> Clay.embed -> vectors, dense features

What is published stays; the same jobs go on where they stopped, in the same batches, so that work that was killed ends
in the same numbers as work that was not.
"""

from __future__ import annotations

import fcntl
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clay_lib import dense, vectors
from clay_lib.area_jobs import Block, Job, Settings
from clay_lib.contract import ContractError
from clay_lib.files import write_json

READ_AHEAD = 2  # blocks beyond those being read
WITHOUT_READERS = 120  # s without any worker until a job gives up
PART_ROWS, PART_SECONDS = 1024, 60.0  # rows are published when so many or so old: what a killed job computes again
FAILURES = 20  # so many tiles that fail, and most of those tried, end the job early


@dataclass
class Tally:
    """What a job did: rows written, tiles with nothing to embed, tiles that failed, seconds of the model's own work."""

    rows: int = 0
    empty: int = 0
    failed: tuple[tuple[str, str], ...] = ()  # (id, the error's first line)
    pixels_read: int = 0  # bytes of pixels that came back from reading
    model_seconds: float = 0.0
    waited_seconds: float = 0.0  # that the model waited for pixels


def read_block(look, geobox, clouds: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(pixels float32 [C, H, W] with NaN for holes, names of the bands); runs on a Dask worker."""
    from clay_lib.archives import read_look

    dataset = read_look(look, geobox, clouds=clouds)
    names = tuple(name for name in look.sensor.band_names if name in dataset.data_vars)
    return np.stack([np.asarray(dataset[name], np.float32) for name in names]), names


def read_ahead(client, blocks: Sequence[Block], *, overlap: int, clouds: str) -> Iterator[tuple]:
    """(job, (pixels, bands) or the exception) of all jobs of the blocks, in their order.

    Two blocks more than there are readers are under way or waiting here: memory is the same for any area.
    """
    waiting: deque = deque()
    rest = iter(blocks)
    try:
        while True:
            while len(waiting) < READ_AHEAD + sum(client.nthreads().values()) and (block := next(rest, None)):
                work = (block.look, block.geobox(overlap), clouds)
                waiting.append((block, client.submit(read_block, *work, pure=False, retries=1)))
            if not waiting:
                return
            block, future = waiting.popleft()
            error = _outcome(client, future)
            got = future.result() if error is None else error
            del future  # so that its worker forgets the pixels
            for job in block.jobs:
                yield job, got if error is not None else (got[0][:, *block.window(job, overlap)], got[1])
    finally:
        client.cancel([future for _, future in waiting])


def _outcome(client, future) -> BaseException | None:
    """The exception of a read, None where it went well. That all readers are gone is told, not waited for."""
    alone = time.monotonic()
    while True:
        try:
            return future.exception(timeout=5)
        except TimeoutError:
            alone = time.monotonic() if client.nthreads() else alone
            if time.monotonic() - alone > WITHOUT_READERS:
                raise ContractError(
                    "scheduler",
                    found=f"no worker for {WITHOUT_READERS} s",
                    expected="at least one that reads",
                    cause="all workers were killed, most often for their memory: take fewer (workers=), or smaller tiles, and "
                    "give the same command again; what was done is kept",
                ) from None


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
    try:
        for batch in filter(None, batches):
            start = time.perf_counter()
            read = [next(pixels) for _ in batch]
            tally.waited_seconds += time.perf_counter() - start
            start = time.perf_counter()
            made = embed_batch(clay, read, settings, overlap)
            tally.model_seconds += time.perf_counter() - start
            tally.pixels_read += sum(got[0].nbytes for _, got in read if not isinstance(got, Exception))
            for job, row in zip(batch, made, strict=True):
                if isinstance(row, Exception):
                    tally.failed += ((job.id, _first_line(row)),)
                    continue
                if row is not None and overlap is not None:
                    with writing(out):
                        dense.write_part(home, job, row["patches"])
                if job.id not in rows_there:
                    writer.add(job.id, row)
            writer.publish(now=False)
            bar.update(len(batch))
            bar.set_postfix_str(f"{tally.pixels_read / 1e6:,.0f} MB of pixels")
            if len(tally.failed) >= FAILURES and len(tally.failed) > writer.rows + writer.empty:
                break
        writer.publish()
    finally:
        pixels.close()
        ahead.close()
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

    def add(self, job_id: str, row: dict | None) -> None:
        """A row, or None for a tile that holds nothing to embed."""
        self.waiting[job_id] = row
        self.rows, self.empty = self.rows + (row is not None), self.empty + (row is None)

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
    with warnings.catch_warnings():
        # Tiles reach over the edges of scenes and into clouds; valid_share says how far.
        warnings.filterwarnings("ignore", message=".*(their outcome is NaN|of the pixels missing)")
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
