"""Sweep specifications: their runs, what the hashes depend on, and the message of a wrong one."""

import re

import pytest

from clay_lib import ContractError
from clay_lib.files import read_yaml, write_yaml
from clay_lib.runs.notebooks import RUNS
from clay_lib.runs.specification import make_sweep, read_sweep

SCRIPT = """# %% tags=["parameters"]
seed: int = 0
out: str = ""
rate: float = 0.1  # a comment
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
    content = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    return make_sweep(content, name="tiny_sweep", folder=folder)


def test_grid_with_seeds_gives_every_setting_once_per_seed(folder):
    sweep = make(folder, fixed={"steps": 7})
    assert len(sweep.runs) == len({run.key for run in sweep.runs}) == 12
    seeds = [run.settings["seed"] for run in sweep.runs]
    assert seeds == [0] * 4 + [1] * 4 + [2] * 4  # a partial sweep covers all settings
    assert sweep.runs[5].settings == {"seed": 1, "rate": 0.1, "kind": "b"}
    assert sweep.runs[5].parameters == {"seed": 1, "rate": 0.1, "kind": "b", "steps": 7, "bands": ["red"]}
    assert sweep.varied == ["rate", "kind"]


def test_list_multiplies_with_grid_and_seeds_and_budget_cuts(folder):
    sweep = make(folder, grid={"rate": [0.1, 0.2, 0.3]}, list=[{}, {"kind": "b"}], seeds={"seed": [5, 9]})
    assert len(sweep.runs) == 12 and set(sweep.varied) == {"rate", "kind"}
    cut = make(folder, budget={"runs": 5, "minutes": 2})
    assert len(cut.runs) == 5 and cut.over_budget == 7 and cut.minutes == 2


def test_fixed_values_override_the_profile(folder, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "common: {seed: 4, unknown_parameter: 1}\nnotebooks: {tiny: {steps: 9, kind: c}}\nminutes: {tiny: 2}\n"
    )
    sweep = make(folder, profile=str(tmp_path / "own.yaml"), grid={"rate": [0.2]}, seeds=None, fixed={"kind": "d"})
    assert sweep.runs[0].parameters == {"seed": 4, "rate": 0.2, "steps": 9, "kind": "d", "bands": ["red"]}
    assert sweep.expected_minutes == 2


def test_hash_depends_on_code_and_values_only(folder):
    before = [run.key for run in make(folder).runs]
    (folder / "tiny.py").write_text(
        SCRIPT.replace("# a comment", "# another").replace("= 2", "=  2") + "\n# %% [markdown]\n# other prose\n"
    )
    assert [run.key for run in make(folder).runs] == before
    (folder / "tiny.py").write_text(SCRIPT.replace("steps: int = 3", "steps: int = 4"))
    assert not set(before) & {run.key for run in make(folder).runs}
    (folder / "tiny.py").write_text(SCRIPT.replace('["late"] = 2', '["late"] = 3'))
    assert not set(before) & {run.key for run in make(folder).runs}
    (folder / "tiny.py").write_text(SCRIPT)
    wider = [run.key for run in make(folder, grid={"rate": [0.1, 0.5, 1], "kind": ["a", "b"]}).runs]
    assert set(before) < set(wider) and len(wider) == 18  # only the new settings are run
    assert make(folder, grid={"rate": [1]}, seeds=None).runs == make(folder, grid={"rate": [1.0]}, seeds=None).runs


WRONG = [
    ({"grid": {"rte": [1]}}, "'rte'"),
    ({"grid": {"steps": [1, 2.5]}}, "int"),
    ({"grid": {}}, "empty grid"),
    ({"grid": {"rate": 0.1}}, "list"),
    ({"grid": {"rate": [0.5, 0.5]}}, "two runs of one hash"),
    ({"grid": {"steps": [1, 2]}, "list": [{"kind": "a"}, {}]}, "two runs of one hash"),
    ({"grid": {"out": ["x"]}}, "every run its folder"),
    ({"fixed": {"rate": 1.0}}, "two parts"),
    ({"notebook": "99_gone"}, "99_gone"),
    ({"profile": "nowhere"}, "nowhere"),
    ({"metrics": {}}, "empty metrics"),
    ({"metrics": None}, "metrics: found nothing"),
    ({"seeds": []}, "empty list"),
    ({"seeds": True}, "found True"),
    ({"list": [3]}, "dict"),
    ({"timeout": -1}, "line 12: timeout: found -1; expected greater than 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_wrong_specification_gives_one_clear_message(folder, change, message):
    content = {key: value for key, value in {**PLAIN, **change}.items() if value is not None}
    write_yaml(folder / "wrong.yaml", content)
    with pytest.raises(ContractError) as caught:
        read_sweep(folder / "wrong.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "notebook"),
        ("grid: [", "wrong indent"),
        ("- a\n", "notebook"),
        ("seeds: 2\nseeds: 3\n", 'key "seeds".*line 2'),
        ("grid:\n  rate: [1.0]\n  rate: [2.0]\n", 'key "rate".*line 3'),
        (None, "misspelled path"),
    ],
)
def test_wrong_file_raises(folder, text, message):
    if text is not None:
        (folder / "wrong.yaml").write_text(text)
    with pytest.raises(ContractError, match=message):
        read_sweep(folder / "wrong.yaml")


def test_profile_refuses_repeated_keys_and_merges_anchors(folder):
    (folder / "own.yaml").write_text("notebooks:\n  tiny: {steps: 9}\n  tiny: {kind: c}\n")
    with pytest.raises(ContractError, match='^[^\n]*duplicate key "tiny"[^\n]*$'):
        make(folder, profile=str(folder / "own.yaml"))
    (folder / "own.yaml").write_text("common: &all {steps: 9, kind: c}\nnotebooks:\n  tiny: {<<: *all, kind: d}\n")
    parameters = make(folder, profile=str(folder / "own.yaml"), grid={"rate": [0.1]}, seeds=None).runs[0].parameters
    assert (parameters["steps"], parameters["kind"]) == (9, "d")


def test_specification_in_the_readme_is_valid(tmp_path):
    blocks = re.findall(r"(?:^    .*\n)+", (RUNS / "README.md").read_text().split("# Sweeps")[1], re.M)
    first, more = (next(b for b in blocks if b.startswith(f"    {word}:")) for word in ("notebook", "list"))
    (tmp_path / "readme.yaml").write_text(first.replace("\n    ", "\n")[4:])
    sweep = read_sweep(tmp_path / "readme.yaml")
    assert len(sweep.runs) == 18 and sweep.seed == "seed" and len(sweep.metrics) == 2
    base = {k: v for k, v in sweep.specification.items() if k not in ("grid", "seeds", "budget")}
    (tmp_path / "more.yaml").write_text(more)
    content = read_yaml(tmp_path / "more.yaml")
    assert make_sweep({**base, "list": content.pop("list")}, name="more").runs
    assert make_sweep({**base, **content}, name="more").search.trials == 40


def test_numbers_are_those_of_yaml_1_2(folder):
    text = "notebook: tiny.py\nmetrics: {loss: min}\nfixed: {kind: no}\ngrid: {rate: [1e-3, 2E1], steps: [010, 0x10]}\n"
    (folder / "numbers.yaml").write_text(text)
    sweep = read_sweep(folder / "numbers.yaml")
    assert [run.settings["rate"] for run in sweep.runs[::2]] == [0.001, 20.0]
    assert [run.settings["steps"] for run in sweep.runs[:2]] == [10, 16] and sweep.runs[0].parameters["kind"] == "no"
    (folder / "numbers.yaml").write_text(text.replace("2E1", ".nan"))
    with pytest.raises(ContractError, match="line 4.*found nan.*finite"):
        read_sweep(folder / "numbers.yaml")


def test_notebook_by_number_name_or_file():
    content = {"metrics": {"final loss": "min"}, "grid": {"lr": [1e-3]}}
    for name in (4, "04", "04_train_clay", "04_train_clay.py"):
        assert make_sweep({**content, "notebook": name}, name="s").script.stem == "04_train_clay"


MANY = """notebook: tiny.py
metrics: {loss: least}
fixed:
  pace: 1
grid:
  rate: [0.1, fast]
  kind: [a]
  steps: []
seeds: two
grids: 3
budget:
  hours: 1
"""


def test_all_mistakes_of_a_file_are_listed_with_their_lines(folder):
    (folder / "many.yaml").write_text(MANY)
    with pytest.raises(ContractError) as caught:
        read_sweep(folder / "many.yaml")
    head, *lines = str(caught.value).splitlines()
    assert "7 mistakes" in head
    found = [line.split(": found")[0].strip() for line in lines]
    assert found == [
        "line 2: metrics: loss",
        "line 4: parameter 'pace'",
        "line 6: parameter 'rate' of tiny",
        "line 8: grid: steps",
        "line 9: seeds",
        "line 10: grids",
        "line 12: budget: hours",
    ]
