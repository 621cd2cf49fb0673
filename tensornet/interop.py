"""Decompositions from and to the factorized tensors of tensorly-torch.

Taken from that package: its `CPTensor`, `TuckerTensor`, `TTTensor` and `DenseTensor` classes as containers. Its layers,
initialisers and hooks are not used; the docs say why.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import tensorly as tl
from torch import Tensor, nn

from tensornet.decompositions import CP, TT, Decomposition, Dense, Tucker
from tensornet.errors import ShapeError


def to_tltorch(decomposition: Decomposition) -> Any:
    """A factorized tensor of tensorly-torch with copies of the same factors.

    Raises:
        ShapeError: tensorly-torch has no class for this decomposition.
    """
    tltorch = _tltorch()
    factors = [nn.Parameter(factor.detach().clone()) for factor in decomposition.factors().values()]
    shape = decomposition.shape
    if isinstance(decomposition, CP):
        weights = nn.Parameter(factors[0].new_ones(factors[0].shape[1]))
        return tltorch.CPTensor(weights, factors, shape=shape, rank=decomposition.rank)
    if isinstance(decomposition, Tucker):
        return tltorch.TuckerTensor(factors[0], factors[1:], shape=shape, rank=decomposition.rank)
    if isinstance(decomposition, TT):
        assert isinstance(decomposition.rank, tuple)
        return tltorch.TTTensor(factors, shape=shape, rank=(1, *decomposition.rank, 1))
    if isinstance(decomposition, Dense):
        return tltorch.DenseTensor(factors[0])
    raise ShapeError(f"tensorly-torch has no class for {type(decomposition).__name__}; it has CP, Tucker, TT and dense")


def from_tltorch(tensor: Any) -> Decomposition:
    """The decomposition with copies of the factors of a factorized tensor of tensorly-torch; CP weights are absorbed.

    Raises:
        ShapeError: it is of another class than CPTensor, TuckerTensor, TTTensor or DenseTensor.
    """
    tltorch = _tltorch()
    shape = tuple(int(n) for n in getattr(tensor, "shape", ()))
    if isinstance(tensor, tltorch.CPTensor):
        parts: list[Tensor] = list(tensor.factors)
        parts[0] = parts[0] * tensor.weights
        return CP.from_factors(shape, parts[0].shape[1], _named(CP, shape, parts[0].shape[1], parts))
    if isinstance(tensor, tltorch.TuckerTensor):
        ranks = tuple(tensor.core.shape)
        return Tucker.from_factors(shape, ranks, _named(Tucker, shape, ranks, [tensor.core, *tensor.factors]))
    if isinstance(tensor, tltorch.TTTensor):
        inner = tuple(int(core.shape[2]) for core in list(tensor.factors)[:-1])
        return TT.from_factors(shape, inner, _named(TT, shape, inner, list(tensor.factors)))
    if isinstance(tensor, tltorch.DenseTensor):
        return Dense.from_factors(shape, 1, {"tensor": tensor.tensor})
    raise ShapeError(
        f"expected a CPTensor, TuckerTensor, TTTensor or DenseTensor of tensorly-torch; got {type(tensor).__name__}"
    )


def _named(cls: type[Decomposition], shape: tuple[int, ...], rank: Any, parts: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(cls.factor_shapes(shape, rank), parts, strict=True))


def _tltorch() -> ModuleType:
    """tensorly-torch, imported late: on import it sets TensorLy's backend for the whole process, which is undone here."""
    before = tl.get_backend()
    try:
        import tltorch
    finally:
        tl.set_backend(before)
    module: ModuleType = tltorch
    return module
