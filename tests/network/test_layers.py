"""The layers against a direct transcription of equations 1 to 6, pixels as rows, in float64."""

import math
import statistics

import pytest
import torch
from torch.overrides import TorchFunctionMode

from vt_hub.network.vt_layers import (
    ClusterTokenizer,
    DistinctTokenizer,
    FilterTokenizer,
    GraphMixer,
    PoolingTokenizer,
    Projector,
    RecurrentTokenizer,
    TransformerMixer,
    VTModule,
    token_grid,
)

B, C, D, L, H, W = 3, 10, 12, 8, 7, 5


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [e / sum(exps) for e in exps]


def rows(x):
    """One image (C, H, W) to pixels as rows, (P, C)."""
    return torch.stack([x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])])


def naive_pool(x, w, scale):
    """softmax_HW(X W / scale)^T X for one image, element by element; w is (C, L)."""
    X = rows(x)
    logits = [
        [sum(X[p, c].item() * w[c, t].item() for c in range(X.shape[1])) / scale for p in range(len(X))]
        for t in range(w.shape[1])
    ]
    return naive_tokens(x, logits)


def naive_tokens(x, logits):
    """softmax_HW(logits)^T X for one image; the logits are a list of those of each token."""
    X, A = rows(x), torch.tensor([softmax(of_token) for of_token in logits])  # (L, P)
    return torch.stack([sum(A[t, p] * X[p] for p in range(len(X))) for t in range(len(A))]), A


def assert_close(actual, expected):
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-10, f'relative error {error}'


def linear(module):
    """The (in, out) matrix of a linear layer; the identity for nn.Identity."""
    return module.weight.t() if hasattr(module, 'weight') else None


def apply(x, module):
    matrix = linear(module)
    return x if matrix is None else x @ matrix


@pytest.mark.parametrize('token_dim', [C, D])
@pytest.mark.parametrize('kind', ['filter', 'recurrent'])
def test_tokenizer_is_equation_1_or_2(kind, token_dim):
    x, tokens = torch.randn(B, C, H, W), torch.randn(B, L, token_dim)
    tokenizer = (FilterTokenizer if kind == 'filter' else RecurrentTokenizer)(C, token_dim, L)
    out, attn = tokenizer(x, tokens)
    for b in range(B):
        w = linear(tokenizer.filters) if kind == 'filter' else (tokens[b] @ linear(tokenizer.token_to_filter)).t()
        expected, A = naive_pool(x[b], w, math.sqrt(C))
        assert_close(out[b], apply(expected, tokenizer.proj))
        assert_close(attn[b], A)
    torch.testing.assert_close(attn.sum(-1), torch.ones(B, L), rtol=0, atol=1e-12)


def unit(w):
    return w / math.sqrt(sum(v.item() ** 2 for v in w))


@torch.no_grad()
@pytest.mark.parametrize('token_dim', [C, D])
@pytest.mark.parametrize('recurrent', [False, True])
def test_distinct_tokenizer_is_equation_1_or_2_with_shared_and_own_logits(recurrent, token_dim):
    x, tokens = 3 * torch.randn(B, C, H, W), torch.randn(B, L, token_dim)
    tokenizer = DistinctTokenizer(C, token_dim, L, recurrent=recurrent)
    tokenizer.filters[1:] += 0.3  # so that the own part of one token is stronger than the others'
    out, attn = tokenizer(x, tokens)
    seen = []
    for b in range(B):
        logits = []
        for t in range(L):
            w = unit(tokenizer.filters[t])
            if recurrent:
                asked = torch.stack([tokens[b, t] @ row for row in tokenizer.token_to_filter.weight])
                w = w + 0.5 * (unit(asked) if asked.norm() > 1 else asked)
            found = [(pixel @ w).item() for pixel in rows(x[b])]
            logits.append([value / statistics.pstdev(found) for value in found])
        shared = [statistics.mean(values) for values in zip(*logits, strict=True)]
        for t in range(L):
            own = [value - other for value, other in zip(logits[t], shared, strict=True)]
            seen.append(statistics.pstdev(own))
            both = [s + o / min(seen[-1], 1) for s, o in zip(shared, own, strict=True)]
            logits[t] = [value / statistics.pstdev(both) for value in both]
        expected, A = naive_tokens(x[b], logits)
        assert_close(out[b], apply(expected, tokenizer.proj))
        assert_close(attn[b], A)
    assert min(seen) < 1 < max(seen)


@torch.no_grad()
def test_distinct_logits_know_neither_the_scale_of_the_map_nor_that_of_the_filters():
    tokenizer, x = DistinctTokenizer(C, D, L), torch.randn(B, C, H, W)
    attn = tokenizer(x)[1]
    assert_close(tokenizer(100 * x)[1], attn)
    tokenizer.filters.mul_(100)
    assert_close(tokenizer(x)[1], attn)
    assert tokenizer(torch.zeros_like(x))[0].isfinite().all()


def test_a_training_can_make_tokens_neither_uniform_nor_single_pixels():
    """Whatever the filters, a token reads about 60 % of the pixels: exp(entropy), 0.3 to 0.8 of them here."""
    x = torch.randn(B, C, 16, 16)
    for sign in (1, -1):
        tokenizer = DistinctTokenizer(C, D, L)
        optimizer = torch.optim.Adam(tokenizer.parameters(), lr=0.03)
        for _ in range(40):
            attn = tokenizer(x)[1]
            entropy = -(attn * attn.log()).sum(2).mean()
            optimizer.zero_grad()
            (sign * entropy).backward()
            optimizer.step()
        assert 0.3 < entropy.exp() / attn.shape[2] < 0.8


def test_a_single_distinct_token_learns_in_bfloat16():
    """What it has for itself is zero; making that zero stronger would only make its rounding stronger."""
    found = []
    for mixed in (False, True):
        torch.manual_seed(0)
        tokenizer, x = DistinctTokenizer(64, 64, 1).float(), torch.randn(8, 64, 10, 10, dtype=torch.float32)
        with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
            T, _ = tokenizer(x)
        (T.float() * torch.randn(8, 1, 64, dtype=torch.float32)).sum().backward()
        found.append(tokenizer.filters.grad)
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


@torch.no_grad()
def test_equal_tokens_do_not_align_the_filters_of_a_distinct_tokenizer():
    x, tokens = torch.randn(B, C, H, W), torch.randn(B, 1, D).expand(-1, L, -1)
    apart = DistinctTokenizer(C, D, L, recurrent=True)(x, tokens)[1]
    together = RecurrentTokenizer(C, D, L)(x, tokens)[1]
    assert (apart[:, :1] - apart[:, 1:]).abs().amax((0, 2)).min() > 0.01
    assert_close(together, together[:, :1].expand(-1, L, -1))


@torch.no_grad()
def test_even_nearly_equal_filters_give_tokens_of_their_own():
    """Half of what the logits of a token say is its own: the cosine of two maps is 0.6, for normal distributions."""
    tokenizer, x = DistinctTokenizer(C, D, L), torch.randn(B, C, 32, 32)
    tokenizer.filters.copy_(torch.ones(L, C) + 0.01 * torch.randn(L, C))
    maps = torch.nn.functional.normalize(tokenizer(x)[1], dim=2)
    cosine = (maps @ maps.transpose(1, 2)).sum((1, 2)).sub(L) / (L * (L - 1))
    assert 0.5 < cosine.min() <= cosine.max() < 0.7


def test_pooling_tokenizer_averages_cells():
    x = torch.randn(B, C, 8, 12)
    tokenizer = PoolingTokenizer(C, D, L)  # 2 x 4 cells of 4 x 3 pixels
    out, attn = tokenizer(x)
    cells = torch.stack([x[:, :, i : i + 4, j : j + 3].mean((2, 3)) for i in (0, 4) for j in (0, 3, 6, 9)], 1)
    assert_close(out, apply(cells, tokenizer.proj))
    assert_close(apply(attn @ x.flatten(2).transpose(1, 2), tokenizer.proj), out)


def naive_kmeans(x, grid, num_iters):
    """Listing 1 by distances, one image; an empty cluster keeps its centroid."""
    X = torch.stack([row / row.norm() for row in rows(x)])
    U = [u / u.norm() for u in rows(torch.nn.functional.adaptive_avg_pool2d(x[None], grid)[0])]
    for _ in range(num_iters):
        nearest = [min(range(len(U)), key=lambda t: (pixel - U[t]).norm().item()) for pixel in X]
        for t in range(len(U)):
            members = [X[p] for p in range(len(X)) if nearest[p] == t]
            if members:
                mean = sum(members) / len(members)
                U[t] = mean / mean.norm()
    return torch.stack(U)


def test_cluster_tokenizer_is_equation_6():
    x = torch.randn(B, C, H, W)
    tokenizer = ClusterTokenizer(C, D, L)
    out, attn = tokenizer(x)
    for b in range(B):
        expected, A = naive_pool(x[b], naive_kmeans(x[b], (2, 4), 3).t(), 1.0)
        assert_close(out[b], apply(expected, tokenizer.proj))
        assert_close(attn[b], A)


def test_cluster_tokenizer_survives_empty_clusters():
    x = torch.zeros(1, C, 8, 8)
    x[:, 0] = 1  # one colour: all pixels fall into the first cluster
    out, attn = ClusterTokenizer(C, D, L)(x)
    assert out.isfinite().all()
    torch.testing.assert_close(attn.sum(-1), torch.ones(1, L))
    assert ClusterTokenizer(C, D, L)(torch.zeros(1, C, 8, 8))[0].isfinite().all()


def test_cluster_tokenizer_needs_no_pixel_by_cluster_by_channel_tensor():
    sizes = []

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    x = torch.randn(2, 64, 16, 16)
    with Sizes():
        ClusterTokenizer(64, 64, 16)(x)
    assert max(sizes) <= x.numel()


def naive_layer_norm(x, norm):
    return torch.stack(
        [(r - r.mean()) / (r.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias for r in x]
    )


def naive_transformer(T, mixer):
    U = naive_layer_norm(T, mixer.norm1)
    K, Q, F1, F2 = map(linear, (mixer.k, mixer.q, mixer.fc1, mixer.fc2))
    scores = (U @ K) @ (U @ Q).t() / math.sqrt(K.shape[1])
    gate1, gate2 = (getattr(gate, 'gamma', 1) for gate in (mixer.gate1, mixer.gate2))
    T = T + torch.tensor([softmax(row.tolist()) for row in scores]) @ U * gate1
    return T + (naive_layer_norm(T, mixer.norm2) @ F1).clamp_min(0) @ F2 * gate2


def naive_mixer(T, mixer):
    if isinstance(mixer, TransformerMixer):
        return naive_transformer(T, mixer)
    return T + mixer.graph.weight[:, :, 0] @ T if isinstance(mixer, GraphMixer) else T


def randomize(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('mixer_class', [TransformerMixer, GraphMixer, torch.nn.Identity])
def test_mixer_is_equations_3_and_4(mixer_class, gated):
    mixer = randomize(mixer_class(D, L, gated))
    tokens = torch.randn(B, L, D)
    for out, T in zip(mixer(tokens), tokens, strict=True):
        assert_close(out, naive_mixer(T, mixer))


def naive_projector(x, T, projector):
    """Equation 5 in the paper's own order: a query for every pixel."""
    X = rows(x)
    W_Q, W_K, norm = projector.query.weight, linear(projector.key), projector.norm
    scores = (X @ W_Q) @ (T @ W_K).t() / math.sqrt(T.shape[1])
    projected = torch.tensor([softmax(row.tolist()) for row in scores]) @ apply(T, projector.value)
    projected = (projected - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return X + projected


@torch.no_grad()
@pytest.mark.parametrize('token_dim', [C, D])
def test_projector_is_equation_5(token_dim):
    projector = randomize(Projector(C, token_dim))
    projector.norm.running_mean.normal_()
    projector.norm.running_var.uniform_(0.5, 2)
    x, tokens = torch.randn(B, C, H, W), torch.randn(B, L, token_dim)
    out = projector(x, tokens)
    for b in range(B):
        assert_close(rows(out[b]), naive_projector(x[b], tokens[b], projector))


@torch.no_grad()
@pytest.mark.parametrize('distinct', [False, True])
@pytest.mark.parametrize('mixer', ['transformer', 'graph', 'none'])
@pytest.mark.parametrize('tokenizer', ['filter', 'recurrent', 'pooling', 'cluster'])
def test_module_chains_tokenizer_mixer_and_projector(tokenizer, mixer, distinct):
    module = randomize(VTModule(C, D, L, tokenizer, mixer, distinct_tokens=distinct))
    x, tokens = torch.randn(B, C, H, W), torch.randn(B, L, D)
    out, out_tokens, attn = module(x, tokens)
    pooled, _ = module.tokenizer(x, tokens)
    for b in range(B):
        T = naive_layer_norm(naive_mixer(pooled[b], module.mixer), module.norm)
        assert_close(out_tokens[b], T)
        assert_close(rows(out[b]), naive_projector(x[b], T, module.projector))
    torch.testing.assert_close(attn.sum(-1), torch.ones(B, L), rtol=0, atol=1e-12)


def test_module_without_projector_leaves_the_map():
    x = torch.randn(B, C, H, W)
    assert VTModule(C, D, L, projector=False)(x)[0] is x


def test_token_grid_is_the_papers():
    assert [token_grid(n) for n in (16, 32, 64)] == [(4, 4), (4, 8), (8, 8)]


@pytest.mark.parametrize('name', ['tokenizer', 'token_mixer'])
def test_unknown_kinds_are_named(name):
    with pytest.raises(ValueError, match=f"Unknown {name} 'x'; use one of '(filter|transformer)'"):
        VTModule(C, D, L, **{name: 'x'})
