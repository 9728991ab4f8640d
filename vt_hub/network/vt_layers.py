"""The modules of Visual Transformers, https://arxiv.org/abs/2006.03677. Each forward is an equation of the paper.

X (B, P, C): the P = H * W pixels of a map with C channels. T (B, L, D): the L visual tokens of width D (the paper's
CT). A: the attention between them. Training at the paper's learning rate needs three parts that its equations lack:
1/sqrt(width) scales, LayerNorms on the tokens and a BatchNorm on the map; docs/architecture.md has `distinct_tokens`.
"""

from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale
from torch import Tensor


def pixels(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as pixels (B, P, C)."""
    return x.flatten(2).transpose(1, 2)


def deviation(Z: Tensor) -> Tensor:
    """Standard deviation over the pixels of logits (B, P, L), (B, 1, L)."""
    return Z.std(dim=1, correction=0, keepdim=True).clamp(min=1e-3)


def token_grid(num_tokens: int) -> Tuple[int, int]:
    """The most square (rows, columns) with rows * columns = num_tokens: 4 x 4, 4 x 8, 8 x 8 for 16, 32, 64."""
    rows = max(r for r in range(1, int(num_tokens**0.5) + 1) if num_tokens % r == 0)
    return rows, num_tokens // rows


class Tokenizer(nn.Module):
    """Groups the pixels of a map (B, C, H, W) into tokens, T = A^T X W_C. Returns T (B, L, D) and A^T (B, L, P).

    A gives the share of each pixel in each token, and sums to 1 over the pixels. W_C (`proj`) widens tokens from C to
    D; section 4 needs it if C != CT. Recurrent tokenizers also read the previous module's tokens (B, L, D).
    """

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__()
        self.scale, self.grid = dim**-0.5, token_grid(num_tokens)
        self.proj = nn.Identity() if token_dim == dim else nn.Linear(dim, token_dim, False, device, dtype)


class FilterTokenizer(Tokenizer):
    """Equation 1 (section 3.1.1): A = softmax_P(X W_A / sqrt(C)), T = A^T X W_C."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, num_tokens, device=device, dtype=dtype)
        self.filters = nn.Linear(dim, num_tokens, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, tokens: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        X = pixels(x)
        A = (self.filters(X) * self.scale).softmax(dim=1)
        return self.proj(A.transpose(1, 2) @ X), A.transpose(1, 2)


class RecurrentTokenizer(Tokenizer):
    """Equation 2 (section 3.1.2): W_R = T_in W_(T->R), A = softmax_P(X W_R^T / sqrt(C)), T = A^T X W_C."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, num_tokens, device=device, dtype=dtype)
        self.token_to_filter = nn.Linear(token_dim, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, tokens: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        assert tokens is not None, 'A recurrent tokenizer needs the tokens of a previous module.'
        X, W_R = pixels(x), self.token_to_filter(tokens)
        A = (X @ W_R.transpose(1, 2) * self.scale).softmax(dim=1)
        return self.proj(A.transpose(1, 2) @ X), A.transpose(1, 2)


class DistinctTokenizer(Tokenizer):
    """Equations 1 and 2 with tokens that stay apart: A = softmax_P(u(S + O / min(std_P(O), 1))), T = A^T X W_C.

    u(Z) = Z / std_P(Z) gives logits unit deviation over the pixels. Of Z = u(X W^T), S = mean_L(Z) is what the tokens
    share, and O = Z - S is each token's own part, which is never the weaker one. The filters W (L, C) are W_A with rows
    of unit length. A recurrent tokenizer adds half of T_in W_(T->R), with rows clipped to unit length.
    """

    def __init__(self, dim: int, token_dim: int, num_tokens: int, recurrent: bool = False, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__(dim, token_dim, num_tokens, **dd)
        self.filters = nn.Parameter(torch.empty(num_tokens, dim, **dd))
        self.token_to_filter = nn.Linear(token_dim, dim, bias=False, **dd) if recurrent else None
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.filters, std=self.scale)

    def forward(self, x: Tensor, tokens: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        X, W = pixels(x), F.normalize(self.filters, dim=1)
        if self.token_to_filter is not None and tokens is not None:
            W = W + F.normalize(self.token_to_filter(tokens), dim=2, eps=1.0) / 2
        Z = X @ W.transpose(-2, -1)
        Z = Z / deviation(Z)
        shared = Z.mean(dim=2, keepdim=True)
        own = Z - shared if self.grid != (1, 1) else torch.zeros_like(shared)  # one token shares with none
        Z = shared + own / deviation(own).clamp(max=1.0)
        A = (Z / deviation(Z)).softmax(dim=1)  # each token reads about 60 % of the pixels
        return self.proj(A.transpose(1, 2) @ X), A.transpose(1, 2)


class PoolingTokenizer(Tokenizer):
    """The baseline of Table 3: each token is the average of one cell of a regular grid (4 x 4 for 16 tokens)."""

    def forward(self, x: Tensor, tokens: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        B, _, H, W = x.shape
        pooled = pixels(F.adaptive_avg_pool2d(x, self.grid))
        rows = F.adaptive_avg_pool1d(torch.diag(x.new_ones((H,))), self.grid[0]).t()  # pooling weights, (rows, H)
        cols = F.adaptive_avg_pool1d(torch.diag(x.new_ones((W,))), self.grid[1]).t()
        A = (rows[:, None, :, None] * cols[None, :, None, :]).reshape(1, pooled.shape[1], H * W)
        return self.proj(pooled), A.expand(B, -1, -1)


class ClusterTokenizer(Tokenizer):
    """Equation 6 (appendix C): equation 1 with the k-means centroids of the image's own pixels as filters.

    Listing 1 of the paper with two fixes. Pixels are assigned by dot product of unit vectors: the same as by distance,
    without a (B, C, P, L) tensor. An empty cluster keeps its centroid instead of dividing by zero. The logits are not
    divided by sqrt(C), because centroids have unit length. No gradient flows through the clustering.
    """

    def centroids(self, x: Tensor) -> Tensor:
        """Unit centroids (B, L, C) of the pixels of x (B, C, H, W). They start from x pooled to L cells."""
        X = F.normalize(pixels(x), dim=2)
        U = F.normalize(pixels(F.adaptive_avg_pool2d(x, self.grid)), dim=2)
        for _ in range(3):  # the paper gives no number; 3 fits its FLOPs in Table 3
            similarity = U @ X.transpose(1, 2)
            members = torch.zeros_like(similarity).scatter(1, similarity.argmax(dim=1, keepdim=True), 1.0)
            sums = members @ X
            U = torch.where((sums != 0).any(dim=2, keepdim=True), F.normalize(sums, dim=2), U)
        return U

    def forward(self, x: Tensor, tokens: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        X, U = pixels(x), self.centroids(x.detach())
        A = (X @ U.transpose(1, 2)).softmax(dim=1)
        return self.proj(A.transpose(1, 2) @ X), A.transpose(1, 2)


class TransformerMixer(nn.Module):
    """Equations 3 and 4 (section 3.2): T' = T + softmax_L((T K)(T Q)^T / sqrt(D/2)) T, T_out = T' + relu(T' F1) F2.

    Pre-norm: each branch reads LN(T). There is one head, no value matrix, and inner widths are D/2. With `gated`, each
    branch has a learned scale per channel that starts small; without it, what tokens have in common drowns the rest.
    """

    token_logits = ('k', 'q')  # layers whose product is the logits of the softmax over tokens

    def __init__(self, token_dim: int, num_tokens: int, gated: bool, drop_path: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        hidden_dim, self.scale = token_dim // 2, (token_dim // 2) ** -0.5
        self.norm1 = nn.LayerNorm(token_dim, **dd)
        self.k = nn.Linear(token_dim, hidden_dim, bias=False, **dd)
        self.q = nn.Linear(token_dim, hidden_dim, bias=False, **dd)
        self.gate1, self.gate2 = (LayerScale(token_dim, 0.1, **dd) if gated else nn.Identity() for _ in range(2))
        self.norm2 = nn.LayerNorm(token_dim, **dd)
        self.fc1 = nn.Linear(token_dim, hidden_dim, bias=False, **dd)
        self.fc2 = nn.Linear(hidden_dim, token_dim, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, T: Tensor) -> Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        U = self.norm1(T)
        A = (self.k(U) @ self.q(U).transpose(1, 2) * self.scale).softmax(dim=2)
        T = T + self.drop_path(self.gate1(A @ U))
        return T + self.drop_path(self.gate2(self.fc2(F.relu(self.fc1(self.norm2(T))))))


class GraphMixer(nn.Module):
    """The graph convolution of Table 5, T_out = T + G T with one learned (L, L) matrix G for all images."""

    def __init__(self, token_dim: int, num_tokens: int, gated: bool, drop_path: float = 0.0, device=None, dtype=None):
        super().__init__()
        self.graph = nn.Conv1d(num_tokens, num_tokens, 1, bias=False, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, T: Tensor) -> Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        return T + self.drop_path(self.graph(T))


class Projector(nn.Module):
    """Equation 5 (section 3.3): X_out = X + BN(softmax_L((X W_Q)(T W_K)^T / sqrt(D)) (T W_V)); W_V where C != CT."""

    token_logits = ('key', 'query')

    def __init__(self, dim: int, token_dim: int, drop_path: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.scale = token_dim**-0.5
        self.key = nn.Linear(token_dim, token_dim, bias=False, **dd)
        self.query = nn.Linear(token_dim, dim, bias=False, **dd)  # W_Q^T
        self.value = nn.Identity() if token_dim == dim else nn.Linear(token_dim, dim, bias=False, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, T: Tensor) -> Tensor:
        """Feature map (B, C, H, W) and tokens (B, L, D) to the augmented feature map (B, C, H, W)."""
        X, K = pixels(x), self.query(self.key(T))  # (X W_Q)(T W_K)^T = X (T W_K W_Q^T)^T saves P - L products
        A = (X @ K.transpose(1, 2) * self.scale).softmax(dim=2)
        out = (self.value(T).transpose(1, 2) @ A.transpose(1, 2)).unflatten(2, x.shape[2:])  # (A T W_V)^T
        return x + self.drop_path(self.norm(out))


TOKENIZERS: Dict[str, Callable[..., Any]] = dict(
    filter=FilterTokenizer, recurrent=RecurrentTokenizer, pooling=PoolingTokenizer, cluster=ClusterTokenizer
)
DISTINCT_TOKENIZERS = TOKENIZERS | dict(filter=DistinctTokenizer, recurrent=partial(DistinctTokenizer, recurrent=True))
TOKEN_MIXERS: Dict[str, Callable[..., Any]] = dict(transformer=TransformerMixer, graph=GraphMixer, none=nn.Identity)


class VTModule(nn.Module):
    """One Visual Transformer (Figure 1): tokenizes the map, relates the tokens, projects them back onto the map.

    Args:
        dim: Channels C of the feature map.
        token_dim: Width D of the tokens.
        num_tokens: Number L of tokens.
        tokenizer: 'filter', 'recurrent', 'pooling' or 'cluster'.
        token_mixer: 'transformer', 'graph' or 'none'.
        projector: Project the tokens back; if False, the map stays unchanged.
        distinct_tokens: Keep tokens apart; if False, use the paper's equations.
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
        distinct_tokens: bool = True,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        for kind, name, known in (('tokenizer', tokenizer, TOKENIZERS), ('token_mixer', token_mixer, TOKEN_MIXERS)):
            if name not in known:
                raise ValueError(f'Unknown {kind} {name!r}; use one of {", ".join(map(repr, known))}.')
        tokenizers = DISTINCT_TOKENIZERS if distinct_tokens else TOKENIZERS
        self.tokenizer = tokenizers[tokenizer](dim, token_dim, num_tokens, **dd)
        self.mixer = TOKEN_MIXERS[token_mixer](token_dim, num_tokens, gated=distinct_tokens, drop_path=drop_path, **dd)
        self.norm = nn.LayerNorm(token_dim, **dd)
        self.projector = Projector(dim, token_dim, drop_path=drop_path, **dd) if projector else None

    def forward(self, x: Tensor, tokens: Optional[Tensor] = None) -> Tuple[Tensor, Tensor, Tensor]:
        """A map (B, C, H, W) and the previous tokens (B, L, D) to map, tokens (B, L, D) and attention A^T (B, L, P)."""
        tokens, attn = self.tokenizer(x, tokens)
        tokens = self.norm(self.mixer(tokens))
        if self.projector is not None:
            x = self.projector(x, tokens)
        return x, tokens, attn
