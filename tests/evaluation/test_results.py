"""The page of results: reproducible rows, kept where their data are absent."""

import pandas as pd
import pytest

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.evaluation import results
from clay_lib.files import sha256

TINY = ClayConfig(32, 1, 2, 16, 2, 16, 1, 2, 8, 2, teacher_dim=8)


@pytest.fixture
def weights(tmp_path):
    return Clay.random(TINY, seed=0).save(tmp_path / "tiny.safetensors")


def study(score, needs=()):
    """A study with a given score."""

    def run(clay, real, seeds):
        shared = dict(kind="model", probe="linear", metric="accuracy", n_train=9, n_test=9, dim=32, seeds=seeds)
        rows = [
            dict(split="blocks", features="Clay", score=score, low=score - 0.1, high=score + 0.1, margin=-0.05,
                 margin_low=-0.1, margin_high=0.01, baseline="pixel statistics", gap=0.2, gap_low=0.1, gap_high=0.3),
            dict(split="random", features="Clay", score=score + 0.2, low=score, high=score + 0.3),
        ]  # fmt: skip
        return pd.DataFrame([row | shared for row in rows])

    return results.Study("A study", "Of something.", needs, run)


def test_rows_name_their_command_and_stay_where_data_are_absent(weights, tmp_path, monkeypatch, capsys):
    out, real = tmp_path / "out", tmp_path / "real"
    (real / "places").mkdir(parents=True)
    monkeypatch.setattr(results, "STUDIES", {"a": study(0.5), "b": study(0.6, ("places",))})
    run = dict(data=str(real), seeds=2, out=str(out))
    assert results.results(str(weights), **run) == 0
    first = results.read_results(out)
    assert set(first["study"]) == {"a", "b"} and (first["weights"] == sha256(weights)[:16]).all()
    assert first.loc[first["study"] == "b", "command"].iloc[0] == (
        "python -m clay_lib results tiny.safetensors --only b --seeds 2"
    )
    page = (out / "RESULTS.md").read_text()
    assert "60.0 (50.0 to 70.0)" in page and "-5.0 (-10.0 to +1.0) over pixel statistics" in page
    assert "+20.0 (+10.0 to +30.0)" in page and "by blocks of land" in page

    (real / "places").rmdir()
    monkeypatch.setattr(results, "STUDIES", {"a": study(0.9), "b": study(0.1, ("places",))})
    results.results(str(weights), **run)
    assert "b: places not in" in capsys.readouterr().out
    scores = results.read_results(out).set_index(["study", "split"])["score"]
    assert scores["a", "blocks"] == 0.9 and scores["b", "blocks"] == 0.6
    page = (out / "RESULTS.md").read_text()
    assert "60.0 (50.0 to 70.0)" in page and "90.0 (80.0 to 100.0)" in page
    with pytest.raises(ContractError, match="only"):
        results.results(str(weights), only="c", **run)


def test_a_missing_interval_is_a_dash():
    table = study(0.5).run(None, None, 2).assign(study="world", made="", command="", weights="", probe="linear")
    ends = [name for name in table if name.endswith(("low", "high"))]
    page = results.results_page(table.assign(**dict.fromkeys(ends, float("nan"))))
    assert "| 50.0 (–) |" in page and "-5.0 (–) over pixel statistics" in page and "(nan" not in page


def test_the_shipped_page_matches_the_shipped_rows():
    folder = results.DATA / "weights"
    table = results.read_results(folder)
    assert set(table["study"]) <= set(results.STUDIES) and len(table)
    assert (folder / "RESULTS.md").read_text() == results.results_page(table)
    assert table[["weights", "command", "seeds", "split", "metric"]].notna().all(axis=None)
    assert (table[table["kind"] == "baseline"].groupby("study").size() >= 3).all()
