"""Encoder: padding, masking, and holes: unmeasured pixels never change a result, and measured ones stay as they are."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clay_lib import Clay, ClayConfig, ContractError, Datacube
from clay_lib.datacube import make_datacube
from clay_lib.encoder import fill_holes, mask_around_holes
from clay_lib.loss import reconstruction_loss

P = 4
CLAY = Clay.random(ClayConfig(24, 2, 2, 8, 2, 16, 1, 2, 8, 2, patch_size=P, teacher_dim=12), seed=3)
with torch.no_grad():  # larger than initialized, so that every path changes the output
    for parameter in CLAY.model.parameters():
        parameter.mul_(1.5)
METADATA = dict(when="2023-06-10T10:30", lat=-3.4, lon=34.07, check=False)


def image(C=3, H=16, W=20, seed=0, B=None):
    shape = (C, H, W) if B is None else (B, C, H, W)
    return np.random.default_rng(seed).uniform(20, 240, shape).astype(np.float32)


def embed(pixels, **kwargs):
    return CLAY.embed(pixels, "linz", **METADATA | kwargs)


def close(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=atol, equal_nan=True)


patch_masks = st.integers(1, 2**20 - 2)  # which of the 4 x 5 patches are valid


def valid_pixels(bits: int) -> np.ndarray:
    """[16, 20] bool from the bits of a number, a patch each."""
    patches = np.array([bits >> k & 1 for k in range(20)], bool).reshape(4, 5)
    return np.kron(patches, np.ones((P, P), bool))


@settings(max_examples=12, deadline=None)
@given(bits=patch_masks, seed=st.integers(0, 9))
def test_patch_with_a_hole_is_left_out_of_the_sequence(bits, seed):
    """The same tokens as from the sequence of the other patches alone, by hand."""
    pixels, valid = image(seed=seed), valid_pixels(bits)
    out = embed(np.where(valid, pixels, np.nan))
    visible = valid[::P, ::P]
    assert np.array_equal(out.valid[0].numpy(), visible)
    assert torch.equal(out.patches[0].isfinite().all(-1), out.valid[0])

    encoder = CLAY.model.encoder
    cube = make_datacube(pixels, "linz", **{k: v for k, v in METADATA.items() if k != "check"})
    inputs = []
    hook = encoder.transformer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        encoder(cube, shuffle=False)
        hook.remove()
        sequence = torch.cat([inputs[0][:, :1], inputs[0][:, 1:][:, visible.ravel()]], dim=1)
        expected = encoder.transformer(sequence)[0]
    close(out.chip[0], expected[0])
    close(out.patches[0][out.valid[0]], expected[1:])
    close(out.mean[0], expected[1:].mean(0))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    share=st.floats(0, 0.9),
    H=st.integers(1, 19),
    W=st.integers(1, 19),
    each_band=st.booleans(),
    min_valid=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_values_under_a_hole_never_matter(seed, share, H, W, each_band, min_valid):
    rng = np.random.default_rng(seed)
    pixels = image(H=H, W=W, seed=seed)
    valid = rng.random((3, H, W) if each_band else (H, W)) >= share
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chips without a patch
        expected = embed(pixels, valid=valid, min_valid=min_valid)
        for value in (np.nan, np.inf, -1e30, 65535.0, rng.normal(0, 1e6, pixels.shape).astype(np.float32)):
            out = embed(np.where(valid, pixels, value), valid=valid, min_valid=min_valid)
            for name in ("chip", "patches", "valid"):
                torch.testing.assert_close(getattr(out, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)
        nan = embed(np.where(valid, pixels, np.nan), min_valid=min_valid)
    torch.testing.assert_close(nan.chip, expected.chip, rtol=0, atol=0, equal_nan=True)

    cube = make_datacube(pixels, "linz", valid=valid)  # and in a cube made elsewhere
    if cube.valid is not None:
        with_nan = torch.where(cube.valid, cube.pixels, torch.tensor(float("nan")))
        with torch.no_grad():
            a, b = (CLAY.model(cube.with_pixels(x), mask_ratio=0.5, shuffle=False) for x in (cube.pixels, with_nan))
        assert torch.equal(a.encoded.tokens, b.encoded.tokens) and torch.equal(a.reconstruction, b.reconstruction)


@settings(max_examples=10, deadline=None)
@given(down=st.integers(0, 9), right=st.integers(0, 9), h=st.integers(1, 4), w=st.integers(1, 4))
def test_empty_border_below_and_right_changes_nothing(down, right, h, w):
    pixels = image(H=P * h, W=P * w)
    bordered = np.pad(pixels, ((0, 0), (0, down), (0, right)), constant_values=np.nan)
    a, b = embed(pixels), embed(bordered)
    close(a.chip, b.chip)
    close(a.patches, b.patches[:, :h, :w])
    close(a.mean, b.mean)
    assert int(b.valid.sum()) == h * w


@settings(max_examples=6, deadline=None)
@given(masks=st.lists(patch_masks, min_size=2, max_size=4), ratio=st.sampled_from([0.0, 0.5, 0.75]))
@example(masks=[0b0111, 0b1110], ratio=0.5)  # as many patches in other places: no slot is empty
def test_batch_equals_each_chip_alone(masks, ratio):
    pixels = image(B=len(masks))
    valid = np.stack([valid_pixels(bits) for bits in masks])
    together = embed(pixels, valid=valid, layers=[0])
    for b in range(len(masks)):
        alone = embed(pixels[b], valid=valid[b], layers=[0])
        for ours, expected in ((together, alone), (together.layers[0], alone.layers[0])):
            close(ours.chip[b], expected.chip[0])
            close(ours.patches[b], expected.patches[0])
            close(ours.mean[b], expected.mean[0])
    with torch.no_grad():  # through the decoder too, masked in order so that the draws are the same
        cube = make_datacube(pixels, "linz", valid=valid)
        out = CLAY.model(cube, mask_ratio=ratio, shuffle=False)
        for b in range(len(masks)):
            alone = CLAY.model(make_datacube(pixels[b], "linz", valid=valid[b]), mask_ratio=ratio, shuffle=False)
            close(out.reconstruction[b], alone.reconstruction[0])
            close(out.encoded.mask[b], alone.encoded.mask[0])


@settings(max_examples=40, deadline=None)
@given(
    bits=st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=4), ratio=st.floats(0, 0.95), shuffle=st.booleans()
)
def test_masking_among_valid_patches(bits, ratio, shuffle):
    valid = torch.tensor([[b >> k & 1 for k in range(12)] for b in bits]).bool()
    visible, masked, mask, present = mask_around_holes(valid, mask_ratio=ratio, shuffle=shuffle)
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(12).expand(len(bits), 12))
    assert not (mask.bool() & ~valid).any()
    present = torch.ones_like(visible, dtype=torch.bool) if present is None else present
    for b, n in enumerate(valid.sum(1).tolist()):
        indices = visible[b][present[b]]
        assert len(indices) == n - int(ratio * n) and int(mask[b].sum()) == int(ratio * n)
        assert valid[b][indices].all() and not mask[b][indices].any()
        if not shuffle:
            assert indices.tolist() == valid[b].nonzero()[int(ratio * n) :, 0].tolist()


def test_fill_by_hand():
    nan = float("nan")
    pixels = torch.tensor([[[1.0, 2.0, nan, nan, 5.0], [3.0, nan, nan, nan, nan]], [[1.0] * 5, [nan] * 5]])[None]
    filled, share = fill_holes(pixels, pixels.isfinite(), 2)
    first = [[1, 2, 0, 0, 5], [3, 2, 0, 0, 5]]  # the mean of the patch in the band, and zero where there is none
    assert torch.equal(filled[0], torch.tensor([first, [[1.0] * 5] * 2]))
    torch.testing.assert_close(share, torch.tensor([[(3 / 4 + 1 / 2) / 2, 1 / 4, 1 / 2]]))  # padding is no pixel


def test_one_missing_pixel_changes_little_and_min_valid_decides():
    pixels = image(H=13, W=18)
    complete = embed(pixels)
    pixels[:, 12, 17] = np.nan  # in the last patch, which has 1 x 2 pixels of its own
    assert embed(pixels, min_valid=0.5).valid.all() and not embed(pixels, min_valid=0.6).valid[0, -1, -1]
    assert torch.cosine_similarity(embed(pixels).chip, complete.chip) > 0.99
    assert embed(pixels, min_valid=0.6).valid.sum() == complete.valid.sum() - 1
    pixels[0] = np.nan  # a band that is missing everywhere leaves two thirds of each patch
    assert embed(pixels).valid.sum() == complete.valid.sum() - 1  # of the last patch, a third
    with pytest.raises(ContractError, match="min_valid"):
        embed(pixels, min_valid=50)


def test_one_empty_chip_does_not_stop_the_batch():
    pixels = image(B=3)
    alone = embed(pixels[[0, 2]])
    pixels[1] = np.nan
    with pytest.warns(UserWarning, match=r"chips \[1\] of 3") as caught:
        out = embed(pixels)
    assert caught[0].filename == __file__
    close(out.chip[[0, 2]], alone.chip)
    assert out.chip[1].isnan().all() and out.patches[1].isnan().all() and out.mean[1].isnan().all()
    assert not out.valid[1].any() and out.valid[[0, 2]].all()
    with pytest.warns(UserWarning, match=r"chips \[1\] of 3"):
        rebuilt = CLAY.reconstruct(pixels, "linz", **METADATA)
    assert np.isnan(rebuilt.pixels[1]).all() and not rebuilt.mask[1].any() and not rebuilt.valid[1].any()
    assert np.isfinite(rebuilt.pixels[[0, 2]]).all() and rebuilt.mask[[0, 2]].mean() == 0.75


def test_holes_are_reconstructed_but_never_scored():
    pixels, valid = image(B=2), np.stack([valid_pixels(0b11110000111100001111), np.ones((16, 20), bool)])
    out = CLAY.reconstruct(pixels, "linz", valid=valid, mask_ratio=0.5, **METADATA)
    assert np.array_equal(out.valid, valid) and not (out.mask & ~valid).any()
    assert out.mask[0].sum() == 6 * P * P and out.mask[1].sum() == 10 * P * P and np.isfinite(out.pixels).all()

    cube = make_datacube(pixels, "linz", valid=valid)
    out = CLAY.model(cube, mask_ratio=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cube.target.isnan(), ~cube.valid) and torch.isfinite(cube.pixels).all()
    assert not out.encoded.mask[~out.encoded.valid].any()
    score = reconstruction_loss(out.reconstruction, cube.target, out.encoded.mask, patch_size=P)
    changed = out.reconstruction.detach().clone()
    changed[~out.encoded.valid] += 1e6  # the prediction for a hole costs nothing
    assert reconstruction_loss(changed, cube.target, out.encoded.mask, patch_size=P) == score
    score.backward()  # training through holes: a gradient everywhere, and finite
    gradients = [p.grad for name, p in CLAY.model.named_parameters() if not name.startswith("proj")]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    CLAY.model.zero_grad()


@pytest.mark.parametrize(
    ("valid", "words"),
    [
        (np.full((16, 20), 4), "other values than 0 and 1"),
        (np.ones((20, 16), bool), "shape (20, 16)"),
        (np.ones((4, 5), bool), "of patches"),
        (np.full((16, 20), np.nan), "other values"),
        ([["yes"]], "other values"),
    ],
)
def test_impossible_masks_are_refused(valid, words):
    with pytest.raises(ContractError) as caught:
        embed(image(), valid=valid)
    assert caught.value.field == "valid" and words in str(caught.value)


def test_every_form_of_a_mask_is_equivalent():
    pixels, valid = image(B=2), valid_pixels(0b11100111001110011100)
    expected = embed(pixels, valid=valid)
    forms = [valid.astype(np.uint8), torch.from_numpy(valid), np.stack([valid] * 2), np.stack([[valid] * 3] * 2)]
    forms.append(np.ma.masked_array(pixels, np.broadcast_to(~valid, pixels.shape)))
    for form in forms:
        out = embed(form) if isinstance(form, np.ma.MaskedArray) else embed(pixels, valid=form)
        assert torch.equal(out.chip, expected.chip) and torch.equal(out.valid, expected.valid)
    assert make_datacube(pixels, "linz", valid=np.ones((16, 20), bool)).valid is None
    cube = make_datacube(pixels, "linz", valid=valid)
    assert Datacube(cube.pixels, cube.time, cube.latlon, 10, cube.waves, cube.valid[:, 0]).valid.shape == (2, 1, 16, 20)
    with pytest.raises(ContractError, match="valid"):
        Datacube(cube.pixels, cube.time, cube.latlon, 10, cube.waves, cube.valid.float())
