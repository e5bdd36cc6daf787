"""The chosen precision: timings and disagreements decide, the choice is kept, and exact changes no bit."""

import json

import pytest
import torch
from fakes import MICRO, fake_chips

from clay_lib import SENSORS, Clay, ClayConfig, ContractError, precision
from clay_lib.datamodule import ClayDataModule, noise_batch
from clay_lib.embedding import PatchEmbedding
from clay_lib.training import TrainSettings, train
from clay_lib.transformer import Attention

SENSOR = "sentinel-2-l2a"
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "WORTH", 0)
    precision._chosen.clear()
    yield
    precision._chosen.clear()


@pytest.fixture
def clay():
    return Clay.random(MICRO)


@pytest.fixture
def cube():
    return noise_batch(SENSOR, 2, 16).cube


def fake_seconds(monkeypatch, **seconds):
    """Let trials measure these seconds; returns the list of trials."""
    trials = []

    def measure(encoder, x, names, training):
        trials.append(names)
        return {name: seconds[name] for name in names if name in seconds}

    monkeypatch.setattr(precision, "measure", measure)
    return trials


def test_torch_takes_no_more_threads_than_the_process_has_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        for cores, threads in {1: 1, 64: 3}.items():  # and never more than it had
            torch.set_num_threads(3)
            monkeypatch.setattr(precision, "cores", lambda n=cores: n)
            precision.limit_threads.__wrapped__()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "mode", "choice"),
    [
        (dict(exact=1.0, medium=0.9, bfloat16=0.5), "auto", "bfloat16"),
        (dict(exact=1.0, medium=0.9, bfloat16=300.0), "auto", "medium"),
        (dict(exact=1.0, medium=0.98, bfloat16=300.0), "auto", "exact"),  # 2 % are within the noise
        (dict(exact=1.0), "auto", "exact"),  # torch offers nothing else here
        (dict(exact=1.0, bfloat16=0.5, int8=0.2), "auto", "bfloat16"),  # int8 is not even tried
        (dict(exact=1.0, bfloat16=0.5, int8=0.2), "fast", "int8"),
    ],
)
def test_fastest_is_chosen(seconds, mode, choice, clay, cube, monkeypatch, capsys):
    fake_seconds(monkeypatch, **seconds)
    assert precision.choose(clay.model.encoder, cube, mode) == choice
    assert capsys.readouterr().out.startswith(f"precision: {choice}")


def test_disagreeing_candidate_is_not_taken(clay, cube, monkeypatch):
    fake_seconds(monkeypatch, exact=1.0, medium=0.9, bfloat16=0.1)
    monkeypatch.setitem(precision.AGREEMENT, "bfloat16", 1.0)  # rounding alone fails this
    assert precision.choose(clay.model.encoder, cube, "auto") == "medium"


def test_choice_is_kept_for_the_process_and_on_disk(clay, cube, monkeypatch):
    trials = fake_seconds(monkeypatch, exact=1.0, bfloat16=0.5)
    chosen = [precision.choose(clay.model.encoder, cube, "auto") for _ in range(2)]
    precision._chosen.clear()  # as in another process
    chosen.append(precision.choose(clay.model.encoder, cube, "auto"))
    assert chosen == ["bfloat16"] * 3 and len(trials) == 1
    (key,) = json.loads(precision.cache_file().read_text())
    assert torch.__version__ in key and precision.processor() in key
    precision.choose(clay.model.encoder, noise_batch(SENSOR, 2, 24).cube, "auto")  # another shape
    precision.choose(Clay.random(MICRO, seed=1).model.encoder, cube, "auto")  # other weights
    assert len(trials) == 3


def test_broken_cache_file_is_measured_again(clay, cube, monkeypatch):
    trials = fake_seconds(monkeypatch, exact=1.0, bfloat16=0.5)
    precision.cache_file().parent.mkdir(parents=True)
    precision.cache_file().write_text("{")
    assert precision.choose(clay.model.encoder, cube, "auto") == "bfloat16" and len(trials) == 1


def test_small_batches_have_no_trial(clay, cube, monkeypatch):
    monkeypatch.setattr(precision, "WORTH", 5e10)
    trials = fake_seconds(monkeypatch, exact=1.0, bfloat16=0.5)
    assert precision.choose(clay.model.encoder, cube, "auto") == "exact" and not trials
    assert precision.choose(clay.model.encoder, cube, "auto", batches=10**6) == "bfloat16"


def test_real_trial_measures_all_candidates(clay, cube):
    block_input = torch.randn(2, 5, MICRO.dim)
    for training in (False, True):
        seconds = precision.measure(clay.model.encoder, block_input, ["exact", "medium", "bfloat16"], training)
        assert set(seconds) >= {"exact", "medium"} and all(0 < s < 1 for s in seconds.values())


@pytest.mark.parametrize("weights", ["clay-mini", pytest.param("large", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sensor", SENSORS)
def test_each_precision_agrees_on_each_sensor(sensor, weights):
    clay = Clay.load(weights) if weights == "clay-mini" else Clay.random(ClayConfig.named(weights))
    cube = noise_batch(sensor, 2, 64).cube
    exact = clay.model.encoder(cube, 0.0, False).tokens
    for name in ("medium", "bfloat16", "int8"):
        with torch.no_grad(), precision.arithmetic(clay.model.encoder, name):
            tokens = clay.model.encoder(cube, 0.0, False).tokens
        cosine = torch.nn.functional.cosine_similarity(tokens.float(), exact, dim=-1).min()
        assert cosine >= {"int8": 0.98}.get(name, precision.AGREEMENT[name]), name
    with precision.arithmetic(clay.model.encoder, "exact"):
        assert clay.model.encoder(cube, 0.0, False).tokens.equal(exact)  # to the bit, also after the others
    assert torch.get_float32_matmul_precision() == "highest"


def test_int8_weights_follow_the_model(clay, cube):
    def tokens():
        with torch.no_grad(), precision.arithmetic(clay.model.encoder, "int8"):
            return clay.model.encoder(cube, 0.0, False).tokens

    before = tokens()
    with torch.no_grad():
        clay.model.encoder.transformer.layers[0][1].net[1].weight.mul_(-3)
    assert not tokens().equal(before)


def test_embedding_tells_its_precision(monkeypatch):
    pixels = SENSORS[SENSOR].denormalize(torch.randn(2, 10, 16, 16).numpy())
    fake_seconds(monkeypatch, exact=1.0, bfloat16=0.5)
    exact = Clay.random(MICRO).embed(pixels, SENSOR, check=False)
    fast = Clay(Clay.random(MICRO).model, precision="auto").embed(pixels, SENSOR, check=False)
    assert (exact.precision, fast.precision) == ("exact", "bfloat16")
    assert fast.chip.dtype == torch.float32 and not fast.chip.equal(exact.chip)
    assert torch.nn.functional.cosine_similarity(fast.chip, exact.chip).min() > 0.9999


def test_environment_and_names(monkeypatch):
    assert precision.check_precision(None) == "exact"  # tests set CLAY_PRECISION
    monkeypatch.delenv("CLAY_PRECISION")
    assert precision.check_precision(None) == "auto" and precision.check_precision("float32") == "exact"
    with pytest.raises(ContractError, match="found 'bf17'.*fast or one of"):
        Clay(Clay.random(MICRO).model, precision="bf17")


def test_run_resumes_in_its_precision(tmp_path, monkeypatch):
    fake_seconds(monkeypatch, exact=1.0, bfloat16=0.5)
    data = ClayDataModule({SENSOR: fake_chips(SENSOR)}, batch_size=4)
    run = dict(out=tmp_path, resume=True, progress=False)
    started = train(MICRO, TrainSettings(max_steps=2, clip_gradient=1.0), data, precision="auto", **run)
    saved = torch.load(started.checkpoint, weights_only=True)
    assert saved["hyper_parameters"]["precision"] == "bfloat16"
    fake_seconds(monkeypatch, exact=0.1, bfloat16=0.5)
    precision._chosen.clear()
    resumed = train(MICRO, TrainSettings(max_steps=3, clip_gradient=1.0), data, precision="auto", **run)
    assert torch.load(resumed.checkpoint, weights_only=True)["hyper_parameters"]["precision"] == "bfloat16"
    with pytest.raises(ContractError, match="found precision exact; expected precision bfloat16"):
        train(MICRO, TrainSettings(max_steps=4, clip_gradient=1.0), data, precision="exact", **run)


def test_medium_trains_with_a_patch_embedding_in_full_precision(tmp_path, monkeypatch):
    found = {PatchEmbedding: set(), Attention: set()}
    for layer, seen in found.items():
        forward = layer.forward

        def recorded(self, *args, forward=forward, seen=seen, **options):
            seen.add(torch.get_float32_matmul_precision())
            return forward(self, *args, **options)

        monkeypatch.setattr(layer, "forward", recorded)
    data = ClayDataModule({SENSOR: fake_chips(SENSOR)}, batch_size=4)
    train(MICRO, TrainSettings(max_steps=1), data, precision="medium", out=tmp_path, progress=False)
    assert found == {PatchEmbedding: {"highest"}, Attention: {"medium"}}
    assert torch.get_float32_matmul_precision() == "highest"


@CUDA
@pytest.mark.parametrize("name", ["exact", "bfloat16", "float16"])
def test_cuda_agrees_with_the_cpu(name, cube):
    clay = Clay.random(ClayConfig.named("tiny"))
    expected = clay.model.encoder(cube, 0.0, False).tokens
    clay.model.cuda()
    with torch.no_grad(), precision.arithmetic(clay.model.encoder, name):
        tokens = clay.model.encoder(cube.to("cuda"), 0.0, False).tokens.cpu()
    assert torch.nn.functional.cosine_similarity(tokens, expected, dim=-1).min() > 0.9999
