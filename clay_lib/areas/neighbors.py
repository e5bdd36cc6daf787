"""Nearest neighbors by cosine: exact, and with an index for more than a million vectors.

The index is an inverted file (Sivic and Zisserman, 2003): k-means divides the directions into sqrt(N) cells, and a
search compares the rows of the cells nearest to the query. It takes four bytes a row; a graph, as usearch's own, takes
200 and far longer to build (papermill_runs/README.md has figures).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from clay_lib.errors import ContractError, warn
from clay_lib.files import atomic_write

NEGATIVE_WEIGHT = 0.5  # of negative examples; at 1 the part common to all land cancels and hits become random
BLOCK = 32_768  # rows compared at once, which bounds copies and float64 values in memory
ROUNDING = 2e-6  # error bound of usearch's single-precision cosines
EXACT_ROWS = 1_000_000  # up to which every row is compared
CELLS_SEARCHED = 32  # cells of average size whose rows are compared beyond that
ROUNDS, SAMPLE = 8, 40  # of k-means: iterations, rows for each cell


# ---- exact ----


def nearest(
    values: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [k], cosines [k] float64), best first: the k rows of values [N, D] nearest to query [D], exactly.

    values: int8, float16 or float32, of any length; rows of zeros are never hits. keep [N] bool: rows that may be hits.
    Equal cosines keep the order of the rows.
    usearch compares in the table's own type, to which the query is rounded. Its candidates are compared again in
    float64, and more candidates are requested until rounding cannot hide a nearer row.
    """
    from usearch.index import search as usearch_search

    query = unit(np.asarray(query, np.float64), "query")
    scaled = query / np.abs(query).max() * (127 if values.dtype == np.int8 else 1)
    rounded = (np.rint(scaled) if values.dtype == np.int8 else scaled).astype(values.dtype)
    # The cosine with the rounded query differs from the exact one by at most the distance of the two unit vectors.
    slack = float(np.linalg.norm(unit(rounded.astype(np.float64), "query") - query)) + ROUNDING
    rows, scores = np.empty(0, int), np.empty(0)
    for start in range(0, len(values), BLOCK):
        block, at = values[start : start + BLOCK], np.arange(start, min(start + BLOCK, len(values)))
        if keep is not None and not keep[at].all():
            block, at = block[keep[at]], at[keep[at]]
        count = min(len(block), 4 * k + 16)
        while count:
            matches = usearch_search(block, rounded, count, exact=True)
            bound = 1 - np.asarray(matches.distances, np.float64) + slack  # [count] upper bounds of the exact cosines
            worst = scores[-1] if len(rows) == k else -np.inf
            candidates = np.asarray(matches.keys, int)[bound >= worst]
            merged = _best(np.append(rows, at[candidates]), np.append(scores, _cosines(block[candidates], query)), k)
            if count == len(block) or (len(merged[0]) == k and merged[1][-1] > bound[-1]):
                rows, scores = merged
                break
            count = min(len(block), 4 * count)
    return rows, scores


def unit(vector: np.ndarray, name: str) -> np.ndarray:
    """A vector [D] divided by its length; ContractError if it is zero or not finite. name: for the message."""
    length = np.linalg.norm(vector)
    if not (np.isfinite(length) and length > 0):
        raise ContractError(name, "zeros only" if length == 0 else "NaN or infinity", "a vector with a direction",
                            "a tile without data, or positive and negative examples that cancel")  # fmt: skip
    return vector / length


def _cosines(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[n] cosines of rows [n, D] with a query of length one; -inf for rows of zeros."""
    values = values.astype(np.float64)
    lengths = np.sqrt((values * values).sum(axis=1))
    return np.where(lengths > 0, (values * query).sum(axis=1) / np.where(lengths > 0, lengths, 1), -np.inf)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = rows[scores > -np.inf], scores[scores > -np.inf]
    order = np.lexsort((rows, -scores.round(12)))[:k]
    return rows[order], scores[order]


def neighbors_kept(vectors: np.ndarray, small: np.ndarray, *, k: int = 10) -> np.ndarray:
    """[N] share of each vector's k nearest neighbors, by cosine, that are also its neighbors in `small` [N, d]."""
    if not 1 <= k < len(vectors):
        raise ContractError("k", k, f"1 to {len(vectors) - 1}", "fewer vectors than neighbors")
    shares = []
    for row in range(len(vectors)):
        before, after = (nearest(x, x[row], k + 1)[0] for x in (vectors, small))  # the row itself and k others
        shares.append(np.isin(before[before != row][:k], after[after != row][:k]).mean())
    return np.array(shares)


# ---- with an index ----


class Index(NamedTuple):
    """Rows of a table by the cell that their direction lies in."""

    centers: np.ndarray  # [cells, D] float32, of length one
    order: np.ndarray  # [N] uint32, rows cell by cell
    starts: np.ndarray  # [cells + 1], where each cell begins in `order`

    def nearest(
        self, values: np.ndarray, query: np.ndarray, k: int, keep: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest`, among the rows of the nearest cells: exact cosines, of which a few in a hundred may be missing.

        With keep, more cells are searched, until as many rows that may be hits have been compared.
        """
        near, count = np.argsort(-(self.centers @ query)), CELLS_SEARCHED
        enough = max(count * len(values) / len(near), 4 * k)
        while True:
            rows = np.sort(np.concatenate([self.order[self.starts[c] : self.starts[c + 1]] for c in near[:count]]))
            rows = rows if keep is None else rows[keep[rows]]
            if len(rows) >= enough or count >= len(near):
                found, scores = nearest(values[rows], query, k)
                return rows[found].astype(int), scores
            count *= 2


def build_index(values: np.ndarray, *, seed: int = 0, progress: bool = False) -> Index:
    """The index of values [N, D], by spherical k-means on a sample."""
    from scipy.sparse import csr_array
    from tqdm import tqdm

    rng, cells = np.random.default_rng(seed), round(len(values) ** 0.5)
    sample = values[np.sort(rng.choice(len(values), min(len(values), SAMPLE * cells), replace=False))]
    centers, directions = _directions(rng.permutation(sample)[:cells]), _directions(sample)
    for _ in range(ROUNDS):
        of = _cell_of(sample, centers)
        members = csr_array((np.ones(len(of), np.float32), (of, np.arange(len(of)))), (cells, len(of)))
        sums = members @ directions
        centers = np.where(sums.any(axis=1, keepdims=True), _directions(sums), centers)
    blocks = tqdm(range(0, len(values), BLOCK), "index", disable=not progress, leave=False)
    of = np.concatenate([_cell_of(values[start : start + BLOCK], centers) for start in blocks])
    starts = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=cells))])
    return Index(centers, np.argsort(of, kind="stable").astype(np.uint32), starts)


def open_index(values: np.ndarray, file: Path | None, state: str) -> Index:
    """The index in a file if that was built for the same state of the vectors; else it is built and written there."""
    if file is not None and file.is_file():
        with np.load(file) as saved:
            if str(saved["state"]) == state and len(saved["order"]) == len(values):
                return Index(*(saved[name] for name in Index._fields))
    index = build_index(values, progress=True)
    if file is not None:
        try:
            atomic_write(file, lambda partial: _save(partial, state=np.array(state), **index._asdict()))
        except OSError as error:
            warn(f"the index could not be saved, so the next search builds it again: {error}")
    return index


def _save(path: Path, **arrays: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _directions(values: np.ndarray) -> np.ndarray:
    """Rows [n, D] as float32 of length one; zeros stay."""
    values = values.astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)


def _cell_of(values: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """[n] number of the nearest center of each row."""
    step = max(1, 2**24 // len(centers))  # 64 MiB of cosines at a time
    parts = range(0, len(values), step)
    return np.concatenate([(_directions(values[n : n + step]) @ centers.T).argmax(axis=1) for n in parts])
