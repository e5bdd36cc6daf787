"""Searches: Optuna chooses the runs of a sweep from the results of earlier ones, prunes them, and confirms the best.

The study is Optuna's journal in the sweep's folder: a killed driver resumes it, and drivers on several machines that
share the folder work on one study. A trial is a run like any other, in its folder and in the ledger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clay_lib.files import locked, make_folder
from clay_lib.runs.notebooks import PRUNE, read_reported
from clay_lib.runs.specification import Run, Sweep, check_owner, key_of
from clay_lib.runs.tables import ENDED, read_run

if TYPE_CHECKING:
    import optuna
    import pandas as pd

JOURNAL = "study.journal"
EXHAUSTED = "exhausted"  # attribute of a study whose ranges hold no more settings
MAX_REPEATS = 100  # draws in a row that were all drawn before, after which a study is exhausted


class Study:
    """The trials of a sweep's search. home: the sweep's folder; write: False for a dry run without a journal."""

    def __init__(self, spec: Sweep, home: Path, *, retry_failed: bool = False, write: bool = True):
        optuna = _optuna()
        self.spec, self.home = spec, home
        self.metric, direction = next(iter(spec.metrics.items()))
        self.sign = 1 if direction == "min" else -1
        self.spaces = {name: _distribution(values) for name, values in spec.search.over.items()}
        origin = spec.make_run({}).parameters  # a changed notebook, range or fixed value begins another study
        fixed = {name: value for name, value in origin.items() if name not in spec.search.over}
        ranges = {name: optuna.distributions.distribution_to_json(space) for name, space in self.spaces.items()}
        name = key_of([spec.code, json.dumps(ranges, sort_keys=True), self.metric], fixed)
        after = spec.search.prune_after
        pruners = {
            "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=after + 1),
            "median": lambda: optuna.pruners.MedianPruner(n_warmup_steps=after),
        }
        self.study = optuna.create_study(
            study_name=name,
            storage=_storage(home / JOURNAL, write),
            direction=f"{direction}imize",
            pruner=pruners.get(spec.search.prune, optuna.pruners.NopPruner)(),
            load_if_exists=True,
        )
        self.keep = {"done", "pruned"} if retry_failed else {"done", "pruned", "failed"}
        self.running: dict[str, int] = {}  # run: number of its trial

    def trials(self) -> dict[str, optuna.trial.FrozenTrial]:
        """The trials by the keys of their runs, in the order in which they were drawn, repeated draws left out."""
        drawn: dict[str, optuna.trial.FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "run" in trial.user_attrs:
                drawn.setdefault(trial.user_attrs["run"], trial)
        return drawn

    def runs(self) -> tuple[Run, ...]:
        """All runs so far: those of the trials, and once these have ended, those that confirm the best."""
        trials = [self._run(trial) for trial in self.trials().values()]
        return (*trials, *self._confirming())

    @property
    def planned(self) -> int:
        """How many runs the search comes to."""
        confirm, trials = self.spec.confirm, self.spec.search.trials
        trials = len(self.trials()) if EXHAUSTED in self.study.user_attrs else trials
        return trials + (min(confirm.top, trials) * len(confirm.seeds) if confirm else 0)

    def draw(self) -> Iterator[Run | None]:
        """Each run when a worker is free for it: first what an earlier start left, then new trials, then repetitions
        of the best. None: nothing can begin before one of those under way has ended."""
        for key, trial in self.trials().items():
            row = read_run(self.home / key)
            if row is None or row["status"] not in self.keep:
                self.running[key] = trial.number
                yield self._run(trial)
            else:
                self._tell(trial.number, row)
        repeats = 0
        drawing = EXHAUSTED not in self.study.user_attrs
        while drawing and len(known := self.trials()) < self.spec.search.trials and repeats < MAX_REPEATS:
            trial = self._ask()
            run = self._run(trial)
            if run.key in known:
                self._tell(trial.number, read_run(self.home / run.key) or {})
                repeats += 1
                continue
            trial.set_user_attr("run", run.key)
            self.running[run.key], repeats = trial.number, 0
            yield run
        if repeats == MAX_REPEATS:
            self.study.set_user_attr(EXHAUSTED, True)
        while self.running:
            yield None
        for run in self._confirming():
            row = read_run(self.home / run.key)
            if row is None or row["status"] not in self.keep:
                yield run

    def ended(self, run: Run, row: Mapping | None) -> None:
        """Tell Optuna how a run ended; None: it was not started, and the next start does it."""
        number = self.running.pop(run.key, None)
        if number is not None and row is not None and row["status"] in (*ENDED, "pruned"):
            self._follow(run.key, number)
            self._tell(number, row)

    def follow(self) -> None:
        """Pass on what the runs under way have reported, and stop those that Optuna prunes."""
        for key, number in self.running.items():
            if self._follow(key, number):
                (self.home / key / PRUNE).touch()

    def _follow(self, key: str, number: int) -> bool:
        """Whether a run is to be stopped."""
        import optuna

        frozen = self.study.get_trials(deepcopy=False)[number]
        trial, last = optuna.trial.Trial(self.study, frozen._trial_id), frozen.last_step
        values = read_reported(self.home / key)
        new = {step: v for step, v in values.items() if (last is None or step > last) and math.isfinite(v)}
        if frozen.state.is_finished() or not new:
            return False
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another driver has ended it at the same moment
            for step, value in new.items():
                trial.report(value, step)
            return trial.should_prune()
        return False

    def _ask(self) -> optuna.trial.Trial:
        """A new trial. The sampler's seed follows from the number of trials, so that a resumed search does not begin
        with the draws of its first start."""
        import optuna

        search, count = self.spec.search, len(self.study.get_trials(deepcopy=False))
        seed = int(key_of([], {"seed": search.seed, "trial": count}), 16) % 2**32
        if search.sampler == "tpe":
            first = min(10, max(2, search.trials // 4))  # drawn at random; Optuna draws 10 of any number
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=first)
        else:
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        return self.study.ask(self.spaces)

    def _run(self, trial: optuna.trial.BaseTrial) -> Run:
        choices = {name: isinstance(values, list) for name, values in self.spec.search.over.items()}
        settings = {name: json.loads(v) if choices[name] else v for name, v in trial.params.items()}
        return self.spec.make_run({name: settings[name] for name in choices})

    def _tell(self, number: int, row: Mapping) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        value = row.get("metrics", {}).get(self.metric) if row.get("status") == "done" else None
        known = isinstance(value, float) and math.isfinite(value)
        state = None if known else TrialState.PRUNED if row.get("status") == "pruned" else TrialState.FAIL
        with suppress(UpdateFinishedTrialError):  # another driver has ended it at the same moment
            self.study.tell(number, value if known else None, state=state, skip_if_finished=True)

    def _confirming(self) -> Iterator[Run]:
        """The best trials with new seeds, once all trials have ended."""
        trials, confirm = self.trials(), self.spec.confirm
        if confirm is None or (len(trials) < self.spec.search.trials and EXHAUSTED not in self.study.user_attrs):
            return
        if any(not trial.state.is_finished() for trial in trials.values()):
            return
        best = sorted((t for t in trials.values() if t.value is not None), key=lambda t: self.sign * t.value)
        for seed in confirm.seeds:
            for trial in best[: confirm.top]:
                yield self.spec.make_run(self._run(trial).settings | {self.spec.seed: seed})


def known_runs(spec: Sweep, home: Path) -> Sweep:
    """The sweep with the runs that its search has drawn so far; any other sweep unchanged."""
    check_owner(spec, home)
    return replace(spec, runs=Study(spec, home, write=False).runs()) if spec.search else spec


def _distribution(values: list | Mapping) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Mapping):
        return CategoricalDistribution([json.dumps(value) for value in values])  # also lists
    low, high, log, step = (values.get(key) for key in ("low", "high", "log", "step"))
    if isinstance(low, int):
        return IntDistribution(low, high, log=bool(log), step=step or 1)
    return FloatDistribution(low, high, log=bool(log), step=step)


def _storage(path: Path, write: bool):
    from filelock import FileLock
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not (write or path.is_file()):
        return InMemoryStorage()
    make_folder(path.parent)
    lock = f"{path}.lock"
    with locked(lock, "search", wait=True):
        if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])  # cut short by a full disk or a lost machine
    # Unlike Optuna's own lock, the system releases this one if a driver is killed.
    return JournalStorage(JournalFileBackend(str(path), lock_obj=FileLock(lock)))


def _optuna():
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def importance(table: pd.DataFrame, metric: str, names: list[str]) -> dict[str, float]:
    """Share of the metric's variance that each parameter explains (fANOVA over a random forest), largest first.

    table: finished rows of the ledger with a finite metric. Empty: too few runs, or no difference between them.
    """
    import pandas as pd
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    columns, spaces = {}, {}
    for name in names:
        column = table[f"parameter {name}"]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            columns[name] = column.astype(float)
            low, high = columns[name].min(), columns[name].max()
            if low < high:
                spaces[name] = FloatDistribution(low, high, log=low > 0 and high > 30 * low)
        elif column.nunique() > 1:
            columns[name] = column.map(str)
            spaces[name] = CategoricalDistribution(sorted(set(columns[name])))
    values = table[f"metric {metric}"].astype(float)
    if len(table) < 8 or not spaces or values.nunique() < 2:
        return {}
    optuna = _optuna()
    study = optuna.create_study()
    for i, value in enumerate(values):
        params = {name: columns[name].iloc[i] for name in spaces}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}
