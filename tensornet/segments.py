"""One layer over rows that are sorted by task."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensornet.attach import Attached, Unroutable
from tensornet.errors import StateError
from tensornet.paths.branch import Branch
from tensornet.probe import check_rows, only_tensor
from tensornet.turns import BESIDE_MIXED

_BATCH_NORMS = {cls.forward for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}


class Segments:
    """Routes every layer over rows that are sorted by task: the shared layer once, each delta on its own rows.

    Args:
        bounds: rows of segment i go from bounds[i] to bounds[i + 1].
        path: "weight" runs an adapted layer once per segment on W + ΔW; "activations" adds each delta's branch.
    """

    def __init__(self, bounds: list[int], path: str) -> None:
        self.bounds = bounds
        self.path = path
        self.head_parts: list[Any] | None = None
        self.head_output: Any = None
        self._thread = threading.get_ident()

    def run(self, module: Attached, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of ``module`` for the rows of all segments.

        Raises:
            StateError: another thread has called the network without a task.
        """
        if threading.get_ident() != self._thread:
            raise StateError(BESIDE_MIXED)
        contents = module._slot.contents
        if not any(content.deltas or content.replacement is not None for content in contents):
            return forward(*args, **kwargs)
        x = only_tensor(module, args, kwargs)
        shared = all(content.replacement is None for content in contents)
        branches = [content.branch(module) for content in contents]
        beside = all(b is not None or not content.deltas for b, content in zip(branches, contents, strict=True))
        if shared and self.path == "activations" and beside:
            with module._slot.reading_the_backbone():
                y = forward(x)
            return self._with_branches(y, x, branches)
        norms = [content.replacement for content in contents]
        if not torch.is_grad_enabled() and all(_has_fixed_statistics(norm) for norm in norms):
            check_rows(x, self.bounds[-1])
            return _normalised(norms, x, self.bounds)
        parts = [self._alone(module, forward, self._rows(x, i), i) for i in range(len(contents))]
        if module._slot.is_head and not _joinable(parts):
            self.head_parts, self.head_output = parts, parts[0]  # what the head returns is what the network returns
            return parts[0]
        return self._joined(parts)

    def _with_branches(self, y: Tensor, x: Tensor, branches: Sequence[Branch | None]) -> Tensor:
        """The output of the shared layer, each delta added to its rows."""
        rows = [(branch, self._rows(y, i), self._rows(x, i)) for i, branch in enumerate(branches)]
        if torch.is_grad_enabled():
            return torch.cat([own if branch is None else own + branch.beside(given) for branch, own, given in rows])
        for branch, own, given in rows:
            if branch is not None:
                branch.add_to(own, given)
        return y

    def _alone(self, module: Attached, forward: Callable[..., Any], rows: Tensor, segment: int) -> Tensor:
        slot = module._slot
        content = slot.contents[segment]
        if content.replacement is not None:
            replaced: Tensor = content.replacement(rows)
            return replaced
        slot.router, slot.deltas = None, content.deltas
        try:
            own: Tensor = forward(rows)
            return own
        finally:
            slot.router, slot.deltas = self, {}
            slot.cache.clear()

    def _rows(self, x: Tensor, segment: int) -> Tensor:
        check_rows(x, self.bounds[-1])
        start, stop = self.bounds[segment], self.bounds[segment + 1]
        return x.narrow(0, start, stop - start)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """All rows together. Rows of narrower heads are padded; what the network returns is cut from ``head_parts`` then."""
        if not _joinable(parts):
            raise Unroutable("outputs that are not tensors of as many modes each")
        if len({part.shape[1:] for part in parts}) == 1:
            return torch.cat(parts)
        widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        pads = [[n for w, h in zip(widest[::-1], p.shape[:0:-1], strict=True) for n in (0, w - h)] for p in parts]
        output = torch.cat([nn.functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])
        self.head_parts, self.head_output = parts, output
        return output


def _joinable(parts: Sequence[Any]) -> bool:
    """Whether they are tensors of as many modes each."""
    return all(isinstance(part, Tensor) and part.ndim == parts[0].ndim for part in parts)


def _has_fixed_statistics(norm: nn.Module | None) -> bool:
    """Whether it is a stock batch norm in eval mode: a scale and a shift per channel."""
    if not isinstance(norm, _BatchNorm) or type(norm).forward not in _BATCH_NORMS or norm.training:
        return False
    whole = norm.weight is not None and norm.bias is not None and norm.running_mean is not None
    return whole and not (norm._forward_hooks or norm._forward_pre_hooks)


def _normalised(norms: Sequence[Any], x: Tensor, bounds: Sequence[int]) -> Tensor:
    """The rows of every segment by its own batch norm: y = a x + b, with a = γ / √(σ² + ε) and b = β − a μ, in one pass."""
    counts = torch.tensor([stop - start for start, stop in itertools.pairwise(bounds)], device=x.device)
    weight, bias, mean, variance = (
        torch.stack([getattr(norm, name) for norm in norms]) for name in ("weight", "bias", "running_mean", "running_var")
    )
    epsilon = torch.tensor([[norm.eps] for norm in norms], dtype=variance.dtype, device=x.device)
    a = weight * torch.rsqrt(variance + epsilon)
    b = bias - a * mean
    shape = (x.shape[0], x.shape[1], *[1] * (x.ndim - 2))
    a, b = (part.repeat_interleave(counts, 0, output_size=x.shape[0]).reshape(shape) for part in (a, b))
    return torch.addcmul(b, x.to(a.dtype), a).to(x.dtype)
