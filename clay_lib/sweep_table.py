"""A sweep's rows as answers: means over settings, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from clay_lib.contract import ContractError

LEVEL = 0.95
ENDED = ("done", "failed", "died")


def values_of(table: pd.DataFrame, metric: str) -> pd.Series:
    """The metric of each run that is done and has a finite one; NaN for all others, as where a training diverged."""
    column = f"metric {metric}"
    if not pd.api.types.is_numeric_dtype(table[column]) if column in table else f"text {metric}" in table:
        raise ContractError(
            f"metric {metric!r}", found="text", expected="numbers", cause="a text cannot be ranked: name another metric"
        )
    _expect(table, [column])
    return table[column].where((table["status"] == "done") & np.isfinite(table[column].astype(float)))


def fair(table: pd.DataFrame, metric: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows that compare the levels of `by` fairly: of the settings and seeds that every level has.

    Where runs failed or are still to come, a mean over all rows tells more of what is missing than of the level. A level
    without any value is left out of account. No rows: the levels have nothing in common.
    """
    rows = table[values_of(table, metric).notna()]
    axes = [f"parameter {name}" for name in by]
    rest = [c for c in rows if c.startswith("parameter ") and c not in axes and rows[c].nunique(dropna=False) > 1]
    if not rest:
        return rows
    level = rows.groupby(axes, dropna=False).ngroup()
    return rows[level.groupby([rows[c] for c in rest], dropna=False).transform("nunique") == level.nunique()]


def lacking(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """A sentence for each metric that some finished runs have no number of."""
    done = table[table["status"] == "done"]
    column = {m: done.get(f"metric {m}", pd.Series(np.nan, index=done.index)) for m in metrics}
    lost = {m: int((~np.isfinite(pd.to_numeric(c, errors="coerce"))).sum()) for m, c in column.items()}
    return [
        f"{n} of {len(done)} finished runs have no number as {m}: NaN, text or nothing." for m, n in lost.items() if n
    ]


def over_seeds(table: pd.DataFrame, metric: str, by: Sequence[str], seed: str | None = "seed") -> pd.DataFrame:
    """Mean of a metric for each value (or combination) of the parameters `by`.

    Columns by, value, low, high, seeds, runs, lost: how many runs ended without a finite value, by failing or with NaN.
    The others' mean may flatter then; where runs are missing, compare levels of one parameter over `fair` rows.

    Runs are first averaged within a seed, since runs of one seed are no independent witnesses of its luck; low and high
    are the 95 % t-interval of the seeds' means (Student: mean +- t(0.975, n - 1) s / sqrt(n)), NaN for a single seed.
    table: rows of the ledger.
    """
    from scipy import stats  # here, since a sweep starts a second sooner without

    axes = [f"parameter {name}" for name in by]
    _expect(table, axes)
    rows = table.assign(value=values_of(table, metric))[table["status"].isin(ENDED)]
    witness = rows[f"parameter {seed}"] if seed else pd.Series(0, index=rows.index)
    inner = rows.assign(witness=witness).groupby([*axes, "witness"], dropna=False, sort=True)["value"]
    inner = inner.agg(["mean", "count", "size"])
    outer = inner.reset_index().groupby(axes, dropna=False, sort=True) if axes else [((), inner)]
    found = []
    for values, part in outer:
        means = part["mean"].dropna().to_numpy(float)
        n, mean = len(means), means.mean() if len(means) else np.nan
        half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * means.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        point = dict(zip(by, values if isinstance(values, tuple) else (values,), strict=True))
        found.append(
            {
                **point,
                "value": mean,
                "low": mean - half,
                "high": mean + half,
                "seeds": n,
                "runs": int(part["count"].sum()),
                "lost": int((part["size"] - part["count"]).sum()),
            }
        )
    return pd.DataFrame(found, columns=[*by, "value", "low", "high", "seeds", "runs", "lost"])


def best(
    table: pd.DataFrame, metric: str, direction: str, by: Sequence[str], seed: str | None = "seed"
) -> pd.DataFrame:
    """The same for each setting, the best first ("min": smallest); those that lost a run below all others."""
    ranked = over_seeds(table, metric, by, seed).sort_values("value", ascending=direction == "min", kind="stable")
    return ranked.sort_values("lost", key=lambda lost: lost > 0, kind="stable", ignore_index=True)


def differences(
    table: pd.DataFrame, metric: str, by: Sequence[str], base: Mapping[str, object], seed: str | None = "seed"
) -> pd.DataFrame:
    """Each setting minus `base`, seed by seed, in the columns of `over_seeds`.

    What a seed does to both sides cancels, so this tells differences that the settings' own intervals hide.
    """
    column, rows = f"metric {metric}", table.assign(**{f"metric {metric}": values_of(table, metric)})
    is_base = _where(rows, base)
    if not rows.loc[is_base, column].notna().any():
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
    return over_seeds(paired, metric, by, seed).dropna(subset="value", ignore_index=True)


def one_at_a_time(table: pd.DataFrame, by: Sequence[str]) -> dict | None:
    """The setting from which all others differ in a single parameter, as in an ablation; None: there is none."""
    settings = table[[f"parameter {name}" for name in by]].drop_duplicates()
    if len(by) < 2 or len(settings) < 3:
        return None
    base = settings.mode().iloc[0]
    off = (settings != base).sum(axis=1)
    return dict(zip(by, base, strict=True)) if off.max() == 1 and (off == 0).any() else None


def _expect(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for kind, name in (column.split(" ", 1) for column in columns):
        if f"{kind} {name}" not in table:
            told = [c.split(" ", 1)[1] for c in table if c.startswith(f"{kind} ")]
            raise ContractError(kind, found=name, expected=f"one of {told}", cause="a misspelt name")


def _where(table: pd.DataFrame, setting: Mapping[str, object]) -> pd.Series:
    found = pd.Series(True, index=table.index)
    for name, value in setting.items():
        found &= table[f"parameter {name}"] == value
    return found


def others_at(table: pd.DataFrame, base: Mapping[str, object], name: str) -> pd.DataFrame:
    """The rows in which every parameter but `name` is as in `base`."""
    return table[_where(table, {k: v for k, v in base.items() if k != name})]
