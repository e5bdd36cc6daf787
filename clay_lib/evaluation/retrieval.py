"""Cross-sensor retrieval: the same place and date found in another sensor, among many places, by its embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd

from clay_lib.clay import Clay, embed_chips
from clay_lib.data.chips import Chips, world_chips
from clay_lib.errors import ContractError
from clay_lib.evaluation.intervals import bootstrap_weights, interval

RETRIEVED = ("sentinel-2-l2a", "landsat-c2l2-sr", "naip", "modis", "sentinel-1-rtc")
KS = (1, 10)


def retrieval_table(
    clay: Clay, *, sensors: Sequence[str] = RETRIEVED, places: int = 1000, size: int = 64, split: str = "test"
) -> pd.DataFrame:
    """`recalls` of class token and patch mean (column kind) at places of the mini-world, one date each."""
    chips = {name: without_place(world_chips(name, places, split=split, size=size)) for name in sensors}
    vectors = {name: embed_chips(clay, part) for name, part in chips.items()}
    kinds = ("class token", "patch mean")
    tables = [recalls({name: v[kind] for name, v in vectors.items()}).assign(kind=kind) for kind in kinds]
    return pd.concat(tables, ignore_index=True)


def without_place(chips: Chips) -> Chips:
    """The chips with place and date unknown: a model that knows these needs no image to find the chip again."""
    unknown = np.full(len(chips), np.nan)
    return replace(chips, lat=unknown, lon=unknown, when=np.full(len(chips), ""))


def recalls(vectors: Mapping[str, np.ndarray], *, ks: Sequence[int] = KS, bootstraps: int = 1000) -> pd.DataFrame:
    """How often the k most similar vectors of another sensor include the one of the same place.

    vectors: {sensor: [N, D]}, row n of each at place n. Similarity is the cosine after the mean of each sensor's
    vectors is subtracted, since a sensor has an offset of its own. By chance the recall is k / N.
    Columns: query, gallery (sensors), k, recall, low, high (over places), places.
    """
    shapes = {name: np.shape(v) for name, v in vectors.items()}
    count = next(iter(shapes.values()))[0] if shapes else 0
    if len(shapes) < 2 or len(set(shapes.values())) > 1 or count < max(ks):
        expected = f"two sensors or more, of equal [N, D], N at least {max(ks)}"
        raise ContractError("vectors", shapes, expected, "other places, or another model, for one of the sensors")
    unit = {}
    for name, v in vectors.items():
        v = v - v.mean(0)
        unit[name] = v / np.linalg.norm(v, axis=1, keepdims=True).clip(1e-9)
    weights, rows = bootstrap_weights(count, bootstraps) / count, []
    for query, gallery in permutations(unit, 2):
        similarity = unit[query] @ unit[gallery].T  # [N, N]
        better = (similarity > similarity.diagonal()[:, None]).sum(1)  # [N] places before the right one
        found = {k: interval(weights @ (better < k)) for k in ks}
        rows += [(query, gallery, k, *values, count) for k, values in found.items()]
    return pd.DataFrame(rows, columns=["query", "gallery", "k", "recall", "low", "high", "places"])
