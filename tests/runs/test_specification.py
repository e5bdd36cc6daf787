"""A sweep's specification: what it asks for, what its hashes hold, and how a wrong one is told."""

import re

import pytest
import yaml

from clay_lib import ContractError
from clay_lib.runs.notebooks import RUNS, read_script
from clay_lib.runs.specification import make_sweep, promised_metrics, read_sweep

SCRIPT = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
rate: float = 0.1  # a remark
steps: int = 3
kind: str = "a"
bands: list[str] = ["red"]

# %%
import json, pathlib
found = {"loss": rate, f"kNN, {kind}": 1, "probe": {"knn": 0.5}}
found["late"] = 2

# %%
pathlib.Path(out, "metrics.json").write_text(json.dumps(found))
"""
PLAIN = {
    "notebook": "tiny.py",
    "grid": {"rate": [0.1, 0.5], "kind": ["a", "b"]},
    "seeds": 3,
    "metrics": {"loss": "min"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.py").write_text(SCRIPT)
    return tmp_path


def make(folder, **changes):
    told = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    return make_sweep(told, name="tiny_sweep", folder=folder)


def test_a_grid_with_seeds_gives_every_setting_once_a_seed(folder):
    asked = make(folder, fixed={"steps": 7})
    assert len(asked.runs) == len({run.key for run in asked.runs}) == 12
    assert [run.settings["seed"] for run in asked.runs] == [0] * 4 + [1] * 4 + [2] * 4  # a part is a fair part
    assert asked.runs[5].settings == {"seed": 1, "rate": 0.1, "kind": "b"}
    assert asked.runs[5].parameters == {"seed": 1, "rate": 0.1, "kind": "b", "steps": 7, "bands": ["red"]}
    assert asked.varied == ["rate", "kind"]


def test_lists_and_draws_multiply_with_seeds_and_a_budget_cuts(folder):
    over = {"rate": {"log": [1e-4, 1e-2]}, "steps": {"whole": [2, 8]}}
    asked = make(folder, grid=None, list=[{}, {"kind": "b"}], random={"draws": 3, "over": over}, seeds={"seed": [5, 9]})
    assert len(asked.runs) == 12 and set(asked.varied) == {"rate", "steps", "kind"}
    assert all(1e-4 <= run.settings["rate"] <= 1e-2 and 2 <= run.settings["steps"] <= 8 for run in asked.runs)
    cut = make(folder, budget={"runs": 5, "minutes": 2})
    assert len(cut.runs) == 5 and cut.left_out == 7 and cut.minutes == 2


def test_more_draws_and_more_parameters_leave_the_first_ones_as_they_were(folder):
    def draws(count, **over):
        asked = make(
            folder, grid=None, seeds=None, random={"draws": count, "over": {"rate": {"uniform": [0, 1]}, **over}}
        )
        return [run.settings["rate"] for run in asked.runs]

    assert draws(8)[:4] == draws(4) == draws(4, kind=["a", "b"])
    assert len(set(draws(8))) == 8


def test_a_profile_is_the_base_and_fixed_values_lie_over_it(folder, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "common: {seed: 4, unheard_of: 1}\nnotebooks: {tiny: {steps: 9, kind: c}}\nminutes: {tiny: 2}\n"
    )
    asked = make(folder, profile=str(tmp_path / "own.yaml"), grid={"rate": [0.2]}, seeds=None, fixed={"kind": "d"})
    assert asked.runs[0].parameters == {"seed": 4, "rate": 0.2, "steps": 9, "kind": "d", "bands": ["red"]}
    assert asked.forecast == 2


def test_the_hash_holds_code_and_values_and_nothing_else(folder):
    before = [run.key for run in make(folder).runs]
    (folder / "tiny.py").write_text(
        SCRIPT.replace("# a remark", "# another") + "\n# %% [markdown]\n# said differently\n"
    )
    assert [run.key for run in make(folder).runs] == before
    (folder / "tiny.py").write_text(SCRIPT.replace("steps: int = 3", "steps: int = 4"))
    assert not set(before) & {run.key for run in make(folder).runs}
    (folder / "tiny.py").write_text(SCRIPT.replace('["late"] = 2', '["late"] = 3'))
    assert not set(before) & {run.key for run in make(folder).runs}
    (folder / "tiny.py").write_text(SCRIPT)
    wider = [run.key for run in make(folder, grid={"rate": [0.1, 0.5, 1], "kind": ["a", "b"]}).runs]
    assert set(before) < set(wider) and len(wider) == 18  # only what is new is run
    assert make(folder, grid={"rate": [1]}, seeds=None).runs == make(folder, grid={"rate": [1.0]}, seeds=None).runs


WRONG = [
    ({"grid": {"rte": [1]}}, "'rte'"),
    ({"grid": {"rate": ["1e-3"]}}, "1.0e-3"),
    ({"grid": {"steps": [1, 2.5]}}, "int"),
    ({"grid": {}}, "empty grid"),
    ({"grid": {"rate": []}}, "at least one value"),
    ({"grid": {"rate": 0.1}}, "a single value"),
    ({"grid": {"rate": [0.5, 0.5]}}, "two runs of one hash"),
    ({"grid": {"steps": [1, 2]}, "list": [{"kind": "a"}, {}]}, "two runs of one hash"),
    ({"grid": {"out": ["x"]}}, "every run its folder"),
    ({"fixed": {"rate": 1.0}}, "two parts"),
    ({"grid": {"seed": [1]}}, "two parts"),
    ({"fixed": {"pace": 1.0}}, "'pace'"),
    ({"notebook": "gone.py"}, "gone.py"),
    ({"notebook": "99_gone"}, "99_gone"),
    ({"notebook": None}, "notebook and metrics"),
    ({"profile": "nowhere"}, "nowhere"),
    ({"metrics": {"los": "min"}}, "'los'"),
    ({"metrics": {"loss": "least"}}, "direction"),
    ({"metrics": {}}, "direction"),
    ({"metrics": None}, "direction"),
    ({"grids": {"rate": [1]}}, "'grids'"),
    ({"seeds": []}, "empty list"),
    ({"seeds": ["one"]}, "int"),
    ({"seeds": True}, "bool"),
    ({"list": [3]}, "one mapping"),
    ({"list": []}, "one mapping"),
    ({"budget": {"runs": 0}}, "above 0"),
    ({"budget": {"hours": 1}}, "misspelt"),
    ({"timeout": -1}, "more than 0"),
    ({"random": {"draws": 3}}, "misspelt key"),
    ({"grid": None, "random": {"draws": 3, "over": {"rate": {"log": [0, 1]}}}}, "low above high"),
    ({"grid": None, "random": {"draws": 3, "over": {"rate": {"log": ["1e-4", 1]}}}}, "1.0e-3"),
    ({"grid": None, "random": {"draws": 0, "over": {"rate": [1.0]}}}, "whole number"),
    ({"grid": None, "random": {"draws": 9, "over": {"kind": ["a", "b"]}}}, "two runs of one hash"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_a_wrong_specification_is_one_clear_message(folder, change, said):
    told = {key: value for key, value in {**PLAIN, **change}.items() if value is not None}
    (folder / "wrong.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ContractError) as caught:
        read_sweep(folder / "wrong.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "notebook"),
        ("grid: [", "indent"),
        ("- a\n", "notebook"),
        ("seeds: 2\nseeds: 3\n", "key 'seeds' a second time.*line 2"),
        ("grid:\n  rate: [1.0]\n  rate: [2.0]\n", "key 'rate' a second time.*line 3"),
        (None, "misspelt path"),
    ],
)
def test_a_file_that_is_no_mapping_is_told(folder, text, said):
    if text is not None:
        (folder / "wrong.yaml").write_text(text)
    with pytest.raises(ContractError, match=said):
        read_sweep(folder / "wrong.yaml")


def test_a_profile_says_no_key_twice_and_anchors_may_be_merged(folder):
    (folder / "own.yaml").write_text("notebooks:\n  tiny: {steps: 9}\n  tiny: {kind: c}\n")
    with pytest.raises(ContractError, match="^[^\n]*key 'tiny' a second time[^\n]*$"):
        make(folder, profile=str(folder / "own.yaml"))
    (folder / "own.yaml").write_text("common: &all {steps: 9, kind: c}\nnotebooks:\n  tiny: {<<: *all, kind: d}\n")
    made = make(folder, profile=str(folder / "own.yaml"), grid={"rate": [0.1]}, seeds=None).runs[0].parameters
    assert (made["steps"], made["kind"]) == (9, "d")


def test_the_specification_in_the_readme_is_taken_as_written(tmp_path):
    blocks = re.findall(r"(?:^    .*\n)+", (RUNS / "README.md").read_text().split("# Sweeps")[1], re.M)
    first, more = (next(b for b in blocks if b.startswith(f"    {word}:")) for word in ("notebook", "list"))
    (tmp_path / "told.yaml").write_text(first.replace("\n    ", "\n")[4:])
    asked = read_sweep(tmp_path / "told.yaml")
    assert len(asked.runs) == 18 and asked.seed == "seed" and len(asked.metrics) == 2
    told = {k: v for k, v in asked.told.items() if k not in ("grid", "seeds", "budget")}
    for key, value in yaml.safe_load(more).items():
        assert make_sweep({**told, key: value}, name="more").runs


def test_a_sweep_does_not_take_a_profiles_name(folder):
    with pytest.raises(ContractError, match="no profile's name"):
        make_sweep(PLAIN, name="demo", folder=folder)


def test_metrics_are_read_from_the_source_where_it_tells(folder):
    for name, direction in {"kNN, b": "max", "probe / knn": "max", "late": "min"}.items():
        assert make(folder, metrics={name: direction}).metrics == {name: direction}
    with pytest.raises(ContractError, match="probe / knn"):
        make(folder, metrics={"probe / knnn": "max"})
    (folder / "tiny.py").write_text(SCRIPT + "\nfound |= measure()\n")
    assert promised_metrics(read_script(folder / "tiny.py")) is None  # a function hands them over: nobody can tell
    assert make(folder, metrics={"anything": "max"}).metrics


def test_a_name_that_yaml_takes_for_a_truth_value_is_told(tmp_path):
    """`off: [...]` without quotes is False in YAML 1.1."""
    from clay_lib.runs.notebooks import check_parameters

    with pytest.raises(ContractError, match="put the name in quotes"):
        check_parameters({"off": None}, {False: ["place"]}, "10_switch_metadata")
