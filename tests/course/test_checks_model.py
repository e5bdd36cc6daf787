"""Checks of notebooks 01 to 03 name the mistake of wrong answers that are written independently of them."""

import math

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from clay_lib.course.checks import (
    Mistake,
    check_band_parts,
    check_grid_code,
    check_mask,
    check_put_back,
    check_same_place,
    check_sequence_length,
    check_tokens,
    check_wavelengths,
    check_week_code,
)


def conv(pixels, weight, bias):
    rows = F.unfold(pixels, weight.shape[-1], stride=weight.shape[-1]).mT
    return rows @ weight.flatten(1).T + (0 if bias is None else bias)


def parts(embedding, pixels, waves, weight=None):
    weight = embedding.kernels(waves)[0] if weight is None else weight
    return torch.stack([conv(pixels[:, [c]], weight[:, [c]], None) for c in range(len(waves))], dim=1)


def alone(embedding, waves):
    return torch.cat([embedding.kernels(wave[None])[0] for wave in waves], dim=1)


WAVES = [0.450, 0.550, 0.660, 0.735, 0.845]
WRONG_01 = {
    "nanometers": (check_wavelengths, [450, 550, 660, 735, 845], "nanometers"),
    "from infrared to blue": (check_wavelengths, WAVES[::-1], "from near infrared to blue"),
    "one band forgotten": (check_wavelengths, WAVES[:3] + WAVES[4:], "C is 4 instead of 5"),
    "as text": (check_wavelengths, ["450 nm"] * 5, "tensor of numbers is wanted, not a list"),
    "without the bias": (check_tokens, lambda x, w, b: conv(x, w, None), "bias is missing"),
    "bias for each band": (check_tokens, lambda x, w, b: conv(x, w, 3 * b), "added once for every band"),
    "tokens column by column": (
        check_tokens,
        lambda x, w, b: rearrange(F.conv2d(x, w, b, stride=4), "B D h w -> B (w h) D"),
        "column by column",
    ),
    "kernels in another order": (
        check_tokens,
        lambda x, w, b: rearrange(x, "B C (h p) (w q) -> B (h w) (p q C)", p=4, q=4) @ w.flatten(1).T + b,
        "flattened in different orders",
    ),
    "one by one": (check_band_parts, lambda e, x, k: parts(e, x, k, alone(e, k)), "ask for all wavelengths at once"),
    "with the bias": (check_band_parts, lambda e, x, k: parts(e, x, k) + e.kernels(k)[1], "bias is in every band's"),
    "summed over bands": (check_band_parts, lambda e, x, k: parts(e, x, k).sum(1), "The bands are summed"),
    "bands after patches": (check_band_parts, lambda e, x, k: parts(e, x, k).transpose(1, 2), "another order"),
}


def week_by(angle, swap=False):
    return lambda date: [math.cos(angle(date)), math.sin(angle(date))][:: 1 if swap else -1]


def week(date):
    return date.isocalendar().week


def grid(h, w, f, *, swap=False, turned=False, blocks=(0, 1, 2, 3)):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="xy" if turned else "ij")
    x, y = (y, x) if swap else (x, y)
    x, y = x.flatten()[:, None] * f, y.flatten()[:, None] * f
    return torch.cat([[x.sin(), x.cos(), y.sin(), y.cos()][k] for k in blocks], dim=1)


TURN = 2 * math.pi
WRONG_02 = {
    "sizes swapped": (check_same_place, lambda c, a, b: c * b / a, "two pixel sizes are swapped"),
    "meters": (check_same_place, lambda c, a, b: c * a, "These are meters"),
    "the same column": (check_same_place, lambda c, a, b: c, "same column at both"),
    "rounded": (check_same_place, lambda c, a, b: round(c * a / b), "integers, rounded"),
    "a text": (check_same_place, lambda c, a, b: f"{c * a / b}", "numbers is wanted, not a str"),
    "cosine first": (check_week_code, week_by(lambda d: TURN * week(d) / 52, swap=True), "Cosine comes first"),
    "degrees": (check_week_code, week_by(lambda d: 360 * week(d) / 52), "in degrees"),
    "day of the year": (check_week_code, week_by(lambda d: TURN * d.timetuple().tm_yday / 365), "day of the year"),
    "week 53 as 52": (check_week_code, week_by(lambda d: TURN * min(week(d), 52) / 52), "You take week 53 for week 52"),
    "strftime": (check_week_code, week_by(lambda d: TURN * int(d.strftime("%W")) / 52), "strftime's %W"),
    "53 weeks": (check_week_code, week_by(lambda d: TURN * week(d) / 53), "divide by 53"),
    "half a turn": (check_week_code, week_by(lambda d: math.pi * week(d) / 52), "factor 2 is missing"),
    "week as text": (check_week_code, lambda d: "week 3", "tensor of numbers is wanted, not a str"),
    "week of None": (check_week_code, lambda d: [None, None], "tensor of numbers is wanted, not a list"),
    "three numbers": (check_week_code, lambda d: torch.zeros(3), r"\[3\], wanted is \[2\] \(sin|cos\)"),
    "x and y swapped": (check_grid_code, lambda *a: grid(*a, swap=True), "Rows and columns are swapped"),
    "codes column by column": (check_grid_code, lambda *a: grid(*a, turned=True, swap=False), "column by column"),
    "cosines first": (check_grid_code, lambda *a: grid(*a, blocks=(1, 0, 3, 2)), "Cosines come before sines"),
    "sines together": (check_grid_code, lambda *a: grid(*a, blocks=(0, 2, 1, 3)), "order is sin x, sin y"),
    "columns alone": (check_grid_code, lambda *a: grid(*a, blocks=(0, 1)), "add sin y and cos y"),
    "a square": (check_grid_code, lambda h, w, f: grid(3, 3, f), "L is 9 instead of 12"),
}


def length(H, W, P, ratio, *, up=True, cls=1, hidden=int):
    patches = math.prod(math.ceil(n / P) if up else n // P for n in (H, W))
    return cls + patches - hidden(ratio * patches)


def masked(draw, ratio, *, more=0):
    hidden = draw.argsort(dim=1)[:, : int(ratio * draw.shape[1]) + more]
    return torch.zeros_like(draw).scatter(1, hidden, 1.0)


def at_most(draw, ratio):  # with ratio 0 the threshold is the last draw
    return (draw <= draw.sort(1).values[:, [int(ratio * draw.shape[1]) - 1]]).float()


def back(tokens, visible, token, L):
    full = token.repeat(len(tokens), L, 1)
    full[torch.arange(len(tokens))[:, None], visible] = tokens
    return full


WRONG_03 = {
    "no class token": (check_sequence_length, lambda *a: length(*a, cls=0), "class token is missing"),
    "sides cut": (check_sequence_length, lambda *a: length(*a, up=False), "Patches at the edge are lost"),
    "hidden rounded": (check_sequence_length, lambda *a: length(*a, hidden=round), "not rounded"),
    "visible cut off": (
        check_sequence_length,
        lambda H, W, P, r: 1 + int((1 - r) * (length(H, W, P, 0) - 1)),
        "The number of visible patches is cut off",
    ),
    "the hidden ones": (
        check_sequence_length,
        lambda H, W, P, r: int(r * length(H, W, P, 0, cls=0)),
        "These are the hidden patches",
    ),
    "a float": (check_sequence_length, lambda H, W, P, r: H * W / P**2 * (1 - r), "whole number is wanted"),
    "by quantile": (check_mask, lambda d, r: (d < d.quantile(r, 1, keepdim=True)).float(), "quantiles may not"),
    "one more": (check_mask, lambda d, r: masked(d, r, more=1), "One patch too many"),
    "all for ratio 0": (check_mask, at_most, "With ratio 0 no patch is hidden"),
    "inverted": (check_mask, lambda d, r: 1 - masked(d, r), "0 and 1 are swapped"),
    "the largest": (check_mask, lambda d, r: masked(-d, r), "largest draws"),
    "a threshold": (check_mask, lambda d, r: (d < r).float(), "another number of patches"),
    "numbers for ranks": (check_mask, lambda d, r: (d.argsort(1) < int(r * 11)).float(), "not the rank"),
    "one mask for all": (check_mask, lambda d, r: masked(d[:1].expand(3, -1), r), "order of its own"),
    "numbers returned": (check_mask, lambda d, r: d.argsort(1)[:, : int(r * 11)], "L is 6 instead of 11"),
    "appended": (
        check_put_back,
        lambda t, v, m, L: torch.cat([t, m.expand(len(t), L - t.shape[1], -1)], 1),
        "stand behind the visible ones",
    ),
    "zeros": (check_put_back, lambda t, v, m, L: back(t, v, 0 * m, L), "hidden places hold zeros"),
    "sorted": (check_put_back, lambda t, v, m, L: back(t, v.sort(1)[0], m, L), "that list is not sorted"),
    "first places": (check_put_back, lambda t, v, m, L: back(t, v[:1].expand(2, -1), m, L), "places of the first one"),
    "hidden left out": (check_put_back, lambda t, v, m, L: t, "L is 3 instead of 7"),
}
WRONG = WRONG_01 | WRONG_02 | WRONG_03


@pytest.mark.parametrize(("check", "answer", "message"), WRONG.values(), ids=WRONG)
def test_the_mistake_is_named(check, answer, message):
    with pytest.raises(Mistake, match=message):
        check(answer)
