"""Laws and oracles of every registered decomposition."""

import math

import pytest
import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensornet as tn
from tensornet.decompositions import CP, TT, LowRank, Tucker, on_pytorch
from tensornet.errors import NameTakenError, RankError, UnknownNameError
from tensornet.registry import DECOMPOSITIONS
from tensornet.testing import check_decomposition, random_instance

NAMES = ["cp", "dense", "kronecker", "low_rank", "tt", "tucker"]
shapes = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


@pytest.mark.parametrize("name", NAMES)
def test_laws(name):
    check_decomposition(tn.decomposition(name))


def test_names_are_those_registered():
    assert set(NAMES) <= set(tn.decompositions())


@pytest.mark.parametrize("name", NAMES)
@given(shape=shapes, rank=st.integers(1, 5), seed=st.integers(0, 9))
def test_factor_space_equals_dense(name, shape, rank, seed):
    cls = tn.decomposition(name)
    a, b = random_instance(cls, shape, rank, seed), random_instance(cls, shape, rank, seed + 1)
    dense_a, dense_b = a.to_tensor().detach(), b.to_tensor().detach()
    assert sum(p.numel() for p in a.parameters()) == cls.parameter_count(shape, rank)
    torch.testing.assert_close(a.norm().detach(), dense_a.norm(), rtol=1e-10, atol=1e-12)
    scale = float(dense_a.norm() * dense_b.norm())
    assert abs(a.inner(b).item() - float((dense_a * dense_b).sum())) <= 1e-10 * max(scale, 1)


@pytest.mark.parametrize("name", NAMES)
@given(shape=shapes, rank=st.integers(1, 5), seed=st.integers(0, 99))
def test_random_factors_start_at_unit_norm_whatever_was_drawn(name, shape, rank, seed):
    made = tn.decomposition(name)(shape, rank, generator=torch.Generator().manual_seed(seed))
    for own, factor in made.factors().items():
        slices = factor.T if own.startswith("factor_") else factor.flatten(1)  # columns of CP and Tucker, rows of the rest
        expected = torch.zeros(len(slices)) if own == made.zero else torch.ones(len(slices))
        torch.testing.assert_close(slices.detach().norm(dim=1), expected)


@pytest.mark.parametrize("name", NAMES)
@given(shape=shapes, seed=st.integers(0, 9))
def test_full_rank_reproduces(name, shape, seed):
    cls = tn.decomposition(name)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made = cls.from_tensor(tensor, cls.full_rank(shape))
    torch.testing.assert_close(made.to_tensor().detach(), tensor, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@given(shape=shapes, rank=st.integers(1, 4), seed=st.integers(0, 9))
def test_slices_equal_dense_slices(name, shape, rank, seed):
    if len(shape) < 3:
        return
    made = random_instance(tn.decomposition(name), shape, rank, seed)
    for mode in range(1, len(shape)):
        for index in range(shape[mode]):
            factors = made.take(made.factors(), shape, mode, index)
            rest = (*shape[:mode], *shape[mode + 1 :])
            found = made.reconstruct(factors, rest)
            torch.testing.assert_close(found, made.to_tensor().select(mode, index), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cls", [CP, Tucker, TT])
def test_tensorly_is_the_oracle_of_to_tensor(cls):
    made = random_instance(cls, (4, 5, 6), 3)

    @on_pytorch
    def oracle():
        parts = list(made.factors().values())
        if cls is CP:
            return tl.cp_to_tensor((None, parts))
        return tl.tucker_to_tensor((parts[0], parts[1:])) if cls is Tucker else tl.tt_to_tensor(parts)

    assert torch.equal(made.to_tensor(), oracle())
    assert tl.get_backend() == "numpy", "the caller's TensorLy backend must not change"


def test_known_values():
    cp = CP.from_factors(
        (2, 2, 1), 1, {f"factor_{i}": torch.tensor(v) for i, v in enumerate([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0]]])}
    )
    assert cp.to_tensor().tolist() == [[[15.0], [20.0]], [[30.0], [40.0]]]
    assert cp.norm().item() == pytest.approx(math.sqrt(15**2 + 20**2 + 30**2 + 40**2))


@pytest.mark.parametrize(
    ("name", "shape", "rank", "count"),
    [
        ("cp", (64, 64, 9), 16, 16 * (64 + 64 + 9)),
        ("cp", (8, 8, 1), 50, 50 * 17),
        ("tucker", (64, 64, 9), 16, 64 * 16 * 2 + 9 * 9 + 16 * 16 * 9),
        ("tucker", (64, 64, 9), (4, 5, 6), 64 * 4 + 64 * 5 + 9 * 6 + 4 * 5 * 6),
        ("tt", (64, 9, 64), 16, 64 * 16 + 16 * 9 * 16 + 16 * 64),
        ("tt", (64, 9, 64), (4, 5), 64 * 4 + 4 * 9 * 5 + 5 * 64),
        ("tt", (4, 9, 3), 50, 4 * 4 + 4 * 9 * 3 + 3 * 3),
        ("low_rank", (64, 64, 9), 8, 8 * (64 + 64 * 9)),
        ("kronecker", (64, 64, 9), 2, 2 * 2 * 8 * 8 * 3),
        ("dense", (64, 64, 9), 7, 64 * 64 * 9),
    ],
)
def test_counts(name, shape, rank, count):
    assert tn.decomposition(name).parameter_count(shape, rank) == count


@pytest.mark.parametrize(
    ("name", "shape", "rank"),
    [
        ("cp", (4, 5), (2, 2)),
        ("tucker", (4, 5), (5, 5)),
        ("tucker", (4, 5, 6), (2, 2)),
        ("tt", (4, 5, 6), (5, 5)),
        ("low_rank", (4, 5), (5,)),
    ],
)
def test_tuples_have_to_fit(name, shape, rank):
    with pytest.raises(RankError, match=r"got"):
        tn.decomposition(name)(shape, rank)


def test_tt_accepts_the_ones_at_both_ends():
    assert TT((4, 5, 6), (1, 2, 3, 1)).rank == (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_rank_deficient_and_extreme_tensors(name):
    cls = tn.decomposition(name)
    line = torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 6))[:, :, None] * torch.arange(1.0, 4)
    if name != "kronecker":
        torch.testing.assert_close(cls.from_tensor(line, 3).to_tensor(), line, rtol=1e-4, atol=1e-3)
    for scale in (1e-25, 1e25):
        made = cls.from_tensor(line * scale, cls.full_rank(tuple(line.shape))).to_tensor()
        torch.testing.assert_close(made / scale, line, rtol=1e-3, atol=1e-3)


@given(seed=st.integers(0, 99))
def test_cp_of_a_cp_tensor_is_found(seed):
    made = random_instance(CP, (7, 6, 5), 2, seed)
    found = CP.from_tensor(made.to_tensor().detach(), 4, seed=seed)
    assert (found.to_tensor() - made.to_tensor()).norm().item() <= 0.05 * made.norm().item()


def test_rounding_is_as_good_as_the_best_matrix():
    tensor = torch.randn(12, 10, dtype=torch.float64)
    tail = torch.linalg.svdvals(tensor)[3:].norm()
    for cls in (CP, Tucker, TT, LowRank):
        full = cls.from_tensor(tensor, cls.full_rank((12, 10)))
        error = (full.rounded(3).to_tensor() - tensor).norm()
        torch.testing.assert_close(error.detach(), tail, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_formula(name):
    made = random_instance(tn.decomposition(name), (3, 4, 2), 2)

    def dense(*factors):
        return made.reconstruct(dict(zip(made.factors(), factors, strict=True)), made.shape)

    assert torch.autograd.gradcheck(dense, tuple(p.detach().requires_grad_() for p in made.parameters()))


def test_unknown_name_lists_the_near_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'tucker'"):
        tn.decomposition("tuker")


def test_names_cannot_clash():
    with pytest.raises(NameTakenError, match="already"):
        tn.register("cp")(TT)
    assert DECOMPOSITIONS.get("cp") is CP
    again = [tn.register("again")(type("Again", (CP,), {})) for _ in range(2)]  # a cell of a notebook that is run twice
    assert DECOMPOSITIONS.get("again") is again[1]
    with pytest.raises(NameTakenError):
        tn.register("none")


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip_and_layout(name):
    cls = tn.decomposition(name)
    made = random_instance(cls, (4, 6, 3), 2)
    other = cls((4, 6, 3), 2, dtype=torch.float64)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.to_tensor(), made.to_tensor())
    tensor = torch.randn(6, 4, 3, dtype=torch.float64).transpose(0, 1)
    from_view, from_copy = cls.from_tensor(tensor, 2), cls.from_tensor(tensor.contiguous(), 2)
    torch.testing.assert_close(from_view.to_tensor(), from_copy.to_tensor())


@pytest.mark.parametrize("name", ["low_rank", "kronecker", "cp", "tucker", "tt"])
def test_rounding_to_a_higher_rank_changes_nothing(name):
    made = random_instance(tn.decomposition(name), (6, 5, 4), 2)
    torch.testing.assert_close(made.rounded(4).to_tensor(), made.to_tensor(), rtol=1e-4, atol=1e-5)


def test_components_of_a_low_rank_are_as_many_as_its_rank():
    made = random_instance(LowRank, (30, 40), 3).double()
    found = LowRank.component_norms(made.factors(), made.shape)
    assert len(found) == 3
    torch.testing.assert_close(found, torch.linalg.svdvals(made.to_tensor())[:3])


@pytest.mark.parametrize("name", ["tucker", "tt", "low_rank", "kronecker"])
def test_terms_that_are_rounding_errors_are_no_terms(name):
    cls, shape = tn.decomposition(name), (16, 12, 9)
    made = cls.from_tensor(torch.randn(shape, generator=torch.Generator().manual_seed(0)), 3)
    tensor = made.to_tensor().detach().double().flatten(1)
    norms = cls.component_norms({key: factor.detach().double() for key, factor in made.factors().items()}, shape)
    assert len(norms) == 3
    torch.testing.assert_close(norms.square().sum(), tensor.square().sum(), rtol=1e-5, atol=0)
    zero = {key: torch.zeros_like(factor).double() for key, factor in made.factors().items()}
    assert float(cls.component_norms(zero, shape).sum()) == 0


def test_a_decomposition_that_no_scale_can_multiply_fails_the_check():
    @tn.register("curved")
    class Curved(CP):
        @classmethod
        def reconstruct(cls, factors, shape):
            return torch.sinh(super().reconstruct(factors, shape))

        squared_norm = inner_product = classmethod(lambda *_: None)

    try:
        with pytest.raises(AssertionError, match="linear in"):
            check_decomposition(Curved)
    finally:
        del DECOMPOSITIONS._items["curved"]
