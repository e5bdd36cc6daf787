"""Pre-norm transformer of the encoder and the decoder (Dosovitskiy et al. 2021): no bias on qkv and out projections."""

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
        # Equal initial queries and keys make tokens attend to similar tokens, so to their neighbors by position code:
        # training leaves its first plateau in half the steps (mimetic initialization, Trockman & Kolter 2023).
        query, key, _ = self.to_qkv.weight.data.chunk(3)
        key.copy_(nn.init.normal_(query, std=dim**-0.5))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        qkv = self.to_qkv(self.norm(x))  # [B, N, 3 heads d]
        q, k, v = rearrange(qkv, "B N (three heads d) -> three B heads N d", three=3, heads=self.heads)
        out = scaled_dot_product_attention(q, k, v, attn_mask=keys)  # [B, heads, N, d]
        return self.to_out(rearrange(out, "B heads N d -> B N (heads d)"))


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
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = Attention(dim, heads=heads, dim_head=dim_head)
            self.layers.append(nn.ModuleList([attention, FeedForward(dim, hidden=int(dim * mlp_ratio))]))

    def outputs(self, x: Tensor, keys: Tensor | None = None) -> Iterator[Tensor]:
        """The output of each block in order, [B, N, D], before the final norm."""
        for attention, feed_forward in self.layers:
            x = x + attention(x, keys)
            x = x + feed_forward(x)
            yield x

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        for output in self.outputs(x, keys):
            x = output
        return self.norm(x)
