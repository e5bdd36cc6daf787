"""Pre-norm transformer of the encoder and the decoder (Dosovitskiy et al. 2021): no bias on qkv and out projections."""

from __future__ import annotations

from collections.abc import Iterator

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Multi-head self-attention with its norm before it; [B, N, D] -> [B, N, D].

    keys [B, 1, 1, N] bool: the tokens that may be attended to; None: all of them.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        # Born alike, queries and keys make tokens attend to tokens like themselves, so to their neighbours by position
        # code: training leaves its first plateau in half the steps (Trockman & Kolter 2023, mimetic initialisation).
        query, key, _ = self.to_qkv.weight.data.chunk(3)
        key.copy_(nn.init.normal_(query, std=dim**-0.5))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        q, k, v = rearrange(self.to_qkv(self.norm(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.to_out(rearrange(scaled_dot_product_attention(q, k, v, attn_mask=keys), "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """norm, linear, exact GELU, linear; [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, *, hidden: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """Residual blocks and a final norm; [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, *, depth: int, heads: int, dim_head: int, mlp_ratio: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(dim, heads=heads, dim_head=dim_head),
                    FeedForward(dim, hidden=int(dim * mlp_ratio)),
                ]
            )
            for _ in range(depth)
        )

    def outputs(self, x: Tensor, keys: Tensor | None = None) -> Iterator[Tensor]:
        """What each block gives, in order, before the final norm."""
        for attention, feed_forward in self.layers:
            x = x + attention(x, keys)
            x = x + feed_forward(x)
            yield x

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        for output in self.outputs(x, keys):
            x = output
        return self.norm(x)
