"""Mirrors clipseg3d/blocks/embedding_norm.py: RunningWhitening."""

import pytest
import torch

from clipseg3d.blocks.embedding_norm import RunningWhitening

E = 6


def draw(count, seed=0, spread=None):
    """Reports (1, count, e) in a narrow cone, varying by 10, 5, 3 and 2 along rotated axes."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([10.0, 5.0, 3.0, 2.0, 0.0, 0.0]) if spread is None else spread
    axes, _ = torch.linalg.qr(torch.randn(E, E, generator=torch.Generator().manual_seed(9)))
    varied = torch.randn(1, count, E, generator=generator) * spread
    return (varied @ axes.T + 50), axes


def all_of(tokens):
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


def test_moments_are_those_of_every_token_that_counted():
    tokens, _ = draw(40)
    mask = torch.rand(1, 40, generator=torch.Generator().manual_seed(1)) > 0.3
    whitening = RunningWhitening(E)
    for start in (0, 3, 4, 15, 30):
        end = {0: 3, 3: 4, 4: 15, 15: 30, 30: 40}[start]
        whitening(tokens[:, start:end], mask[:, start:end])
    kept = tokens[mask].double()
    torch.testing.assert_close(whitening.mean.double(), kept.mean(dim=0), rtol=1e-5, atol=1e-4)
    expected = torch.cov(kept.T, correction=0)
    torch.testing.assert_close(whitening.covariance.double(), expected, rtol=1e-3, atol=1e-2)
    assert whitening.count == mask.sum()


def test_varying_directions_get_equal_variance_and_others_none():
    tokens, axes = draw(4000)
    whitening = RunningWhitening(E, floor=1e-3)
    whitening(tokens, all_of(tokens))
    white = (tokens[0] - whitening.mean) @ whitening.matrix
    variances = (white @ axes).var(dim=0)
    torch.testing.assert_close(variances[:4], torch.ones(4), rtol=0.02, atol=0)
    assert variances[4:].max() < 1e-3


def test_scale_of_each_direction():
    """s / (s + r)^1.5 by hand for variances 4, 1, 0 and a floor of half their mean."""
    whitening = RunningWhitening(3, floor=0.5)
    tokens = torch.tensor([[[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]]]) * 2**0.5
    whitening(tokens, all_of(tokens))
    rest = 0.5 * 5 / 3
    expected = torch.tensor([4 / (4 + rest) ** 1.5, 1 / (1 + rest) ** 1.5, 0])
    torch.testing.assert_close(whitening.matrix, torch.diag(expected))


def test_a_small_difference_becomes_readable():
    """Two kinds that differ along the direction of least variance end up far apart."""
    tokens, axes = draw(200, spread=torch.tensor([10.0, 5.0, 3.0, 2.0, 1.0, 0.0]))
    kind = torch.arange(200) % 2 * 2.0 - 1
    tokens = tokens + kind[:, None] * axes[:, 5] * 0.8
    share = 0.8**2 / tokens.var(dim=(0, 1)).sum()
    assert share < 0.01
    whitening = RunningWhitening(E, floor=0.01)
    white = whitening(tokens, all_of(tokens))[0]
    between = (white[kind > 0].mean(dim=0) - white[kind < 0].mean(dim=0)) / 2
    assert between.square().sum() / white.square().sum(dim=1).mean() > 0.08


def test_every_token_gets_one_length():
    tokens, _ = draw(30)
    white = RunningWhitening(E)(tokens, all_of(tokens))
    torch.testing.assert_close(white.norm(dim=-1), torch.full((1, 30), E**0.5), rtol=1e-3, atol=0)


def test_matrix_is_taken_anew_when_the_number_has_doubled():
    tokens, _ = draw(16)
    whitening = RunningWhitening(E)
    taken, before = [], whitening.matrix.clone()
    for index in range(16):
        whitening(tokens[:, index : index + 1], all_of(tokens[:, :1]))
        if not torch.equal(whitening.matrix, before):
            taken.append(index + 1)
            before = whitening.matrix.clone()
    assert taken == [2, 4, 8, 16]


def test_evaluation_keeps_everything():
    tokens, _ = draw(20)
    whitening = RunningWhitening(E)
    whitening(tokens, all_of(tokens))
    before = {name: value.clone() for name, value in whitening.state_dict().items()}
    whitening.eval()(7 * tokens, all_of(tokens))
    for name, value in whitening.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_token_changes_nothing():
    tokens, _ = draw(20)
    whitening = RunningWhitening(E)
    whitening(tokens, all_of(tokens))
    before = {name: value.clone() for name, value in whitening.state_dict().items()}
    whitening(tokens * 2, ~all_of(tokens))
    whitening(tokens[:, :0], all_of(tokens)[:, :0])
    for name, value in whitening.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_equal_reports_vary_in_nothing_and_give_nothing(batches):
    """Rounding must not be blown up to the length of a real difference."""
    report = torch.randn(1, 1, E, generator=torch.Generator().manual_seed(3)).expand(2, 3, E)
    whitening = RunningWhitening(E)
    for _ in range(batches):
        noise = 1e-7 * torch.randn(report.shape, generator=torch.Generator().manual_seed(4))
        whitening(report + noise, all_of(report))
    white = whitening.eval()(report, all_of(report))
    if batches:
        assert white.abs().max() < 0.05
    else:
        torch.testing.assert_close(
            white.norm(dim=-1), torch.full((2, 3), E**0.5), rtol=1e-3, atol=0
        )


def test_autocast_gives_the_float32_result():
    tokens, _ = draw(64)
    plain, cast = RunningWhitening(E), RunningWhitening(E)
    expected = plain(tokens, all_of(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        result = cast(tokens, all_of(tokens))
    torch.testing.assert_close(result, expected)


def test_half_precision_module():
    tokens, _ = draw(64)
    white = RunningWhitening(E).bfloat16()(tokens.bfloat16(), all_of(tokens))
    assert white.dtype == torch.bfloat16
    assert white.isfinite().all()


def test_state_holds_the_statistics():
    tokens, _ = draw(20)
    whitening = RunningWhitening(E)
    whitening(tokens, all_of(tokens))
    other = RunningWhitening(E)
    other.load_state_dict(whitening.state_dict())
    more, _ = draw(30, seed=4)
    assert torch.equal(other(more, all_of(more)), whitening(more, all_of(more)))


def test_rounding_is_no_variance(monkeypatch):
    """On such a matrix, LAPACK's eigh has been seen to return NaN."""

    def fail(matrix):
        return torch.full((len(matrix),), torch.nan), matrix

    whitening = RunningWhitening(E)
    whitening.mean.fill_(50)
    whitening.covariance.fill_(1e-18)
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    assert torch.equal(
        whitening._new_matrix(whitening.covariance, whitening.mean, whitening.matrix), torch.eye(E)
    )


def test_a_graph_gives_the_same_statistics():
    plain, other = RunningWhitening(E), RunningWhitening(E)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    for seed in range(4):  # the matrix is new after 8, 16 and 32 tokens, and not after 24
        tokens, _ = draw(8, seed=seed)
        expected = plain(tokens, all_of(tokens))
        torch.testing.assert_close(compiled(tokens, all_of(tokens)), expected)
    torch.testing.assert_close(other.state_dict(), plain.state_dict())
    assert other.used == 32
