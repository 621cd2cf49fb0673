"""The contract of a decomposition: how a tensor is stored in factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.decompositions.orthogonal import singular_values
from tensornet.decompositions.spectrum import Spectrum
from tensornet.errors import NonFiniteError, RankError, ShapeError
from tensornet.lean import Lean
from tensornet.shapes import Rank, Shape, check_rank, check_shape, count

Factors = Mapping[str, Tensor]


class Rung(NamedTuple):
    """One step of a ladder of ranks for one tensor.

    Attributes:
        rank: as the decomposition stores it.
        error: ‖T − T̂‖², squared, not relative.
        factors: of T̂, float64.
        note: what a reader should know of how it was found; empty where there is nothing.
    """

    rank: Rank
    error: float
    factors: Factors
    note: str = ""


class Decomposition(Lean, ABC):
    """A tensor of fixed shape, stored as factors; its parameters are the factors.

    A subclass states integers (`feasible_rank`, `factor_shapes`) and mathematics (`reconstruct`, `decompose`), each a
    function of its arguments alone. The other class methods are for speed: what is left out is done on the dense tensor.

    Laws, which `tensornet.testing.check_decomposition` tests for any subclass: a new instance is exactly zero and the
    gradient of at least one factor is not; `parameter_count` is what is stored; at full rank any tensor is
    reproduced; `norm` and `inner` equal the dense ones; twice the factor that starts at zero is twice the tensor.

    Args:
        shape: the modes of the tensor.
        rank: one int for every rank, clipped where the subclass says so, or a tuple, which has to fit.
        generator: for the random factors; the global generator by default. Numbers are drawn on the CPU.
        device: of the factors.
        dtype: of the factors.

    Raises:
        ShapeError, RankError: as `feasible_rank` says.
    """

    chain: ClassVar[bool] = False
    """Whether modes that are neighbours share a rank (TT, TR): then C_in is the last mode, else C_in is the second."""
    zero: ClassVar[str]
    """The one factor that starts at zero, in which the tensor is linear; with two, no gradient would ever be non-zero."""
    fewest_modes: ClassVar[int] = 2
    stacks: ClassVar[bool] = False
    """Whether `bottleneck` also takes the factors of several tensors, stacked along a mode before their own."""

    def __init__(
        self,
        shape: Shape,
        rank: Rank,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape, self.fewest_modes)
        self.rank = self.feasible_rank(self.shape, rank)
        for name, size in self.factor_shapes(self.shape, self.rank).items():
            factor = torch.zeros(size, dtype=dtype, device=device)
            if name != self.zero and factor.device.type != "meta":
                drawn = torch.randn(size, generator=generator, dtype=torch.float32)
                factor.copy_(self.initial(name, drawn))
            self.register_parameter(name, nn.Parameter(factor))

    # ---- what a subclass states ------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> Rank:
        """``rank`` as this decomposition stores it for ``shape``.

        Raises:
            RankError: not a positive int or a tuple of them, or a tuple that ``shape`` cannot have.
        """

    @classmethod
    @abstractmethod
    def full_rank(cls, shape: Shape) -> Rank:
        """A rank at which every tensor of ``shape`` is reproduced."""

    @classmethod
    @abstractmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        """The name and the shape of every factor, for a feasible rank."""

    @classmethod
    @abstractmethod
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        """The tensor, differentiable in the factors; `on_pytorch` where TensorLy computes it."""

    @classmethod
    @abstractmethod
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        """Factors of ``rank`` close to ``tensor``, which is finite, float32 or wider, and not zero."""

    # ---- what a subclass may add for speed ---------------------------------------------------------------------------

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors | None:
        """Factors of the slice at ``index`` of ``mode``, a tensor without that mode, not forming the whole; None: cannot."""
        return None

    @classmethod
    def bottleneck(cls, factors: Factors, shape: Shape) -> Bottleneck | None:
        """The maps of a tensor with the modes C_out, C_in[, K] (a chain: C_out[, K], C_in); None: it has no such form."""
        return None

    @classmethod
    def inner_product(cls, a: Factors, b: Factors, shape: Shape) -> Tensor | None:
        """⟨A, B⟩ in factor space, of two tensors of this class; None: dense."""
        return None

    @classmethod
    def squared_norm(cls, factors: Factors, shape: Shape) -> Tensor | None:
        """‖A‖² in factor space without cancellation; None: from the dense tensor."""
        return None

    @classmethod
    def round_factors(cls, factors: Factors, shape: Shape, rank: Rank, seed: int) -> dict[str, Tensor] | None:
        """Factors of a lower rank, found in factor space; None: decompose the dense tensor."""
        return None

    @classmethod
    def mode_product(cls, factors: Factors, shape: Shape, mode: int, matrix: Tensor) -> Factors | None:
        """Factors of the tensor multiplied along ``mode`` by ``matrix``; None: not of the same form."""
        return None

    @classmethod
    def component_norms(cls, factors: Factors, shape: Shape) -> Tensor:
        """Norms of the terms that the tensor is a sum of: singular values of its first unfolding where it has no own."""
        return singular_values(cls.reconstruct(factors, shape).flatten(1))

    @classmethod
    def ladder(cls, spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Rung]:
        """Decompositions of one tensor at many ranks, each found from what the others share.

        Args:
            spectrum: of a tensor that is not zero.
            ranks: one int for every rank, clipped to what the shape can have, ascending.
            seed: of what is random.
        """
        shape = tuple(spectrum.tensor.shape)
        rungs = []
        for rank in dict.fromkeys(cls.within(shape, r) for r in ranks):
            factors = cls.decompose(spectrum.wide, rank, seed)
            error = float((cls.reconstruct(factors, shape) - spectrum.wide).square().sum())
            rungs.append(Rung(rank, error, factors))
        return rungs

    @classmethod
    def cheapest(cls, spectrum: Spectrum, error: float) -> Rung | None:
        """The fewest parameters whose squared error is at most ``error``; None: try the ladder."""
        return None

    @classmethod
    def initial(cls, name: str, drawn: Tensor) -> Tensor:
        """A random factor out of numbers ``drawn`` from N(0, 1) in its shape: its rows start at unit norm.

        At unit norm, not at one in expectation: a mode of length 1 would multiply all that is learnt by a number of chance.
        """
        return F.normalize(drawn.reshape(len(drawn), -1), dim=1).reshape(drawn.shape)

    # ---- what every decomposition has ---------------------------------------------------------------------------------

    @classmethod
    def parameter_count(cls, shape: Shape, rank: Rank) -> int:
        """How many numbers are stored for ``shape`` at ``rank``; no factor is built."""
        shape = check_shape(shape, cls.fewest_modes)
        return count(cls.factor_shapes(shape, cls.feasible_rank(shape, rank)))

    @classmethod
    def within(cls, shape: Shape, rank: int) -> Rank:
        """``rank`` as it is stored, no higher than where any tensor is reproduced."""
        full = cls.full_rank(shape)
        return cls.feasible_rank(shape, min(rank, full) if isinstance(full, int) else rank)

    @classmethod
    def rank_for_budget(cls, shape: Shape, parameters: int) -> Rank:
        """The largest rank, given as one int, whose parameters are at most ``parameters``.

        Raises:
            RankError: even rank 1 needs more.
        """
        fewest = cls.parameter_count(shape, 1)
        if fewest > parameters:
            raise RankError(f"{cls.__name__} of shape {tuple(shape)} needs {fewest} parameters at rank 1; got {parameters}")
        ranks = range(1, parameters + 1)  # each rank has a parameter at least, or is clipped to the one before
        rank = bisect_right(ranks, parameters, key=lambda rank: cls.parameter_count(shape, rank))
        return cls.feasible_rank(check_shape(shape), rank)

    @classmethod
    def from_factors(cls, shape: Shape, rank: Rank, factors: Factors) -> Self:
        """An instance that holds copies of ``factors``.

        Raises:
            ShapeError: a factor is missing, is too many or has another shape than ``factor_shapes`` says.
        """
        made = cls(shape, rank, device="meta")
        wanted = cls.factor_shapes(made.shape, made.rank)
        found = {name: tuple(factor.shape) for name, factor in factors.items()}
        if wanted != found:
            raise ShapeError(f"{cls.__name__} of shape {made.shape}, rank {made.rank} has the factors {wanted}; got {found}")
        for name, factor in factors.items():
            own = factor.detach().clone(memory_format=torch.contiguous_format)
            made.register_parameter(name, nn.Parameter(own))
        return made

    @classmethod
    def from_tensor(cls, tensor: Tensor, rank: Rank, *, seed: int = 0) -> Self:
        """The decomposition of an existing tensor, by TensorLy, on the tensor's device and in its dtype.

        Half precision is computed in float32. The same seed gives the same factors.

        Raises:
            NonFiniteError: the tensor holds NaN or infinity.
            ShapeError, RankError: as `feasible_rank` says.
        """
        shape = check_shape(tensor.shape, cls.fewest_modes)
        rank = cls.feasible_rank(shape, check_rank(rank))
        if not tensor.is_floating_point():
            raise ShapeError(f"a floating-point tensor was expected; got {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"a tensor of shape {shape} holds NaN or infinity; it cannot be decomposed")
        if not tensor.any():
            zeros = {n: tensor.new_zeros(size) for n, size in cls.factor_shapes(shape, rank).items()}
            return cls.from_factors(shape, rank, zeros)
        wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()
        largest = float(wide.abs().max())
        scale = 1.0 if 1e-6 < largest < 1e6 else largest  # squares of tiny or huge entries would leave float32
        factors = dict(cls.decompose(wide / scale, rank, seed))
        factors[cls.zero] = factors[cls.zero] * scale
        return cls.from_factors(shape, rank, {n: f.to(tensor.dtype) for n, f in factors.items()})

    def factors(self) -> dict[str, Tensor]:
        """The stored factors by name."""
        return dict(self._parameters)  # type: ignore[arg-type]

    def to_tensor(self) -> Tensor:
        """The dense tensor, of `shape`."""
        return self.reconstruct(self.factors(), self.shape)

    def inner(self, other: Decomposition) -> Tensor:
        """⟨A, B⟩ = Σ A ⊙ B as a float64 scalar, in factor space where both are of one class.

        Raises:
            ShapeError: the shapes differ.
        """
        if self.shape != other.shape:
            raise ShapeError(f"an inner product needs equal shapes; got {self.shape} and {other.shape}")
        if type(self) is type(other):
            product = self.inner_product(_double(self), _double(other), self.shape)
            if product is not None:
                return product
        return (self.reconstruct(_double(self), self.shape) * other.reconstruct(_double(other), self.shape)).sum()

    def norm(self) -> Tensor:
        """The Frobenius norm ‖A‖ as a float64 scalar, in factor space."""
        squared = self.squared_norm(_double(self), self.shape)
        if squared is None:
            squared = self.reconstruct(_double(self), self.shape).square().sum()
        return squared.sqrt()

    def rounded(self, rank: Rank, *, seed: int = 0) -> Self:
        """A new instance of lower rank, close to this one."""
        rank = self.feasible_rank(self.shape, rank)
        source = {n: f.detach().to(torch.promote_types(f.dtype, torch.float32)) for n, f in self.factors().items()}
        dtype = next(self.parameters()).dtype
        factors = self.round_factors(source, self.shape, rank, seed)
        if factors is None:
            return self.from_tensor(self.reconstruct(source, self.shape).to(dtype), rank, seed=seed)
        return self.from_factors(self.shape, rank, {n: f.to(dtype) for n, f in factors.items()})

    def extra_repr(self) -> str:
        return f"shape={self.shape}, rank={self.rank}"


def _double(decomposition: Decomposition) -> dict[str, Tensor]:
    return {name: factor.to(torch.float64) for name, factor in decomposition.factors().items()}
