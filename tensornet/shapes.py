"""Integer work on shapes and ranks; no tensors here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tensornet.errors import RankError, ShapeError

Shape = tuple[int, ...]
Rank = int | tuple[int, ...]

LARGEST = 2**40
"""Elements beyond which a shape is refused: no layer has them, a hostile file may claim them."""


def check_shape(shape: Iterable[int], fewest: int = 1) -> Shape:
    """``shape`` as a tuple of positive ints.

    Raises:
        ShapeError: a mode is not a positive int, there are fewer than ``fewest`` modes, or it is absurdly large.
    """
    modes = tuple(shape)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in modes):
        raise ShapeError(f"a shape is made of positive ints; got {modes}")
    if len(modes) < fewest:
        raise ShapeError(f"a tensor of at least {fewest} modes was expected; got the shape {modes}")
    if math.prod(modes) > LARGEST:
        raise ShapeError(f"the shape {modes} has {math.prod(modes):,} elements, more than the {LARGEST:,} allowed")
    return modes


def check_rank(rank: object) -> Rank:
    """``rank`` as a positive int or a tuple of positive ints.

    Raises:
        RankError: it is anything else.
    """
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return rank
    if isinstance(rank, list | tuple) and rank and all(isinstance(check_rank(r), int) for r in rank):
        return tuple(rank)
    raise RankError(f"rank must be a positive int or a tuple of them; got {rank!r}")


def single_rank(rank: Rank, what: str) -> int:
    """``rank`` as one int; a tuple of one is unpacked.

    Raises:
        RankError: the tuple has several entries.
    """
    rank = check_rank(rank)
    if isinstance(rank, int):
        return rank
    if len(rank) == 1:
        return rank[0]
    raise RankError(f"{what} has one rank, an int; got the tuple {rank}")


def ranks_within(rank: Rank, limits: Sequence[int], what: str) -> tuple[int, ...]:
    """One rank per limit: an int is clipped to each limit, a tuple has to fit.

    Raises:
        RankError: the tuple has another length than ``limits`` or exceeds one of them.
    """
    rank = check_rank(rank)
    if isinstance(rank, int):
        return tuple(min(rank, limit) for limit in limits)
    if len(rank) != len(limits):
        raise RankError(f"{what} has {len(limits)} ranks; got {len(rank)}: {rank}")
    if any(r > limit for r, limit in zip(rank, limits, strict=True)):
        raise RankError(f"{what} has ranks of at most {tuple(limits)}; got {rank}")
    return rank


def tensor_train_limits(shape: Shape) -> tuple[int, ...]:
    """The largest useful inner ranks of a tensor train: the smaller side of each unfolding."""
    return tuple(min(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape)))


def near_square(n: int) -> tuple[int, int]:
    """The two divisors of ``n`` that are closest to its square root, the smaller first."""
    small = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return small, n // small


def count(shapes: Mapping[str, Shape]) -> int:
    """How many numbers the shapes hold together."""
    return sum(math.prod(shape) for shape in shapes.values())
