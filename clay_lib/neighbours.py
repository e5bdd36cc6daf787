"""Exact cosine neighbours among millions of stored vectors, without a float copy of them.

usearch compares int8 and float16 as they lie in memory; a row's scale plays no part in a cosine.
"""

from __future__ import annotations

import numpy as np

from clay_lib.contract import ContractError

BLOCK = 32_768  # rows compared at once: what is copied or made float stays small however long the table is
ROUNDING = 2e-6  # of usearch's single-precision cosines


def nearest(
    values: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [k], cosines [k] float64), best first: the k rows of values [N, D] nearest to query [D], exactly.

    keep [N] bool: rows that may be hits. usearch compares in the table's own type, for which the query is rounded; the
    best are then compared again in float64, and more are asked for until what rounding could hide is ruled out.
    """
    from usearch.index import search as usearch_search

    query = unit(np.asarray(query, np.float64), "query")
    rounded, slack = _as_stored(query, values.dtype)
    rows, scores = np.empty(0, int), np.empty(0)
    for start in range(0, len(values), BLOCK):
        block, at = values[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(values)))
        if keep is not None and not keep[at].all():
            block, at = block[keep[at]], at[keep[at]]
        count = min(len(block), 4 * k + 16)
        while count:
            found = usearch_search(block, rounded, count, exact=True)
            most = 1 - np.asarray(found.distances, np.float64) + slack  # what their true cosines may be, at most
            floor = scores[-1] if len(rows) == k else -np.inf
            best = np.asarray(found.keys, int)[most >= floor]
            merged = _best(np.append(rows, at[best]), np.append(scores, _cosines(block[best], query)), k)
            if count == len(block) or (len(merged[0]) == k and merged[1][-1] > most[-1]):  # none beyond is nearer
                rows, scores = merged
                break
            count = min(len(block), 4 * count)
    return rows, scores


def unit(vector: np.ndarray, name: str) -> np.ndarray:
    length = np.linalg.norm(vector)
    if not (np.isfinite(length) and length > 0):
        raise ContractError(
            name,
            found="zeros only" if length == 0 else "NaN or infinity",
            expected="a vector with a direction",
            cause="a tile without data, or positive and negative examples that cancel",
        )
    return vector / length


def _as_stored(query: np.ndarray, dtype) -> tuple[np.ndarray, float]:
    """(the query in the table's type, how far a cosine with it may be from one with the query itself)."""
    grown = query / np.abs(query).max() * (127 if dtype == np.int8 else 1)
    rounded = (np.rint(grown) if dtype == np.int8 else grown).astype(dtype)
    there = rounded.astype(np.float64)
    return rounded, float(np.linalg.norm(there / np.linalg.norm(there) - query)) + ROUNDING


def _cosines(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[n] cosines of rows [n, D] with a query of length one; -inf where a row is all zero."""
    wide = values.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    return np.where(lengths > 0, (wide * query).sum(axis=1) / np.where(lengths > 0, lengths, 1), -np.inf)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    known = scores > -np.inf
    rows, scores = rows[known], scores[known]
    order = np.lexsort((rows, -scores.round(12)))[:k]
    return rows[order], scores[order]
