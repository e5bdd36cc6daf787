"""`clay bench search`: time, memory and recall of similarity search among synthetic vectors."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

import numpy as np

from clay_lib.areas.neighbors import build_index, nearest

DIM = 64  # numbers of a vector, as AlphaEarth's
KINDS, DIRECTIONS = 200, 16  # of synthetic land: clusters, and directions in which each varies
NEIGHBORS = 20  # hits whose recall is counted
MADE_AT_ONCE = 100_000


def synthetic_vectors(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """int8 [count, dim]: clusters that vary in a few common directions, with a tenth of noise in all."""
    rng = np.random.default_rng(seed)
    kinds, directions = rng.normal(size=(KINDS, dim)), rng.normal(size=(DIRECTIONS, dim)) / DIRECTIONS**0.5
    vectors = np.empty((count, dim), np.int8)
    for start in range(0, count, MADE_AT_ONCE):
        n = min(MADE_AT_ONCE, count - start)
        free, noise = (rng.standard_normal((n, d), np.float32) for d in (DIRECTIONS, dim))
        values = kinds.astype("f4")[rng.integers(KINDS, size=n)] + free @ directions.astype("f4") + noise / 10
        vectors[start : start + n] = np.rint(127 * values / np.abs(values).max(axis=1, keepdims=True))
    return vectors


def search_rows(count: int, repeats: int) -> Iterator[tuple[str, float, str]]:
    """(name, processor seconds, note) of the index and of exact and indexed searches; repeats: queries of each sort.

    Processor time, of all threads together: it does not count what else a machine does.
    """
    vectors = synthetic_vectors(count)
    tracemalloc.start()
    began = time.process_time()
    index = build_index(vectors)
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(array.nbytes for array in index)
    yield (f"index, {count:,} x {DIM} int8", seconds,
           f"{vectors.nbytes / 1e6:,.0f} MB of vectors, at most {peak / 1e6:,.0f} MB more, {kept / 1e6:,.0f} MB kept")  # fmt: skip
    chosen = np.random.default_rng(1).choice(count, (repeats, 2), replace=False)
    first, second = (vectors[rows].astype(np.float64) for rows in chosen.T)
    first, second = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (first, second))
    for sort, queries in (("a place", first), ("with a negative example", first - second / 2)):
        spent, recall = np.empty((repeats, 2)), []
        for n, query in enumerate(queries):
            hits = []
            for k, search in enumerate((nearest, index.nearest)):
                began = time.process_time()
                hits.append(search(vectors, query, NEIGHBORS)[0])
                spent[n, k] = time.process_time() - began
            recall.append(np.isin(*hits).mean())
        exact, indexed = np.median(spent, axis=0).tolist()
        yield f"{sort}, exact", exact, "every row compared"
        yield f"{sort}, index", indexed, f"{exact / indexed:.0f} x; recall of {NEIGHBORS}: {np.mean(recall):.3f}"
