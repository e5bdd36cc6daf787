"""Reading an area ahead of the model, through Dask: a bounded number of blocks, in their order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from clay_lib.area_jobs import Block
from clay_lib.contract import ContractError

READ_AHEAD = 2  # blocks beyond those being read
WITHOUT_READERS = 120  # s without any worker until a job gives up


def read_block(look, geobox, clouds: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(pixels float32 [C, H, W] with NaN for holes, names of the bands); runs on a Dask worker."""
    from clay_lib.archives import read_look

    try:
        dataset = read_look(look, geobox, clouds=clouds)
    except ContractError as error:
        error.__context__ = None  # GDAL's own error cannot be pickled, and would leave a text of this one
        raise
    names = tuple(name for name in look.sensor.band_names if name in dataset.data_vars)
    pixels = np.stack([np.asarray(dataset[name], np.float32) for name in names])
    if look.archive.kind == "files":  # whose fill may be untagged; an archive's profile knows its own
        pixels[:, (pixels == 0).all(axis=0)] = np.nan
    return pixels, names


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
