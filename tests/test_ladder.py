"""Ladders of ranks: many ranks from one pass, against TensorLy and dense float64."""

from itertools import pairwise

import pytest
import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensornet as tn
from tensornet.decompositions import CP, TT, LowRank, Spectrum, Tucker

NAMES = ["cp", "kronecker", "low_rank", "tt", "tucker"]
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)


def decaying(*shape, seed=0, power=0.7):
    """A tensor whose singular values fall along every mode."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
    for mode, n in enumerate(shape):
        mixed = torch.randn(n, n, generator=generator, dtype=torch.float64) * torch.arange(1, n + 1) ** -power
        tensor = torch.tensordot(mixed, tensor, ([1], [mode])).movedim(0, mode)
    return tensor


def dense_error(cls, rung, tensor):
    return float((cls.reconstruct(rung.factors, tuple(tensor.shape)) - tensor).square().sum())


@pytest.mark.parametrize("name", NAMES)
@given(shape=shapes, ranks=st.sets(st.integers(1, 9), min_size=1), seed=st.integers(0, 9))
def test_errors_are_those_of_the_factors_and_fall(name, shape, ranks, seed):
    cls, tensor = tn.decomposition(name), decaying(*shape, seed=seed)
    size = float(tensor.square().sum())
    rungs = cls.ladder(Spectrum(tensor), sorted(ranks), seed)
    for rung in rungs:
        assert abs(dense_error(cls, rung, tensor) - rung.error) <= 1e-6 * size
        cls.from_factors(shape, rung.rank, rung.factors)
    asked = [cls.within(shape, rank) for rank in sorted(ranks)]
    errors = [next(r.error for r in rungs if r.rank == rank) for rank in asked]
    assert all(b <= a + 1e-3 * size for a, b in pairwise(errors)), "more rank, no more error"


@pytest.mark.parametrize("name", NAMES)
def test_as_good_as_tensorly_from_the_beginning(name):
    cls, tensor = tn.decomposition(name), decaying(16, 9, 12) if name == "tt" else decaying(16, 12, 9)
    size = float(tensor.square().sum())
    rungs = cls.ladder(Spectrum(tensor), [1, 2, 3, 5, 8], 0)
    for rank in (1, 2, 3, 5, 8):
        afresh = cls.from_tensor(tensor, cls.within(tuple(tensor.shape), rank)).to_tensor().detach()
        wanted = float((afresh - tensor).square().sum()) / size
        found = min(r.error for r in rungs if r.rank == cls.within(tuple(tensor.shape), rank)) / size
        assert found <= wanted + 0.02, f"rank {rank}"


@given(shape=st.tuples(st.integers(2, 8), st.integers(2, 8)), seed=st.integers(0, 9))
def test_matrices_are_truncated_svd(shape, seed):
    tensor = decaying(*shape, seed=seed)
    values = torch.linalg.svdvals(tensor).square()
    for cls in (LowRank, CP, Tucker, TT):
        for rung in cls.ladder(Spectrum(tensor), range(1, min(shape) + 1), 0):
            rank = rung.rank[0] if isinstance(rung.rank, tuple) else rung.rank
            assert rung.error == pytest.approx(float(values[rank:].sum()), abs=1e-8 * float(values.sum()))


def test_the_best_ranks_per_mode_are_found():
    """Rank (2, 6, 3): equal ranks for all modes would waste parameters."""
    core = torch.randn(2, 6, 3, dtype=torch.float64)
    matrices = [torch.randn(n, r, dtype=torch.float64) for n, r in zip((20, 10, 9), core.shape, strict=True)]
    flat = tl.tucker_to_tensor((core.numpy(), [m.numpy() for m in matrices]))
    tensor = torch.from_numpy(flat)
    best = min(
        (r for r in Tucker.ladder(Spectrum(tensor), [1, 2, 3, 4, 6], 0) if r.error < 1e-9 * float(tensor.square().sum())),
        key=lambda r: Tucker.parameter_count((20, 10, 9), r.rank),
    )
    assert best.rank == (2, 6, 3)


def test_a_degenerate_tensor_is_noticed_and_regularised():
    """a∘a∘b + a∘b∘a + b∘a∘a has rank 3 and is approached by rank 2 with ever larger components (de Silva and Lim 2008)."""
    a, b = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64))[0].T
    outer = lambda x, y, z: torch.einsum("i,j,k->ijk", x, y, z)
    tensor = outer(a, a, b) + outer(a, b, a) + outer(b, a, a)
    (two,) = CP.ladder(Spectrum(tensor), [2], 0)
    assert two.note == "regularised: components cancelled"
    largest = max(float(f.norm(dim=0).max()) for f in two.factors.values())
    assert largest**3 < 5 * float(tensor.norm()), "the ridge keeps the components small"
    assert two.error < 0.02 * float(tensor.square().sum())


def test_seeds_and_devices_leave_no_doubt():
    tensor = decaying(9, 8, 9)
    first, again = (CP.ladder(Spectrum(tensor), [3, 6, 20], 1) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.rank == other.rank
        assert all(torch.equal(one.factors[name], other.factors[name]) for name in one.factors)


@pytest.mark.parametrize("name", [*NAMES, "dense"])
def test_components_add_up(name):
    from tensornet.testing import random_instance

    made = random_instance(tn.decomposition(name), (6, 5, 4), 2)
    norms = made.component_norms(made.factors(), made.shape)
    assert (norms.diff() <= 1e-12).all(), "the largest first"
    if name == "cp":
        lengths = [factor.detach().norm(dim=0) for factor in made.factors().values()]
        assert norms.tolist() == pytest.approx(sorted((lengths[0] * lengths[1] * lengths[2]).tolist(), reverse=True))
    else:
        assert norms.square().sum().item() == pytest.approx(made.norm().item() ** 2)
