"""Patch embedding for any set of bands: a small network generates the convolution's kernels from the wavelengths.

Source: DOFA (Xiong et al. 2024, arXiv 2403.15356), as released with Clay v1.5.
"""

from contextlib import nullcontext

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

WAVE_DIM = 128  # width of the wavelength code and of the kernel generator
LATENT_TOKENS = 128
KERNEL_SCALE = 0.02  # on the kernels, not on the bias


def wave_code(waves: Tensor) -> Tensor:
    """Wavelengths [C], um -> [C, 128]: 64 sines, then 64 cosines of wave x 10000^(-i/63)."""
    i = torch.arange(WAVE_DIM // 2, device=waves.device)
    angle = waves.float()[:, None] * 10_000.0 ** (-i / (WAVE_DIM // 2 - 1))  # [C, 64]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class WaveMLP(nn.Module):
    """code -> code + gelu(l2(gelu(l1 code))); [C, 128] -> [C, 128]."""

    def __init__(self):
        super().__init__()
        self.l1 = nn.Linear(WAVE_DIM, WAVE_DIM)
        self.l2 = nn.Linear(WAVE_DIM, WAVE_DIM)

    def forward(self, code: Tensor) -> Tensor:
        return code + F.gelu(self.l2(F.gelu(self.l1(code))))


class KernelGenerator(nn.Module):
    """Band tokens [C, 128] -> kernels [C, kernel_size] and, with bias_size, one bias [bias_size] shared by all bands.

    One post-norm transformer layer over the sequence 128 latent tokens | C band tokens | 1 bias token.
    """

    def __init__(self, kernel_size: int, *, bias_size: int | None):
        super().__init__()
        self.weight_tokens = nn.Parameter(0.02 * torch.randn(LATENT_TOKENS, WAVE_DIM))
        self.bias_token = nn.Parameter(0.02 * torch.randn(1, WAVE_DIM))
        layer = nn.TransformerEncoderLayer(
            WAVE_DIM, nhead=4, dim_feedforward=2048, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.fc_weight = nn.Linear(WAVE_DIM, kernel_size)
        self.fc_bias = nn.Linear(WAVE_DIM, bias_size) if bias_size else None

    def forward(self, bands: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = torch.cat([self.weight_tokens, bands, self.bias_token])[None]  # [1, 128 + C + 1, 128]
        # Only band and bias tokens are queries: the outputs of latent tokens are unused.
        layer, queries = self.encoder.layers[0], tokens[:, LATENT_TOKENS:]  # [1, C + 1, 128]
        x = layer.norm1(queries + layer.self_attn(queries, tokens, tokens, need_weights=False)[0])
        x = layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x))))[0]  # [C + 1, 128]
        kernels = KERNEL_SCALE * self.fc_weight(x[:-1] + bands)  # [C, kernel_size]
        return kernels, None if self.fc_bias is None else self.fc_bias(x[-1])


XAVIER_LAYERS = {"l1", "l2", "fc_weight", "fc_bias", "linear1", "linear2", "out_proj"}


class _DynamicLayer(nn.Module):
    """Wavelengths -> kernels, shared by both ends of the network."""

    def __init__(self, dim: int, *, patch_size: int, with_bias: bool):
        super().__init__()
        self.dim, self.patch_size = dim, patch_size
        self.weight_generator = KernelGenerator(dim * patch_size**2, bias_size=dim if with_bias else None)
        self.fclayer = WaveMLP()
        for name, module in self.named_modules():
            if name.rsplit(".", 1)[-1] in XAVIER_LAYERS:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def generate(self, waves: Tensor) -> tuple[Tensor, Tensor | None]:
        """Wavelengths [C], um -> kernels [C, D*P*P] in the layer's own order, and the bias [D] or None."""
        code = wave_code(waves).to(self.fclayer.l1.weight.dtype)
        return self.weight_generator(self.fclayer(code))


def _without_autocast(device: str):
    """In bfloat16, kernels of similar bands lose their differences: the tokens' cosine with float32 falls to 0.997."""
    active = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


class PatchEmbedding(_DynamicLayer):
    """Pixels [B, C, H, W] with H, W multiples of P, waves [C] -> patch tokens [B, L, D], row-major."""

    def __init__(self, dim: int, *, patch_size: int):
        super().__init__(dim, patch_size=patch_size, with_bias=True)

    def kernels(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution for these wavelengths: weight [D, C, P, P] and bias [D]."""
        rows, bias = self.generate(waves)
        return rearrange(rows, "C (D p q) -> D C p q", D=self.dim, p=self.patch_size), bias

    def forward(self, pixels: Tensor, waves: Tensor, visible: Tensor | None = None) -> Tensor:
        """visible [B, V]: embed only these patches, in this order -> [B, V, D]. Never under autocast."""
        with _without_autocast(pixels.device.type):
            return self._embed(pixels, waves, visible)

    def _embed(self, pixels: Tensor, waves: Tensor, visible: Tensor | None) -> Tensor:
        weight, bias = self.kernels(waves)  # [D, C, P, P], [D]
        # A matrix product over each patch's pixels: the same numbers as a P-strided convolution, and faster.
        patches = rearrange(pixels, "B C (h p) (w q) -> B (h w) (C p q)", p=self.patch_size, q=self.patch_size)
        if visible is not None:
            patches = patches.gather(1, repeat(visible, "B V -> B V n", n=patches.shape[-1]))  # [B, V, C*P*P]
        return F.linear(patches.to(weight.dtype), rearrange(weight, "D C p q -> D (C p q)"), bias)


class PixelHead(_DynamicLayer):
    """Tokens [B, L, D], waves [C] -> pixels of each patch [B, L, C*P*P], bands outermost; no bias."""

    def __init__(self, dim: int, *, patch_size: int):
        super().__init__(dim, patch_size=patch_size, with_bias=False)

    def forward(self, tokens: Tensor, waves: Tensor) -> Tensor:
        rows, _ = self.generate(waves)  # [C, P*P*D]
        return F.linear(tokens, rearrange(rows, "C (p q D) -> (C p q) D", p=self.patch_size, D=self.dim))
