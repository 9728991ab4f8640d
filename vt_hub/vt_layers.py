"""The modules of Visual Transformers, one class per equation of the paper.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677

Shapes: B images; a feature map X of C channels, H x W, P = H * W pixels; L visual tokens T of width D (the paper's CT).
The paper writes pixels as rows, (P, C). Maps stay (B, C, H, W) here and each product is the transpose of the paper's,
so no map is ever permuted. Products are associated in the cheapest exact order.

Not in the paper's equations, but needed to train at its learning rate: the 1/sqrt(width) scales in the softmaxes, the
LayerNorms on the tokens and the BatchNorm on the projected map.
"""

from typing import Dict, Optional, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, use_fused_attn

__all__ = [
    'ClusterTokenizer',
    'FilterTokenizer',
    'GraphMixer',
    'PoolingTokenizer',
    'Projector',
    'RecurrentTokenizer',
    'TransformerMixer',
    'VTModule',
]


def token_grid(num_tokens: int) -> Tuple[int, int]:
    """The most square (rows, columns) with rows * columns = num_tokens: 4 x 4, 4 x 8, 8 x 8 for 16, 32, 64."""
    rows = max(r for r in range(1, int(num_tokens**0.5) + 1) if num_tokens % r == 0)
    return rows, num_tokens // rows


class Tokenizer(nn.Module):
    """Groups the pixels of a map into L tokens: T = softmax_P(logits)^T X, the common part of equations 1, 2 and 6.

    The pooled pixels are widened from C to D by `proj` (W_C), the map that section 4 needs where C != CT.
    """

    def __init__(self, dim: int, token_dim: int, device=None, dtype=None):
        super().__init__()
        self.proj = (
            nn.Identity() if token_dim == dim else nn.Linear(dim, token_dim, bias=False, device=device, dtype=dtype)
        )

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor]) -> torch.Tensor:
        """How strongly each pixel belongs to each token, (B, L, P)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, tokens: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: Feature map, (B, C, H, W).
            tokens: Tokens of the previous module, (B, L, D); only the recurrent tokenizer reads them.

        Returns:
            Tokens (B, L, D) and the token attention (B, L, P), which sums to 1 over the pixels.
        """
        attn = self.logits(x, tokens).softmax(dim=-1)
        return self.proj(attn @ x.flatten(2).transpose(1, 2)), attn


class FilterTokenizer(Tokenizer):
    """Equation 1 (section 3.1.1): A = softmax_P(X W_A / sqrt(C)), T = A^T X with learned filters W_A (C, L)."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.scale = dim**-0.5
        self.filters = nn.Linear(dim, num_tokens, bias=False, device=device, dtype=dtype)

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor]) -> torch.Tensor:
        return (self.filters.weight * self.scale) @ x.flatten(2)


class RecurrentTokenizer(Tokenizer):
    """Equation 2 (section 3.1.2): as equation 1 with filters W_R = T_in W_(T->R) made from the previous tokens."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.scale = dim**-0.5
        self.token_to_filter = nn.Linear(token_dim, dim, bias=False, device=device, dtype=dtype)

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor]) -> torch.Tensor:
        assert tokens is not None, 'A recurrent tokenizer needs the tokens of a previous module.'
        return (self.token_to_filter(tokens) * self.scale) @ x.flatten(2)


class PoolingTokenizer(Tokenizer):
    """The baseline of Table 3: each token is the average of one cell of a regular grid (4 x 4 for 16 tokens)."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.grid = token_grid(num_tokens)

    def forward(self, x: torch.Tensor, tokens: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, torch.Tensor]:
        B, _, H, W = x.shape
        pooled = F.adaptive_avg_pool2d(x, self.grid).flatten(2).transpose(1, 2)
        rows = F.adaptive_avg_pool1d(torch.diag(x.new_ones((H,))), self.grid[0]).t()  # pooling weights, (rows, H)
        cols = F.adaptive_avg_pool1d(torch.diag(x.new_ones((W,))), self.grid[1]).t()
        attn = (rows[:, None, :, None] * cols[None, :, None, :]).reshape(1, pooled.shape[1], H * W)
        return self.proj(pooled), attn.expand(B, -1, -1)


class ClusterTokenizer(Tokenizer):
    """Equation 6 (appendix C): equation 1 with the k-means centroids of the image's own pixels as filters.

    Listing 1 of the paper with its faults mended: assignment by dot product of unit vectors (the same as by distance,
    without a (B, C, P, L) tensor), and a cluster without pixels keeps its centroid instead of dividing by zero. The
    logits are not divided by sqrt(C): centroids have unit length. No gradient flows through the clustering.

    Args:
        num_iters: Iterations of Lloyd's algorithm; the paper gives no number, 3 fits its FLOPs in Table 3.
    """

    def __init__(self, dim: int, token_dim: int, num_tokens: int, num_iters: int = 3, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.grid = token_grid(num_tokens)
        self.num_iters = num_iters

    def centroids(self, x: torch.Tensor) -> torch.Tensor:
        """Unit centroids (B, L, C) of the pixels of x (B, C, H, W), started from x pooled to L cells."""
        centroids = F.normalize(F.adaptive_avg_pool2d(x, self.grid).flatten(2), dim=1).transpose(1, 2)
        pixels = F.normalize(x.flatten(2), dim=1)
        for _ in range(self.num_iters):
            similarity = centroids @ pixels
            members = torch.zeros_like(similarity).scatter(1, similarity.argmax(dim=1, keepdim=True), 1.0)
            means = members @ pixels.transpose(1, 2)
            centroids = torch.where((means != 0).any(dim=-1, keepdim=True), F.normalize(means, dim=-1), centroids)
        return centroids

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor]) -> torch.Tensor:
        return self.centroids(x.detach()) @ x.flatten(2)


class TransformerMixer(nn.Module):
    """Equations 3 and 4 (section 3.2): one attention head without a value matrix, then two pointwise layers.

    U = LN(T); T' = T + softmax_L((U K)(U Q)^T / sqrt(D/2)) U; T_out = T' + relu(LN(T') F1) F2, inner widths D/2.
    """

    fused_attn: torch.jit.Final[bool]

    def __init__(self, token_dim: int, num_tokens: int, drop_path: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        hidden_dim = token_dim // 2
        self.scale = hidden_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.norm1 = nn.LayerNorm(token_dim, **dd)
        self.k = nn.Linear(token_dim, hidden_dim, bias=False, **dd)
        self.q = nn.Linear(token_dim, hidden_dim, bias=False, **dd)
        self.norm2 = nn.LayerNorm(token_dim, **dd)
        self.fc1 = nn.Linear(token_dim, hidden_dim, bias=False, **dd)
        self.fc2 = nn.Linear(hidden_dim, token_dim, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def attention(self, u: torch.Tensor) -> torch.Tensor:
        k, q = self.k(u), self.q(u)  # the rows of the paper's attention matrix are K's: what SDPA calls the query
        if self.fused_attn:
            return F.scaled_dot_product_attention(k.unsqueeze(1), q.unsqueeze(1), u.unsqueeze(1)).squeeze(1)
        return ((k * self.scale) @ q.transpose(1, 2)).softmax(dim=-1) @ u

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.fc2(F.relu(self.fc1(self.norm2(tokens)))))


class GraphMixer(nn.Module):
    """The graph convolution of Table 5, T_out = T + G T with one learned (L, L) matrix G for all images."""

    def __init__(self, token_dim: int, num_tokens: int, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()
        self.graph = nn.Conv1d(num_tokens, num_tokens, 1, bias=False, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        return tokens + self.drop_path(self.graph(tokens))


class IdentityMixer(nn.Identity):
    """No relation between tokens: the row `None` of Table 5."""

    def __init__(self, token_dim: int, num_tokens: int, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()


class Projector(nn.Module):
    """Equation 5 (section 3.3): X_out = X + BN(softmax_L((X W_Q)(T W_K)^T / sqrt(D)) (T W_V)).

    (X W_Q)(T W_K)^T is computed as X (T W_K W_Q^T)^T: W_Q then runs on L tokens and not on every pixel. `value` (W_V)
    narrows the tokens from D to C, which section 4 needs where C != CT.
    """

    def __init__(self, dim: int, token_dim: int, drop_path: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.scale = token_dim**-0.5
        self.key = nn.Linear(token_dim, token_dim, bias=False, **dd)
        self.query = nn.Linear(token_dim, dim, bias=False, **dd)
        self.value = nn.Identity() if token_dim == dim else nn.Linear(token_dim, dim, bias=False, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Feature map (B, C, H, W) and tokens (B, L, D) to the augmented feature map (B, C, H, W)."""
        attn = ((self.query(self.key(tokens)) * self.scale) @ x.flatten(2)).softmax(dim=1)
        values = self.value(tokens).transpose(1, 2)
        if self.norm.training:
            projected = self.norm((values @ attn).reshape(x.shape))
        else:  # with fixed statistics the norm is affine, and attention sums to 1: it can run on L tokens
            projected = (self.norm(values.unsqueeze(3)).squeeze(3) @ attn).reshape(x.shape)
        return self.drop_path(projected).add_(x)


TOKENIZERS: Dict[str, Type[nn.Module]] = dict(
    filter=FilterTokenizer, recurrent=RecurrentTokenizer, pooling=PoolingTokenizer, cluster=ClusterTokenizer
)
TOKEN_MIXERS: Dict[str, Type[nn.Module]] = dict(transformer=TransformerMixer, graph=GraphMixer, none=IdentityMixer)


class VTModule(nn.Module):
    """One Visual Transformer (Figure 1): tokenize the map, relate the tokens, project them back onto the map.

    Args:
        dim: Channels C of the feature map.
        token_dim: Width D of the tokens.
        num_tokens: Number L of tokens.
        tokenizer: 'filter', 'recurrent', 'pooling' or 'cluster'.
        token_mixer: 'transformer', 'graph' or 'none'.
        projector: Project the tokens back; if False the map passes unchanged.
        drop_path: Stochastic depth rate of the residuals.
    """

    def __init__(
        self,
        dim: int,
        token_dim: int,
        num_tokens: int,
        tokenizer: str = 'filter',
        token_mixer: str = 'transformer',
        projector: bool = True,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        for kind, name, known in (('tokenizer', tokenizer, TOKENIZERS), ('token_mixer', token_mixer, TOKEN_MIXERS)):
            if name not in known:
                raise ValueError(f'Unknown {kind} {name!r}; use one of {", ".join(map(repr, known))}.')
        self.tokenizer = TOKENIZERS[tokenizer](dim, token_dim, num_tokens, **dd)
        self.mixer = TOKEN_MIXERS[token_mixer](token_dim, num_tokens, drop_path=drop_path, **dd)
        self.norm = nn.LayerNorm(token_dim, **dd)
        self.projector = Projector(dim, token_dim, drop_path=drop_path, **dd) if projector else None

    def forward(
        self,
        x: torch.Tensor,
        tokens: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            x: Feature map, (B, C, H, W).
            tokens: Tokens of the previous module, (B, L, D).

        Returns:
            Augmented feature map (B, C, H, W), tokens (B, L, D) and token attention (B, L, P).
        """
        tokens, attn = self.tokenizer(x, tokens)
        tokens = self.norm(self.mixer(tokens))
        if self.projector is not None:
            x = self.projector(x, tokens)
        return x, tokens, attn
