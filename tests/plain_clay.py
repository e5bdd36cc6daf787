"""Clay v1.5 in plain NumPy, float64, loops where loops read best. Slow, and independent of the library: it shares no
code with it, only parameter names. Source: the release notes, the DOFA paper, and the public tensors' names."""

import math
from math import erf

import numpy as np

gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), otypes=[float])


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def norm(p, name, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, heads):
    """[N, heads*d] each; one head after the other."""
    d, out = q.shape[1] // heads, []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        out.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(d)) @ v[:, part])
    return np.concatenate(out, 1)


def generate(p, name, waves):
    """Kernel rows [C, .] and bias (or None) from wavelengths in um."""
    code = np.array([[f(wave * 10000 ** (-i / 63)) for f in (math.sin, math.cos) for i in range(64)] for wave in waves])
    bands = code + gelu(linear(p, f"{name}.fclayer.l2", gelu(linear(p, f"{name}.fclayer.l1", code))))
    g = f"{name}.weight_generator"
    x = np.concatenate([p[f"{g}.weight_tokens"], bands, p[f"{g}.bias_token"]])
    layer = f"{g}.encoder.layers.0"
    qkv = x @ p[f"{layer}.self_attn.in_proj_weight"].T + p[f"{layer}.self_attn.in_proj_bias"]
    q, k, v = np.split(qkv, 3, axis=1)
    x = norm(p, f"{layer}.norm1", x + linear(p, f"{layer}.self_attn.out_proj", attend(q, k, v, 4)))
    x = norm(p, f"{layer}.norm2", x + linear(p, f"{layer}.linear2", gelu(linear(p, f"{layer}.linear1", x))))
    kernels = 0.02 * linear(p, f"{g}.fc_weight", x[128:-1] + bands)
    return kernels, (linear(p, f"{g}.fc_bias", x[-1]) if f"{g}.fc_bias.weight" in p else None)


def transformer(p, name, x, heads):
    depth = len({key.split(".")[len(name.split(".")) + 1] for key in p if key.startswith(f"{name}.layers.")})
    for i in range(depth):
        block = f"{name}.layers.{i}"
        q, k, v = np.split(linear(p, f"{block}.0.to_qkv", norm(p, f"{block}.0.norm", x)), 3, axis=1)
        x = x + linear(p, f"{block}.0.to_out", attend(q, k, v, heads))
        hidden = gelu(linear(p, f"{block}.1.net.1", norm(p, f"{block}.1.net.0", x)))
        x = x + linear(p, f"{block}.1.net.3", hidden)
    return norm(p, f"{name}.norm", x)


def position(h, w, dim, gsd, time, latlon):
    count = (dim - 8) // 4
    f = [gsd / 10000 ** (2 * (j / (count - 1)) / (dim - 8)) for j in range(count)]
    rows = []
    for y in range(h):
        for x in range(w):
            grid = [math.sin(x * a) for a in f] + [math.cos(x * a) for a in f]
            grid += [math.sin(y * a) for a in f] + [math.cos(y * a) for a in f]
            rows.append(grid + list(time) + list(latlon))
    return np.array(rows)


def forward(p, config, pixels, time, latlon, gsd, waves, visible):
    """One image [C, H, W], sides multiples of P, and the indices of its visible patches in order.

    Returns the encoder's tokens [1+V, D], the reconstruction [L, C P P], the representation.
    """
    C, H, W = pixels.shape
    P, D, d = config.patch_size, config.dim, config.decoder_dim
    h, w = H // P, W // P
    kernels, bias = generate(p, "encoder.patch_embedding", waves)
    kernels = kernels.reshape(C, D, P, P)
    tokens = np.zeros((h * w, D))
    for y in range(h):
        for x in range(w):
            patch = pixels[:, y * P : (y + 1) * P, x * P : (x + 1) * P]
            for k in range(D):
                tokens[y * w + x, k] = (patch * kernels[:, k]).sum() + bias[k]
    tokens += position(h, w, D, gsd, time, latlon)
    tokens = np.concatenate([p["encoder.cls_token"][0], tokens[visible]])
    tokens = transformer(p, "encoder.transformer", tokens, config.heads)

    small = linear(p, "decoder.enc_to_dec", tokens) if D != d else tokens
    patches = np.tile(p["decoder.mask_patch"], (h * w, 1))
    patches[visible] = small[1:]
    patches = patches + position(h, w, d, gsd, time, latlon)
    out = transformer(p, "decoder.transformer", np.concatenate([small[:1], patches]), config.decoder_heads)[1:]
    rows, _ = generate(p, "decoder.embed_to_pixels", waves)
    rows = rows.reshape(C, P * P, d)
    reconstruction = np.einsum("ld,cpd->lcp", out, rows).reshape(h * w, C * P * P)
    return tokens, reconstruction, linear(p, "proj", tokens[0])


def reconstruction_loss(reconstruction, pixels, masked, P):
    C, H, W = pixels.shape
    losses = []
    for index in masked:
        y, x = divmod(int(index), W // P)
        patch = pixels[:, y * P : (y + 1) * P, x * P : (x + 1) * P].ravel()
        losses.append(np.abs(reconstruction[index] - patch).mean())
    return np.mean(losses)
