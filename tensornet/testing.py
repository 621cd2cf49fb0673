"""The laws of a decomposition as a public check, for the built-in ones and for those from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tensornet.decompositions import Bottleneck, Decomposition, Spectrum, name_of
from tensornet.errors import NonFiniteError, RankError, ShapeError
from tensornet.shapes import Shape

SHAPES: tuple[Shape, ...] = ((4, 6), (6, 5, 9), (8, 4, 1), (5, 3, 4, 6))


def check_decomposition(cls: type[Decomposition], shapes: Sequence[Shape] = SHAPES, ranks: Sequence[int] = (1, 3)) -> None:
    """Test a registered decomposition against the laws that `Decomposition` states.

    Args:
        cls: the class.
        shapes: of the tensors to test with.
        ranks: to test with, beside the full rank.

    Raises:
        AssertionError: a law does not hold; the sentence says which, and for which shape and rank.
    """
    name_of(cls)
    for shape in shapes:
        for rank in (*ranks, cls.full_rank(shape)):
            where = f"{cls.__name__} of shape {shape}, rank {rank}"
            _check_new(cls, shape, rank, where)
            _check_count(cls, shape, rank, where)
            _check_measures(cls, shape, rank, where)
            _check_slices(cls, shape, rank, where)
            _check_bottleneck(cls, shape, rank, where)
            _check_rounding(cls, shape, rank, where)
            _check_products(cls, shape, rank, where)
        _check_ladder(cls, shape, ranks)
        _check_full_rank(cls, shape)
        _check_budget(cls, shape)
        _check_refusals(cls, shape)


def random_instance(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], seed: int = 0) -> Decomposition:
    """An instance in float64 all of whose factors are random, the one that starts at zero too."""
    generator = torch.Generator().manual_seed(seed)
    made = cls(shape, rank, dtype=torch.float64)
    with torch.no_grad():
        for factor in made.parameters():
            factor.copy_(torch.randn(factor.shape, generator=generator, dtype=torch.float64))
    return made


def _check_new(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    made = cls(shape, rank, generator=torch.Generator().manual_seed(0))
    dense = made.to_tensor()
    assert tuple(dense.shape) == shape, f"{where}: to_tensor() has shape {tuple(dense.shape)}"
    assert not dense.any(), f"{where}: a new one is not exactly zero"
    (dense * torch.randn(shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    grads = [p.grad for p in made.parameters()]
    assert any(g is not None and g.any() for g in grads), (
        f"{where}: every gradient of a new one is zero; zero one factor only"
    )
    again = cls(shape, rank, generator=torch.Generator().manual_seed(0))
    same = all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert same, f"{where}: the same seed gives other factors"


def _check_count(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    stored = sum(p.numel() for p in cls(shape, rank).parameters())
    assert stored == cls.parameter_count(shape, rank), f"{where}: parameter_count is not the {stored} numbers stored"


def _check_measures(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    a, b = (random_instance(cls, shape, rank, seed) for seed in (1, 2))
    dense_a, dense_b = a.to_tensor().detach(), b.to_tensor().detach()
    size = float(dense_a.norm())
    _close(a.norm().item(), size, size, f"{where}: norm")
    _close(a.inner(b).item(), float((dense_a * dense_b).sum()), size * float(dense_b.norm()), f"{where}: inner")
    doubled = {name: 2 * factor if name == cls.zero else factor for name, factor in a.factors().items()}
    twice = cls.reconstruct(doubled, shape).detach()
    _equal(twice, 2 * dense_a, f"{where}: linear in {cls.zero!r}, the factor that a scale multiplies")
    _close(a.float().inner(a).item(), size**2, size**2, f"{where}: inner of float32 factors", 1e-5)


def _check_slices(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    if len(shape) <= cls.fewest_modes:
        return
    made = random_instance(cls, shape, rank)
    for mode in range(1, len(shape)):
        index = shape[mode] - 1
        factors = cls.take(made.factors(), shape, mode, index)
        if factors is not None:
            found = cls.reconstruct(factors, (*shape[:mode], *shape[mode + 1 :]))
            _equal(found, made.to_tensor().select(mode, index), f"{where}: take(mode={mode})")


def _check_bottleneck(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    if len(shape) > 3:
        return
    made = random_instance(cls, shape, rank)
    bottleneck = cls.bottleneck(made.factors(), shape)
    if bottleneck is not None:
        dense = made.to_tensor()
        dense = dense.transpose(1, 2) if cls.chain and dense.ndim == 3 else dense
        _equal((bottleneck.out @ bottleneck.rows()).reshape(dense.shape), dense, f"{where}: bottleneck")
        last = dense.movedim(1, -1)
        _equal((bottleneck.out @ bottleneck.rows_last()).reshape(last.shape), last, f"{where}: bottleneck, channels last")
    if bottleneck is not None and cls.stacks:
        other = random_instance(cls, shape, rank, seed=2).factors()
        both = cls.bottleneck({n: torch.stack([f, other[n]]) for n, f in made.factors().items()}, shape)
        single = cls.bottleneck(other, shape)
        assert both is not None
        assert single is not None
        for i, one in enumerate((bottleneck, single)):
            for own in (Bottleneck.rows, Bottleneck.rows_last):
                _equal((both.out @ own(both))[i], one.out @ own(one), f"{where}: bottleneck of stacked factors")


def _check_rounding(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    made = random_instance(cls, shape, rank)
    same = made.rounded(rank)
    assert same.shape == made.shape, f"{where}: rounded() has shape {same.shape}"
    lower = made.rounded(1)
    assert lower.rank == cls.feasible_rank(shape, 1), f"{where}: rounded(1) has rank {lower.rank}"
    error = (lower.to_tensor() - made.to_tensor()).norm().item()
    assert error <= made.norm().item() * (1 + 1e-6), f"{where}: rounded(1) is farther away than zero is"


def _check_products(cls: type[Decomposition], shape: Shape, rank: int | tuple[int, ...], where: str) -> None:
    made = random_instance(cls, shape, rank)
    dense = made.to_tensor().detach()
    for mode, n in enumerate(shape):
        matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(mode), dtype=torch.float64)
        factors = cls.mode_product(made.factors(), shape, mode, matrix)
        if factors is not None:
            wanted = torch.tensordot(matrix, dense, ([1], [mode])).movedim(0, mode)
            _equal(cls.reconstruct(factors, shape), wanted, f"{where}: mode_product(mode={mode})", 1e-9)


def _check_ladder(cls: type[Decomposition], shape: Shape, ranks: Sequence[int]) -> None:
    where = f"{cls.__name__} of shape {shape}: ladder"
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rungs = cls.ladder(Spectrum(tensor), sorted(ranks), 0)
    size = float(tensor.square().sum())
    for rung in rungs:
        found = cls.from_factors(shape, rung.rank, rung.factors).to_tensor().detach()
        error = float((found - tensor).square().sum())
        _close(rung.error, error, size, f"{where}: the error at rank {rung.rank}", 1e-6)
        assert rung.error <= size * (1 + 1e-9), f"{where}: rank {rung.rank} is farther away than zero is"
    for rank in ranks:
        wanted = cls.within(shape, rank)
        assert any(rung.rank == wanted for rung in rungs), f"{where}: rank {rank}, stored as {wanted}, is missing"


def _check_full_rank(cls: type[Decomposition], shape: Shape) -> None:
    where = f"{cls.__name__} of shape {shape} at full rank {cls.full_rank(shape)}"
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    made = cls.from_tensor(tensor, cls.full_rank(shape))
    _equal(made.to_tensor(), tensor, f"{where}: from_tensor")
    _equal(made.rounded(cls.full_rank(shape)).to_tensor(), tensor, f"{where}: rounded", 1e-6)
    for dtype in (torch.float16, torch.bfloat16):
        half = cls.from_tensor(tensor.to(dtype), 1)
        assert all(p.dtype == dtype for p in half.parameters()), f"{where}: from_tensor of {dtype} changes the dtype"
    zero = cls.from_tensor(torch.zeros(shape), 2)
    assert not zero.to_tensor().any(), f"{where}: from_tensor of zero is not zero"
    again = [cls.from_tensor(tensor, 2, seed=5).to_tensor() for _ in range(2)]
    assert torch.equal(*again), f"{where}: from_tensor with the same seed differs"


def _check_budget(cls: type[Decomposition], shape: Shape) -> None:
    where = f"{cls.__name__} of shape {shape}"
    fewest, dense = cls.parameter_count(shape, 1), math.prod(shape)
    for budget in {fewest, (fewest + dense) // 2, 2 * dense}:
        if budget >= fewest:
            rank = cls.rank_for_budget(shape, budget)
            assert cls.parameter_count(shape, rank) <= budget, f"{where}: rank_for_budget({budget}) = {rank} is over it"
    _refuses(RankError, lambda: cls.rank_for_budget(shape, fewest - 1), f"{where}: a budget below rank 1")


def _check_refusals(cls: type[Decomposition], shape: Shape) -> None:
    where = f"{cls.__name__} of shape {shape}"
    for rank in (0, -1, 1.5, "2", True, (0,) * len(shape)):
        _refuses(RankError, lambda rank=rank: cls(shape, rank), f"{where}: rank {rank!r}")
    _refuses(NonFiniteError, lambda: cls.from_tensor(torch.full(shape, math.nan), 1), f"{where}: NaN")
    _refuses(ShapeError, lambda: cls((*shape[:-1], 0), 1), f"{where}: an empty mode")


def _refuses(error: type[Exception], call: object, what: str) -> None:
    try:
        call()  # type: ignore[operator]
    except error:
        return
    raise AssertionError(f"{what} is not refused with {error.__name__}")


def _close(found: float, wanted: float, scale: float, what: str, tolerance: float = 1e-10) -> None:
    assert abs(found - wanted) <= tolerance * max(scale, 1e-30), f"{what} is {found}, the dense one {wanted}"


def _equal(found: torch.Tensor, wanted: torch.Tensor, what: str, tolerance: float = 1e-10) -> None:
    assert found.shape == wanted.shape, f"{what} has shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
    error = float((found - wanted).detach().norm() / wanted.detach().norm().clamp_min(1e-30))
    assert error <= tolerance, f"{what} differs from the dense one by {error:.1e} (relative)"
