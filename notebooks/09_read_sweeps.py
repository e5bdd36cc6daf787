# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 Reading a sweep
#
# > **Which setting is better, and how much of that is luck?**
#
# You will see
# - a sweep of a dozen lines, checked before it runs, run on all cores and not repeated where it is done,
# - the ledger: one table that joins settings to scores and cost,
# - intervals over seeds, and why two overlapping intervals may still hide a sure difference.
#
# | needs | minutes | data |
# | --- | --- | --- |
# | [03 Masking](03_mask_patches.ipynb) for the question asked here | under 1 on two cores; no GPU needed (not measured there) | a made-up land, drawn from seeds; results of shipped sweeps |

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from IPython.display import display
from scipy import stats

from clay_lib import ContractError, figures
from clay_lib.course import checks
from clay_lib.runs import report
from clay_lib.runs.notebooks import RUNS, output_folder, write_metrics
from clay_lib.runs.specification import make_sweep, read_sweep
from clay_lib.runs.sweep import run_sweep
from clay_lib.runs.tables import best, differences, one_at_a_time, over_seeds

# %% tags=["parameters"]
seed: int = 0  # the first seed of the small sweep
out: str = ""  # folder for results; empty: papermill_runs/lab/09_read_sweeps
hidden: list[float] = [0.5, 0.75, 0.9]  # shares of patches to hide
patch: list[int] = [4, 8, 16]  # pixels a side
seeds: int = 5  # lands for each setting
workers: int = 0  # runs at a time; 0: as many as cores and memory allow

# %% [markdown]
# ## A question with a grid
#
# Notebook 03 hid patches and filled each one with its nearest neighbour in sight: the laziest painter there is. How
# large its error is depends on the share hidden, on the size of a patch, and on the land that happens to be drawn. One
# run answers for one combination. A **sweep** runs them all: a notebook, a grid of its parameters, and seeds.

# %%
out_dir = output_folder(out, "09_read_sweeps")
text = (RUNS / "sweeps" / "copy_neighbours.yaml").read_text()
print(text)

# %% [markdown]
# The notebook it names, `copy_neighbours.py`, is an ordinary one with a cell of parameters, and writes what it found to
# `metrics.json`. On the command line the sweep is one line, `clay sweep papermill_runs/sweeps/copy_neighbours.yaml`. Here
# the same happens by a function, with the values of this notebook put into the specification.

# %%
asked_for = yaml.safe_load(text)
asked_for["grid"] = {"hidden": hidden, "patch": patch}
asked_for["seeds"] = list(range(seed, seed + seeds))
asked = make_sweep(asked_for, name="copying", folder=RUNS / "sweeps")
print(f"{len(asked.runs)} runs; the first: {asked.runs[0].parameters}, to be kept in {asked.runs[0].key}")
assert len(asked.runs) == len(hidden) * len(patch) * seeds

# %% [markdown]
# Names and types are checked against the notebook before anything runs, since a misspelt parameter would otherwise be
# found out after hours, or never.

# %%
for wrong in ({"grid": {"concealed": [0.5]}}, {"grid": {"patch": [4, 8.5]}}, {"metrics": {"errors": "min"}}):
    try:
        make_sweep({**asked_for, **wrong}, name="copying", folder=RUNS / "sweeps")
        raise AssertionError("a wrong specification passed")
    except ContractError as error:
        print(f"- {error}\n")

# %% [markdown]
# ## Run it
#
# Every run is a notebook of its own, in a kernel of its own, over as many workers as the machine has room for.

# %%
table = run_sweep(asked, workers=workers, runs=out_dir)
assert (table["status"] == "done").all()

# %% [markdown]
# The name of a run's folder is a hash of the notebook's code and all parameters. What is done is therefore known without
# asking anybody: the same line, after a kill or a change, does only what is missing.

# %%
again = run_sweep(asked, runs=out_dir, dry_run=True)
wider = make_sweep(
    {**asked_for, "grid": {**asked_for["grid"], "side": [192, 96]}}, name="copying", folder=RUNS / "sweeps"
)
_ = run_sweep(wider, runs=out_dir, dry_run=True)
new = {run.key for run in wider.runs} - set(table["run"])
assert len(new) == len(wider.runs) - len(asked.runs), "only the new side is to be run"

# %% [markdown]
# ## The ledger
#
# One row a run: what was set, what came out, what it took, which code it was. On disk it is `papermill_runs/ledger.parquet`
# for all sweeps together, made anew from the folders whenever it is wanted.

# %%
shown = [
    "parameter hidden",
    "parameter patch",
    "parameter seed",
    "metric error",
    "metric touching",
    "seconds",
    "peak_mb",
]
table[shown].sort_values(shown[:3]).head(6).round(3)

# %% [markdown]
# ## An interval by hand
#
# A setting was run once for each seed. The mean of these runs would come out a little different with other seeds. How
# much is told by their spread $s$: the 95 % interval of the mean over $n$ seeds is $\bar x \pm t\, s / \sqrt n$, where
# Student's $t$ grows as seeds get few: 2.8 for five, 4.3 for three, 12.7 for two.

# %%
by = asked.varied
first = asked.runs[0].parameters
mine = table[(table["parameter hidden"] == first["hidden"]) & (table["parameter patch"] == first["patch"])][
    "metric error"
]
t = stats.t.ppf(0.975, len(mine) - 1)
half = t * mine.std(ddof=1) / np.sqrt(len(mine))

library = over_seeds(table, "error", by)
row = library[(library["hidden"] == first["hidden"]) & (library["patch"] == first["patch"])].iloc[0]
np.testing.assert_allclose(
    [mine.mean(), mine.mean() - half, mine.mean() + half], [row["value"], row["low"], row["high"]]
)
print(
    f"{len(mine)} seeds, t = {t:.1f}: error {mine.mean():.3f}, 95 % from {mine.mean() - half:.3f} to {mine.mean() + half:.3f}"
)

# %%
ranked = best(table, "error", "min", by)
fig = report.ranking(table, "error", "min", by)
_ = figures.save(fig, out_dir / "ranking.png")

# %% [markdown]
# ## One parameter at a time
#
# Blue is the mean over everything else, grey are the single runs. The runs of one seed share one land, so they rise and
# fall together and are no independent witnesses: they are averaged first, and the interval counts seeds, not runs.

# %%
for name in by:
    fig = report.effect(table, name, asked.metrics)
    _ = figures.save(fig, out_dir / f"effect_{name}.png")
    plt.show()

# %%
one = over_seeds(table, "error", ["patch"])
if one["seeds"].iloc[0] > 1:
    assert (one["runs"] == one["seeds"] * len(hidden)).all()
print(one.round(3).to_string(index=False))

# %% [markdown]
# ## Two together
#
# A map over two parameters shows whether they act on their own or on each other. If every row looks like the one above
# it, only darker, they act on their own.

# %%
fig = report.pair(table, *by, "error")
_ = figures.save(fig, out_dir / "pair.png")

# %% [markdown]
# ## Overlapping intervals
#
# Intervals that overlap do not say that there is no difference. Some lands are rougher than others and make every setting
# look bad; that luck is in each interval. Where both settings saw the **same** seeds it cancels: take the difference seed
# by seed, then its interval. Here the middle of the ranking is the base.

# %%
base = {name: ranked[name].iloc[len(ranked) // 2] for name in by}
apart = differences(table, "error", by, base)
fig = report.base_differences(table, "error", "min", by, base)
_ = figures.save(fig, out_dir / "paired.png")

# %%
level = ranked.iloc[len(ranked) // 2]
others = ranked.drop(index=len(ranked) // 2).merge(apart, on=by, suffixes=("", " apart"))
overlap = (others["low"] < level["high"]) & (others["high"] > level["low"])
sure = (others["low apart"] > 0) | (others["high apart"] < 0)
print(f"of {len(others)} settings, the intervals of {overlap.sum()} overlap the base's;")
print(
    f"paired by seed, {(overlap & sure).sum()} of these differ from it for sure (95 %), {(overlap & ~sure).sum()} stay open"
)
assert (others["seeds apart"] == seeds).all(), "every difference is one of the same seeds"

# %% [markdown]
# With many settings one of them will look good by luck. The honest course is to fix the comparison beforehand, or to run
# the winner again with new seeds and believe those.
#
# ## What the shipped sweeps say
#
# Two sweeps over the model itself come with the repository, as specifications in `papermill_runs/sweeps` and as tables of
# their finished runs in `papermill_runs/sweeps/results`. They took hours, so their runs are read here, not made.
#
# One of them varies the size of patches, and the small sweep above warns how to read it: a smaller hole is easier to
# fill by copying alone. So compare errors of rebuilding within one size, and kNN, which asks the same of all, between sizes.

# %%
results = {path.stem: pd.read_csv(path) for path in sorted((RUNS / "sweeps" / "results").glob("*.csv"))}
asked_of = {name: read_sweep(RUNS / "sweeps" / f"{name}.yaml") for name in results}
for name, rows in results.items():
    of = asked_of[name]
    print(
        f"{name}: {len(rows)} of {len(of.runs)} runs of {of.script.stem}, {rows['seconds'].sum() / 3600:.1f} hours of one worker,"
    )
    print(f"  up to {rows['peak_mb'].max():.0f} MB; varied: {', '.join(of.varied)}; judged by {of.metrics}")
if not results:
    print("none in this copy of the repository")

# %%
for name, rows in results.items():
    of = asked_of[name]
    for metric, direction in of.metrics.items():
        print(f"{name}, by {metric} ({report.BETTER[direction]})")
        display(best(rows, metric, direction, of.varied, of.seed).head(9).round(3))

# %%
for name, rows in results.items():
    of = asked_of[name]
    metric, direction = next(iter(of.metrics.items()))
    base = one_at_a_time(rows, of.varied)
    if base:
        fig = report.base_differences(rows, metric, direction, of.varied, base, of.seed)
    else:
        fig = report.ranking(rows, metric, direction, of.varied, of.seed)
    _ = figures.save(fig, out_dir / f"{name}.png")
    plt.show()

# %%
for name, rows in results.items():
    of = asked_of[name]
    if one_at_a_time(rows, of.varied):
        continue
    for parameter in of.varied:
        report.effect(rows, parameter, of.metrics, of.seed)
    if len(of.varied) == 2:
        report.pair(rows, *of.varied, next(iter(of.metrics)), of.seed)
    plt.show()

# %% [markdown]
# ## Exercises, solved
#
# Three things to write yourself. [The exercises](exercises/09_read_sweeps.ipynb) have a notebook of their own, with
# empty places, hints and checks; it runs no sweep.

# %% [markdown] tags=["exercise"]
# ### Exercise 1: where runs failed
# *Easy, 10 minutes*
#
# In a long sweep some runs fail, and settings are left with different numbers of seeds. A mean of three seeds has to look
# less sure than a mean of seven.
#
# Each row of `errors` is a setting, each column a seed, NaN a run that failed; every setting has at least two finished
# runs. Give the mean of each setting's finished runs and both ends of its 95 % interval by Student's t.
#
# **Hint.** `np.isfinite(errors).sum(axis=1)` is each setting's own n. `np.nanmean` and `np.nanstd(..., ddof=1)` leave NaN
# out.
#
# **Hint.** `stats.t.ppf(0.975, n - 1)` takes an array of n. Mean, low and high side by side: `np.stack([...], axis=1)`.


# %% tags=["solution"]
def seed_intervals(errors):
    """errors [S, n], NaN where a run failed -> mean, low and high of each setting, [S, 3]."""
    n = np.isfinite(errors).sum(axis=1)
    mean = np.nanmean(errors, axis=1)
    half = stats.t.ppf(0.975, n - 1) * np.nanstd(errors, axis=1, ddof=1) / np.sqrt(n)
    return np.stack([mean, mean - half, mean + half], axis=1)


# %% tags=["check"]
checks.check_seed_intervals(seed_intervals)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: settings that nobody beats
# *Medium, 10 minutes*
#
# The best score may take ten times as long as the second best. With two metrics there is rarely one winner, but many
# settings are out of the question: another one is better in both.
#
# `score` is the better the higher, `cost` the better the lower; each row is a setting, each column a seed. A setting is
# *beaten* if another has both a higher mean score and a lower mean cost over its seeds. Tell for each setting whether
# nobody beats it, True or False. There are no ties. (What is left is called the Pareto front.)
#
# **Hint.** Means over the seeds first: the luckiest single run says more of luck than of the setting.
#
# **Hint.** `s[None, :] > s[:, None]` is a table `[S, S]`: is the setting of this column better than that of this row? A row
# is beaten if any of its columns is better in score and in cost.


# %% tags=["solution"]
def unbeaten(score, cost):
    """score, cost [S, n] -> bool [S], True where no other setting has a higher mean score and a lower mean cost."""
    s, c = score.mean(axis=1), cost.mean(axis=1)
    better = (s[None, :] > s[:, None]) & (c[None, :] < c[:, None])  # [row, column]: the column beats the row
    return ~better.any(axis=1)


# %% tags=["check"]
checks.check_unbeaten(unbeaten)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: a difference, seed by seed
# *Hard, 15 minutes*
#
# Some lands are rougher than others, and every setting suffers there. Where two settings saw the same land, that luck
# cancels in their difference.
#
# `table` has a row for each run, with `setting`, `seed` and `error`, in no order. Runs that failed have no row, so a
# setting may lack a seed that the other has: such a seed tells nothing of the difference and is left out of all of it.
# Give the mean difference, `one` minus `other`, and both ends of its 95 % interval by Student's t over the seeds.
#
# **Hint.** `table[table["setting"] == one].set_index("seed")["error"]` holds the errors of one setting, named by seed.
#
# **Hint.** pandas subtracts by name, whatever the order, and leaves NaN where one of the two is missing: `.dropna()`. From
# there on it is the interval of a mean, with as many seeds as are left.

# %% tags=["given"]
few_runs = pd.DataFrame(
    {
        "setting": ["small", "large", "large", "small", "large", "small", "small"],
        "seed": [4, 2, 1, 1, 4, 3, 2],
        "error": [1.31, 0.62, 0.95, 1.01, 1.24, 0.88, 0.70],
    }
)  # to try your lines on: the third land has no run of "large"


# %% tags=["solution"]
def paired(table, one, other):
    """A table with columns setting, seed and error, two names of settings -> (difference, low, high)."""
    a, b = (table[table["setting"] == name].set_index("seed")["error"] for name in (one, other))
    apart = (a - b).dropna()
    half = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart))
    return apart.mean(), apart.mean() - half, apart.mean() + half


# %% tags=["check"]
checks.check_paired(paired)

# %% tags=["given"]
difference, low, high = paired(few_runs, "large", "small")
print(f"three seeds: {difference:.3f}, 95 % from {low:.3f} to {high:.3f}; the lands differ by 0.6")

# %% [markdown]
# ## What was seen

# %%
winner, loser = ranked.iloc[0], ranked.iloc[-1]
metrics = {
    "runs of the small sweep": len(table),
    "smallest error of copying, standard deviations": round(float(winner["value"]), 3),
    "largest error of copying, standard deviations": round(float(loser["value"]), 3),
    "settings whose interval overlaps the base's": int(overlap.sum()),
    "of these, sure when paired by seed": int((overlap & sure).sum()),
    "shipped sweeps read": len(results),
}
write_metrics(out_dir, metrics)
said = {name: report.describe({k: row[k] for k in by}) for name, row in (("best", winner), ("worst", loser))}
print(f"""- {len(table)} runs over {len(ranked)} settings and {seeds} seeds; the second start had nothing left to do.
- Copying errs least with {said["best"]}: {winner["value"]:.3f} standard deviations ({winner["low"]:.3f} to {winner["high"]:.3f});
  most with {said["worst"]}: {loser["value"]:.3f} ({loser["low"]:.3f} to {loser["high"]:.3f}).
- Of {overlap.sum()} settings whose interval overlaps the middle one's, {(overlap & sure).sum()} differ from it for sure once paired by seed.""")

# %% [markdown]
# `clay sweep FILE.yaml --report` writes the same pictures as one page, with links to every run's notebook. The format of a
# specification, other schedulers and SLURM are told in `papermill_runs/README.md`.
#
# Next: [10 Switching metadata off](10_switch_metadata.ipynb), whose question was also asked as a sweep.
