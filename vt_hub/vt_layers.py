"""The modules of Visual Transformers, one class per equation of the paper.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677

Shapes: B images; a feature map X of C channels, H x W, P = H * W pixels; L visual tokens T of width D (the paper's CT).
The paper writes pixels as rows, (P, C). Maps stay (B, C, H, W) here and each product is the transpose of the paper's,
so no map is ever permuted or copied, whatever its memory format. Products are associated in the cheapest exact order:
with fixed statistics a projector adds a product of two small matrices to the map, and the sum is not made where only
products with it are asked for.

Not in the paper's equations, but needed to train at its learning rate: the 1/sqrt(width) scales in the softmaxes, the
LayerNorms on the tokens and the BatchNorm on the projected map.
"""

from typing import Dict, Optional, Tuple, Type

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath, use_fused_attn
from torch.nn.utils.fusion import fuse_linear_bn_eval

__all__ = [
    'ClusterTokenizer',
    'FilterTokenizer',
    'GraphMixer',
    'PoolingTokenizer',
    'Projector',
    'RecurrentTokenizer',
    'TransformerMixer',
    'VTModule',
    'with_added',
]

# what projectors have added to a map X: values (B, C, K) and attention (B, K, P), the map is X + values @ attention
Added = Optional[Tuple[torch.Tensor, torch.Tensor]]
FEW_ROWS = 64  # of tokens, up to which a matrix product on a CPU spends its time on the weights


def token_grid(num_tokens: int) -> Tuple[int, int]:
    """The most square (rows, columns) with rows * columns = num_tokens: 4 x 4, 4 x 8, 8 x 8 for 16, 32, 64."""
    rows = max(r for r in range(1, int(num_tokens**0.5) + 1) if num_tokens % r == 0)
    return rows, num_tokens // rows


@torch.fx.wrap
def project_tokens(tokens: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """F.linear, with the weights as the left factor where tokens are few: CPUs then read them without rearranging."""
    if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
        columns = tokens.flatten(0, -2).t()
        plain = type(weight) in (torch.Tensor, nn.Parameter)  # and not quantised
        if plain and columns.device.type == 'cpu' and columns.shape[1] <= FEW_ROWS:
            out = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
            return out.t().unflatten(0, tokens.shape[:-1])
    return F.linear(tokens, weight, bias)


class TokenLinear(nn.Linear):
    """A linear layer on visual tokens (B, L, D)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return project_tokens(tokens, self.weight, self.bias)


@torch.fx.wrap
def product_like(values: torch.Tensor, attn: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """values @ attn, of (B, C, L) and (B, L, P), in the shape and memory format of x (B, C, H, W)."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        rows = attn.transpose(1, 2) @ values.transpose(1, 2)
        return rows.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return (values @ attn).unflatten(2, x.shape[2:])


def with_added(x: torch.Tensor, added: Added) -> torch.Tensor:
    """The map X (B, C, H, W) with what projectors have added to it."""
    if added is None:
        return x
    values, attn = added
    return product_like(values, attn, x).add_(x)


def filter_map(filters: torch.Tensor, x: torch.Tensor, added: Added) -> torch.Tensor:
    """Filters (L, C) or (B, L, C) times the map's pixels, (B, L, P)."""
    out = filters @ x.flatten(2)
    if added is None:
        return out
    values, attn = added
    return torch.baddbmm(out, filters @ values, attn)


def pool_map(weights: torch.Tensor, x: torch.Tensor, added: Added) -> torch.Tensor:
    """Sums (B, L, C) of the map's pixels by weights (B, L, P)."""
    out = weights @ x.flatten(2).transpose(1, 2)
    if added is None:
        return out
    values, attn = added
    return torch.baddbmm(out, weights @ attn.transpose(1, 2), values.transpose(1, 2))


class Tokenizer(nn.Module):
    """Groups the pixels of a map into L tokens: T = softmax_P(logits)^T X, the common part of equations 1, 2 and 6.

    The pooled pixels are widened from C to D by `proj` (W_C), the map that section 4 needs where C != CT.
    """

    def __init__(self, dim: int, token_dim: int, device=None, dtype=None):
        super().__init__()
        self.proj = (
            nn.Identity() if token_dim == dim else TokenLinear(dim, token_dim, bias=False, device=device, dtype=dtype)
        )

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor], added: Added) -> torch.Tensor:
        """How strongly each pixel belongs to each token, (B, L, P)."""
        raise NotImplementedError

    def forward(
        self, x: torch.Tensor, tokens: Optional[torch.Tensor] = None, added: Added = None
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: Feature map, (B, C, H, W).
            tokens: Tokens of the previous module, (B, L, D); only the recurrent tokenizer reads them.
            added: What previous modules have added to the map.

        Returns:
            Tokens (B, L, D) and the token attention (B, L, P), which sums to 1 over the pixels.
        """
        attn = self.logits(x, tokens, added).softmax(dim=-1)
        return self.proj(pool_map(attn, x, added)), attn


class MapFilters(nn.Module):
    """A linear layer on the pixels of a map (B, C, H, W), to (B, L, P); no nn.Linear, which tools call with one map."""

    def __init__(self, dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear

    def forward(self, x: torch.Tensor, added: Added, scale: float) -> torch.Tensor:
        return filter_map(self.weight * scale, x, added)


class FilterTokenizer(Tokenizer):
    """Equation 1 (section 3.1.1): A = softmax_P(X W_A / sqrt(C)), T = A^T X with learned filters W_A (C, L)."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.scale = dim**-0.5
        self.filters = MapFilters(dim, num_tokens, device=device, dtype=dtype)

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor], added: Added) -> torch.Tensor:
        return self.filters(x, added, self.scale)


class RecurrentTokenizer(Tokenizer):
    """Equation 2 (section 3.1.2): as equation 1 with filters W_R = T_in W_(T->R) made from the previous tokens."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.scale = dim**-0.5
        self.token_to_filter = TokenLinear(token_dim, dim, bias=False, device=device, dtype=dtype)

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor], added: Added) -> torch.Tensor:
        assert tokens is not None, 'A recurrent tokenizer needs the tokens of a previous module.'
        return filter_map(self.token_to_filter(tokens) * self.scale, x, added)


class PoolingTokenizer(Tokenizer):
    """The baseline of Table 3: each token is the average of one cell of a regular grid (4 x 4 for 16 tokens)."""

    def __init__(self, dim: int, token_dim: int, num_tokens: int, device=None, dtype=None):
        super().__init__(dim, token_dim, device=device, dtype=dtype)
        self.grid = token_grid(num_tokens)

    def forward(
        self, x: torch.Tensor, tokens: Optional[torch.Tensor] = None, added: Added = None
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        x = with_added(x, added)
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

    def logits(self, x: torch.Tensor, tokens: Optional[torch.Tensor], added: Added) -> torch.Tensor:
        centroids = self.centroids(with_added(x, added).detach())
        return filter_map(centroids, x, added)


@torch.fx.wrap
def attention(k: torch.Tensor, q: torch.Tensor, u: torch.Tensor, scale: float, fused: bool) -> torch.Tensor:
    """softmax(scale * k q^T) u, by SDPA if `fused`. The rows are k's, as in the paper: what SDPA calls the query."""
    if fused:
        return F.scaled_dot_product_attention(k.unsqueeze(1), q.unsqueeze(1), u.unsqueeze(1), scale=scale).squeeze(1)
    return ((k * scale) @ q.transpose(1, 2)).softmax(dim=-1) @ u


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
        self.k = TokenLinear(token_dim, hidden_dim, bias=False, **dd)
        self.q = TokenLinear(token_dim, hidden_dim, bias=False, **dd)
        self.norm2 = nn.LayerNorm(token_dim, **dd)
        self.fc1 = TokenLinear(token_dim, hidden_dim, bias=False, **dd)
        self.fc2 = TokenLinear(hidden_dim, token_dim, bias=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        u = self.norm1(tokens)
        # on CPUs SDPA has no kernel for values wider than keys, and is slower than the three steps
        fused = self.fused_attn and u.device.type != 'cpu'
        tokens = tokens + self.drop_path(attention(self.k(u), self.q(u), u, self.scale, fused))
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
    narrows the tokens from D to C, which section 4 needs where C != CT. A norm in place of `norm` must have fixed
    statistics in evaluation mode, too.
    """

    def __init__(self, dim: int, token_dim: int, drop_path: float = 0.0, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.scale = token_dim**-0.5
        self.key = TokenLinear(token_dim, token_dim, bias=False, **dd)
        self.query = TokenLinear(token_dim, dim, bias=False, **dd)
        self.value = nn.Identity() if token_dim == dim else TokenLinear(token_dim, dim, bias=False, **dd)
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def attend(self, x: torch.Tensor, tokens: torch.Tensor, added: Added) -> torch.Tensor:
        """How much each pixel takes of each token, (B, L, P)."""
        return filter_map(self.query(self.key(tokens)) * self.scale, x, added).softmax(dim=1)

    def addition(self, x: torch.Tensor, tokens: torch.Tensor, added: Added = None) -> Tuple[torch.Tensor, torch.Tensor]:
        """What the tokens add to the map, with fixed statistics: values (B, C, L) and attention (B, L, P).

        The norm is then affine, and the attention sums to 1: it can run on L tokens instead of P pixels.
        """
        values = self.norm(self.value(tokens).transpose(1, 2).unsqueeze(3)).squeeze(3)
        return self.drop_path(values), self.attend(x, tokens, added)

    @torch.jit.ignore
    @torch.no_grad()
    def fuse(self) -> 'Projector':
        """Merge W_K into W_Q, and the norm into W_V where there is one, for inference; returns itself."""
        if isinstance(self.key, nn.Linear):
            dtype = self.query.weight.dtype
            wide = torch.promote_types(dtype, torch.float32)
            merged = self.query.weight.to(wide) @ self.key.weight.to(wide)
            self.query.weight = nn.Parameter(merged.to(dtype), requires_grad=False)
            self.key = nn.Identity()
        if isinstance(self.value, nn.Linear) and not isinstance(self.norm, nn.Identity):
            self.value = fuse_linear_bn_eval(self.value, self.norm)
            self.norm = nn.Identity()
        return self

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Feature map (B, C, H, W) and tokens (B, L, D) to the augmented feature map (B, C, H, W)."""
        if not self.norm.training:
            return with_added(x, self.addition(x, tokens))
        values, attn = self.value(tokens).transpose(1, 2), self.attend(x, tokens, None)
        return self.drop_path(self.norm(product_like(values, attn, x))).add_(x)


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
        added: Added = None,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, Added]:
        """
        Args:
            x: Feature map, (B, C, H, W).
            tokens: Tokens of the previous module, (B, L, D).
            added: What previous modules have added to the map.

        Returns:
            Feature map (B, C, H, W), tokens (B, L, D), token attention (B, L, P), and what has been added to the map
            but is not in it: `with_added` is the augmented map.
        """
        tokens, attn = self.tokenizer(x, tokens, added)
        tokens = self.norm(self.mixer(tokens))
        if self.projector is not None:
            if self.projector.norm.training:
                x, added = self.projector(with_added(x, added), tokens), None
            else:
                values, shares = self.projector.addition(x, tokens, added)
                if added is not None:
                    values, shares = torch.cat([added[0], values], dim=2), torch.cat([added[1], shares], dim=1)
                added = (values, shares)
        return x, tokens, attn, added
