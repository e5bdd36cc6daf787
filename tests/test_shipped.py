"""The weights that travel with the repository are what data/README.md says they are."""

from clay_lib import Clay, ClayConfig
from clay_lib.chips import DATA, world_chips
from clay_lib.embed import reconstruction_scores


def test_small_weights_load_and_know_the_mini_world():
    path = DATA / "mini.safetensors"
    assert path.stat().st_size < 20e6
    clay = Clay.load(path)
    assert clay.model.config == ClayConfig.named("tiny", teacher_dim=64, ladder="geometric")
    chips = world_chips("sentinel-2-l2a", 33, split="test", size=64)
    untrained = Clay.random(clay.model.config, seed=0)
    table, floor = (reconstruction_scores(model, chips) for model in (clay, untrained))
    assert table["error"].mean() < table["mean_error"].mean() < floor["error"].mean()
