"""Which weights make up one tensor, and what its modes are.

A delta is a slice of a decomposed tensor. A folding groups targets and names the modes; which factors store the tensor is
the decomposition's business. The modes of a weight are `out`, `in` and, for a convolution, `kernel`; a folding adds its
own, such as `depth`, and each member fixes an index along them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensornet.errors import ShapeError
from tensornet.registry import FOLDINGS
from tensornet.shapes import Shape
from tensornet.targets import Target


@dataclass(frozen=True)
class Member:
    """One weight of a fold: the target, and its index along the modes that the weight itself does not have."""

    target: Target
    index: Mapping[str, int]


@dataclass(frozen=True)
class Fold:
    """Weights that make up one tensor.

    Attributes:
        name: of the tensor in files and tables.
        modes: length of every mode by name; the modes of the weights first.
        members: the weights.
    """

    name: str
    modes: Mapping[str, int]
    members: tuple[Member, ...]

    def order(self, chain: bool) -> tuple[str, ...]:
        """The modes in the order in which a decomposition stores them: C_in second, or last in a chain."""
        extra = [mode for mode in self.modes if mode not in ("out", "in", "kernel")]
        kernel = ["kernel"] if "kernel" in self.modes else []
        return ("out", *extra, *kernel, "in") if chain else ("out", "in", *kernel, *extra)

    def shape(self, chain: bool) -> Shape:
        """The shape of the tensor, modes ordered as `order` says."""
        return tuple(self.modes[mode] for mode in self.order(chain))


Folding = Callable[[Sequence[Target]], list[Fold]]
"""From targets that share one choice of decomposition and rank to the tensors that they make up."""


@FOLDINGS.register("layer")
def layer(targets: Sequence[Target]) -> list[Fold]:
    """One tensor per weight: (C_out, C_in, k²) or (out, in). Factorized Tensor Networks, arXiv 2310.06124."""
    return [Fold(target.name, target.modes(), (Member(target, {}),)) for target in targets]


@FOLDINGS.register("depth")
def depth(targets: Sequence[Target]) -> list[Fold]:
    """Equal-shaped weights of several layers stacked along a mode `depth`; a shape that occurs once folds as in `layer`.

    The stacking of FacT (arXiv 2212.03145) and LoTR (arXiv 2402.01376), for any decomposition.
    """
    groups: dict[tuple[object, ...], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.shape, target.transposed, target.kernel), []).append(target)
    folds = []
    for group in groups.values():
        if len(group) == 1:
            folds += layer(group)
            continue
        members = tuple(Member(target, {"depth": i}) for i, target in enumerate(group))
        folds.append(Fold(f"{group[0].name}..{group[-1].name}", group[0].modes() | {"depth": len(group)}, members))
    return folds


def check_folds(name: str, folds: object, targets: Sequence[Target]) -> None:
    """A folding has to place each of its targets in one tensor.

    Raises:
        ShapeError: it gives something else than folds, or a target is in none or in several; or as `check_fold`.
    """
    if not isinstance(folds, Sequence) or not all(isinstance(fold, Fold) and fold.members for fold in folds):
        raise ShapeError(f"the folding {name!r} should give a list of folds with members; got {folds!r}")
    placed = Counter(member.target.name for fold in folds for member in fold.members)
    wrong = [target.name for target in targets if placed[target.name] != 1]
    wrong += sorted(placed.keys() - {target.name for target in targets})
    if wrong:
        raise ShapeError(f"the folding {name!r} should place every target once; it does not: {', '.join(wrong[:8])}")
    for fold in folds:
        check_fold(fold)


def check_names(name: str, folds: Sequence[Fold]) -> None:
    """Tensors of one task need names of their own.

    Raises:
        ShapeError: two have the same.
    """
    twice, times = next(iter(Counter(fold.name for fold in folds).most_common(1)), ("", 0))
    if times > 1:
        raise ShapeError(
            f"the folding {name!r} calls two tensors {twice!r} (it is called once for each decomposition and rank): name "
            "a tensor after its weights, which are in no other"
        )


def check_fold(fold: Fold) -> None:
    """A fold has to place each of its members inside its tensor.

    Raises:
        ShapeError: an index is missing, too many or out of range, or a weight's modes are not the tensor's.
    """
    for member in fold.members:
        own = member.target.modes()
        extra = {mode: n for mode, n in fold.modes.items() if mode not in own}
        if {m: fold.modes.get(m) for m in own} != own or set(extra) != set(member.index):
            raise ShapeError(
                f"{fold.name}: {member.target.name} has the modes {own} and the index {dict(member.index)}, "
                f"which do not make up {dict(fold.modes)}"
            )
        for mode, i in member.index.items():
            if not 0 <= i < extra[mode]:
                raise ShapeError(f"{fold.name}: {member.target.name} is at {mode} {i} of {extra[mode]}")
