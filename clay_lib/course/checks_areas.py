"""Checks of the exercises of 08: the tile of a place, more like these and unlike those, tiles without seams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clay_lib.course.checking import attempt, compare, right


def check_tile_of(fn: Callable) -> None:
    """fn(x [N], y [N], gsd, size, anchor (x, y)) -> [N, 2] whole numbers: each point's column and row, from the origin."""
    x = np.array(
        [612_345.0, 645.0, -1_234.0, -20.0, 630.0]
    )  # two of them between a multiple of the side and the anchor
    y = np.array([47.0, -5_200_300.0, -8.0, 2_600.0, 630.0])
    gsd, size, anchor = 10.0, 64, (15.0, -25.0)
    side = gsd * size

    def numbers(columns=None, rows=None, cut=np.floor, side=side, anchor=anchor):
        columns = (x - anchor[0]) / side if columns is None else columns
        rows = (y - anchor[1]) / side if rows is None else rows
        return cut(np.stack([columns, rows], axis=1))

    wanted = numbers()
    compare(
        attempt(fn, x, y, gsd, size, anchor),
        wanted,
        axes="N column|row",
        slips={
            "Beyond the origin the tiles are one off: int() and astype(int) cut towards zero, np.floor goes down. Else "
            "the two tiles beside the origin would both be number 0.": numbers(cut=np.trunc),
            "The numbers are rounded: a point belongs to the tile that it lies in, so go down, np.floor.": numbers(
                cut=np.round
            ),
            "The anchor is left out: the tiles' corners lie at the anchor, not at 0.": numbers(anchor=(0, 0)),
            "The anchor is added: take it off, so that a point at the anchor lies at 0.": numbers(
                anchor=(-anchor[0], -anchor[1])
            ),
            "One anchor serves both: x has the first, y the second.": numbers(anchor=(anchor[0], anchor[0])),
            "These are columns and rows of pixels: a tile is `size` of them.": numbers(side=gsd),
            "A tile is taken as `size` metres: it is `size` pixels of `gsd` metres each.": numbers(side=size),
            "Rows come first; the column, from x, is wanted first.": wanted[:, [1, 0]],
            "Rows are counted southwards: their numbers have the other sign. Here they count northwards, as y does.": (
                wanted * [1, -1]
            ),
            "These are the metres of the tiles' corners: their numbers are wanted.": wanted * side + anchor,
            "Rows are counted southwards. Here they count northwards, as y does.": np.floor(
                np.stack([(x - anchor[0]) / side, (anchor[1] - y) / side], axis=1)
            ),
            "You count from the westernmost and southernmost of the points asked for. Then a place has another number for "
            "every area: count from the anchor.": numbers((x - x.min()) / side, (y - y.min()) / side),
            "You count from the first tile of the points asked for. Then a place has another number for every area: count "
            "from the anchor.": wanted - wanted.min(0),
            "The tiles are not yet whole numbers: go down with np.floor.": numbers(cut=np.array),
        },
        rtol=0,
        what="the numbers of the tiles",
    )
    right("The same tile for the same place, whatever else is asked for.")


def check_search(fn: Callable) -> None:
    """fn(vectors [N, D], right [a], wrong [b], k) -> [k] rows most like the right and unlike the wrong, best first."""
    rng = np.random.default_rng(218)
    vectors = (rng.normal(size=(16, 5)) + [2.0, 0.5, 0, 0, 0]) * np.exp(rng.normal(size=(16, 1)))
    liked, disliked, k = np.array([11, 2, 7]), np.array([5, 14]), 4
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    columns, centred = vectors / np.linalg.norm(vectors, axis=0), vectors - vectors.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    others = np.setdiff1d(np.arange(16), [*liked, *disliked])

    def ranked(query, rows=unit, out=(*liked, *disliked), best=-1):
        order = np.argsort(best * (rows @ query), kind="stable")
        return order[~np.isin(order, out)][:k]

    def query(v=unit, share=0.5, mean=np.mean):
        return mean(v[liked], axis=0) - share * mean(v[disliked], axis=0)

    compare(
        attempt(fn, vectors, liked, disliked, k),
        ranked(query()),
        axes="k",
        slips={
            "The examples are among the hits: take them out, the right and the wrong ones.": ranked(query(), out=()),
            "Examples are among the hits: the wrong ones have to be taken out too.": ranked(query(), out=liked),
            "Examples are among the hits: the right ones have to be taken out too.": ranked(query(), out=disliked),
            "The wrong examples play no part: take half of their mean from the mean of the right ones.": ranked(
                query(share=0)
            ),
            "The wrong examples are taken away whole; only half of their mean is.": ranked(query(share=1)),
            "The wrong examples are added: take half of their mean away.": ranked(query(share=-0.5)),
            "The examples are added up; it is the mean of the right and the mean of the wrong ones that count.": ranked(
                query(mean=np.sum)
            ),
            "Long vectors win: bring every vector to length one first.": ranked(query(vectors), vectors),
            "Long examples count more than short ones: bring each to length one before the mean.": ranked(
                query(vectors)
            ),
            "Long candidates win: rank by the cosine, so bring them to length one too.": ranked(query(), vectors),
            "The vectors are brought to length one along the wrong axis: each vector, a row, gets length one.": ranked(
                query(columns), columns
            ),
            "The mean of all vectors is taken away first, as for the map of patches. The search does without.": ranked(
                query(unit - unit.mean(0)), unit - unit.mean(0)
            ),
            "The mean of all vectors is taken away first, as for the map of patches; the search does without.": ranked(
                query(centred), centred
            ),
            "These count the vectors that were left after the examples were taken out: give the rows of `vectors`.": (
                np.searchsorted(others, ranked(query()))
            ),
            "These are the least alike: sort from the largest cosine down.": ranked(query(), best=1),
            "The right hits, but the least alike of them first.": ranked(query())[::-1].copy(),
            "These are cosines or the like: the numbers of the rows are wanted, from argsort.": (unit @ query())[
                ranked(query())
            ],
        },
        what="the hits",
    )
    right("Each example, for or against, moves the question a little.")


def check_blend(fn: Callable) -> None:
    """fn(tiles [T, h, w], corners [T, 2], shape (H, W)) -> [H, W], weighted means; NaN counts in no mean."""
    rng = np.random.default_rng(6)
    T, h, w, shape = 5, 4, 6, (8, 10)
    corners = np.array([[0, 0], [0, 4], [2, 1], [3, 4], [4, 3]])
    tiles = rng.normal(size=(T, h, w)) + 3 * np.arange(1, T + 1)[:, None, None]
    tiles[1, 2, 1], tiles[3, 1, 4] = np.nan, np.nan  # the first is known to other tiles, the second to none
    tiles[2, 3, 3:5] = np.nan

    def tent(n, first=0.5):
        return np.minimum(np.arange(n), np.arange(n)[::-1]) + first

    def blended(weight, *, divide=True, zeros=False, poison=False, gaps=np.nan, corners=corners):
        total, weights = np.zeros(shape), np.zeros(shape)
        for tile, (row, column) in zip(tiles, corners, strict=True):
            known = np.isfinite(tile)
            here = np.s_[row : row + h, column : column + w]
            total[here] += tile * weight if poison else np.where(known, tile * weight, 0)
            weights[here] += weight if zeros or poison else weight * known
        if not divide:
            return total
        return np.where(weights > 0, total / np.where(weights > 0, weights, 1), gaps)

    def laid(order, known_only=False):
        image = np.full(shape, np.nan)
        for t in order:
            row, column = corners[t]
            part = image[row : row + h, column : column + w]
            part[:] = np.where(np.isnan(tiles[t]), part, tiles[t]) if known_only else tiles[t]
        return image

    weight = np.outer(tent(h), tent(w))
    wanted = blended(weight)
    compare(
        attempt(fn, tiles, corners, shape),
        wanted,
        axes="H W",
        slips={
            "All tiles count alike, so a step is left where one ends: weigh each cell by its distances from the edges.": (
                blended(np.ones((h, w)))
            ),
            "The last tile lies over the others: where tiles overlap, take their weighted mean.": laid(range(T)),
            "The first tile that knows a cell fills it: where tiles overlap, take their weighted mean.": laid(
                reversed(range(T)), known_only=True
            ),
            "A corner is row, then column; here the two are swapped.": blended(weight, corners=corners[:, ::-1]),
            "The weights grow towards the edges: the nearer an edge, the smaller.": blended(
                np.outer(*(tent(n).max() + tent(n).min() - tent(n) for n in (h, w)))
            ),
            "Distances are counted from one end only: the nearer of the two ends counts.": blended(
                np.outer(np.arange(h) + 0.5, np.arange(w) + 0.5)
            ),
            "These are weighted sums: divide by the sum of the weights that went into each cell.": blended(
                weight, divide=False
            ),
            "A cell that is NaN in one tile becomes NaN, though another tile knows it: leave it out of that mean.": (
                blended(weight, poison=True)
            ),
            "Where a tile is NaN it counts as 0: its weight has to be left out too.": blended(weight, zeros=True),
            "Where no tile knows anything there are zeros: NaN is wanted.": blended(weight, gaps=0.0),
            "Distances are counted from 0: the outermost cells get no weight, and the image loses its border. A cell's "
            "middle is half a cell from its edge.": blended(np.outer(tent(h, 0), tent(w, 0))),
            "Distances are counted from 1: a cell's middle is half a cell from its edge, 0.5, 1.5, ...": blended(
                np.outer(tent(h, 1), tent(w, 1))
            ),
            "The weights along rows and columns are added: multiply them.": blended(tent(h)[:, None] + tent(w)),
            "The weight is the distance from the nearest of four edges: multiply the one along the rows by the one along "
            "the columns.": blended(np.minimum(tent(h)[:, None], tent(w))),
            "The weights fall along the columns only: rows have edges too.": blended(
                np.broadcast_to(tent(w), (h, w)).copy()
            ),
            "The weights fall along the rows only: columns have edges too.": blended(
                np.broadcast_to(tent(h)[:, None], (h, w)).copy()
            ),
        },
        what="the cells",
    )
    right("Each tile fades out before it ends, so no edge of a tile shows.")
