"""A sweep's rows as answers: means over settings, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from clay_lib.contract import ContractError

LEVEL = 0.95


def over_seeds(table: pd.DataFrame, metric: str, by: Sequence[str], seed: str | None = "seed") -> pd.DataFrame:
    """Mean of a metric for each value (or combination) of the parameters `by`: columns by, value, low, high, seeds, runs.

    Runs are first averaged within a seed, since runs of one seed are no independent witnesses of its luck; low and high
    are the 95 % t-interval of the seeds' means (Student: mean +- t(0.975, n - 1) s / sqrt(n)), NaN for a single seed.
    table: rows of the ledger; only finished ones that have the metric count.
    """
    column, axes = f"metric {metric}", [f"parameter {name}" for name in by]
    for name in (column, *axes):
        if name not in table:
            told = [c.split(" ", 1)[1] for c in table if c.startswith(name.split(" ")[0] + " ")]
            raise ContractError(
                name.split(" ")[0], found=name.split(" ", 1)[1], expected=f"one of {told}", cause="a misspelt name"
            )
    rows = table[table[column].notna() & (table["status"] == "done")]
    witness = rows[f"parameter {seed}"] if seed else pd.Series(0, index=rows.index)
    inner = (
        rows.assign(witness=witness).groupby([*axes, "witness"], dropna=False, sort=True)[column].agg(["mean", "size"])
    )
    outer = inner.reset_index().groupby(axes, dropna=False, sort=True) if axes else [((), inner)]
    found = []
    for values, part in outer:
        means, n = part["mean"].to_numpy(float), len(part)
        half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * means.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        point = dict(zip(by, values if isinstance(values, tuple) else (values,), strict=True))
        found.append(
            {
                **point,
                "value": means.mean(),
                "low": means.mean() - half,
                "high": means.mean() + half,
                "seeds": n,
                "runs": int(part["size"].sum()),
            }
        )
    return pd.DataFrame(found, columns=[*by, "value", "low", "high", "seeds", "runs"])


def best(
    table: pd.DataFrame, metric: str, direction: str, by: Sequence[str], seed: str | None = "seed"
) -> pd.DataFrame:
    """The same for each setting, the best first ("min": smallest)."""
    return over_seeds(table, metric, by, seed).sort_values(
        "value", ascending=direction == "min", kind="stable", ignore_index=True
    )
