"""A sweep's rows as answers: means over settings, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    ranked = over_seeds(table, metric, by, seed)
    return ranked.sort_values("value", ascending=direction == "min", kind="stable", ignore_index=True)


def differences(
    table: pd.DataFrame, metric: str, by: Sequence[str], base: Mapping[str, object], seed: str | None = "seed"
) -> pd.DataFrame:
    """Each setting minus `base`, seed by seed, in the columns of `over_seeds`.

    What a seed does to both sides cancels, so this tells differences that the settings' own intervals hide.
    """
    column = f"metric {metric}"
    rows = table[table[column].notna() & (table["status"] == "done")]
    is_base = _where(rows, base)
    if not is_base.any():
        raise ContractError(
            "base", found=dict(base), expected="a setting with finished runs", cause="a value that was not swept"
        )
    pairing = [f"parameter {seed}"] if seed else []
    if pairing:
        floor = rows[is_base].groupby(pairing)[column].mean()
        level = rows[pairing[0]].map(floor)
    else:
        level = rows.loc[is_base, column].mean()
    paired = rows.assign(**{column: rows[column] - level})[~is_base]
    return over_seeds(paired, metric, by, seed)


def one_at_a_time(table: pd.DataFrame, by: Sequence[str]) -> dict | None:
    """The setting from which all others differ in a single parameter, as in an ablation; None: there is none."""
    settings = table[[f"parameter {name}" for name in by]].drop_duplicates()
    if len(by) < 2 or len(settings) < 3:
        return None
    base = settings.mode().iloc[0]
    off = (settings != base).sum(axis=1)
    return dict(zip(by, base, strict=True)) if off.max() == 1 and (off == 0).any() else None


def _where(table: pd.DataFrame, setting: Mapping[str, object]) -> pd.Series:
    found = pd.Series(True, index=table.index)
    for name, value in setting.items():
        found &= table[f"parameter {name}"] == value
    return found


def others_at(table: pd.DataFrame, base: Mapping[str, object], name: str) -> pd.DataFrame:
    """The rows in which every parameter but `name` is as in `base`."""
    return table[_where(table, {k: v for k, v in base.items() if k != name})]
