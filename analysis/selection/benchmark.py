"""How long a choice takes on the layers of a ResNet-50, against asking TensorLy for every layer and rank afresh.

    python -m analysis.selection.benchmark

The 53 deltas are random tensors whose singular values fall along every mode. The choice is timed as a whole; then the
candidates of one layer of each shape are timed, layer by layer in turn with TensorLy doing every decomposition and rank of
it from the beginning, and both are counted as often as the shape occurs.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
import warnings
from collections.abc import Sequence

import tensorly as tl
import torch
from tensorly.decomposition import parafac, tensor_train, tucker
from tensorly.tenalg import svd_interface
from torch import Tensor

from analysis.selection.candidates import candidates, worthwhile
from analysis.selection.changes import Change
from analysis.selection.choose import choose
from tensornet.decompositions import decomposition, on_pytorch
from tensornet.delta import gathered
from tensornet.foldings import layer as fold_per_layer
from tensornet.targets import Target

NAMES = ("cp", "tucker", "tt", "low_rank")
RANKS = (1, 2, 4, 8, 16, 32, 48, 64)


def main() -> None:
    """Print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=0.05)
    arguments = parser.parse_args()
    changes = [_change(i, name, shape) for i, (name, shape) in enumerate(resnet50())]
    begun = time.perf_counter()
    plan = choose(None, changes, arguments.budget, NAMES, ranks=RANKS)
    whole = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    of_shape: dict[tuple[int, ...], list[Change]] = {}
    for change in changes:
        of_shape.setdefault(change.target.shape, []).append(change)
    seconds = {"ours": 0.0, "tensorly": 0.0}
    above = []
    for same in of_shape.values():
        ladder = {name: worthwhile(same[0], name, RANKS) for name in NAMES}  # as `choose` does
        begun = time.perf_counter()
        ours = candidates(same[0], None, "parameters", ladder, 0)
        between = time.perf_counter()
        afresh = {(name, rank): _afresh(same[0], name, rank) for name in NAMES for rank in ladder[name]}
        seconds["ours"] += (between - begun) * len(same)
        seconds["tensorly"] += (time.perf_counter() - between) * len(same)
        for (name, rank), error in afresh.items():
            found = min(c.error for c in ours if c.decomposition == name and _within(c.rank, rank))
            above.append((found - error) / float(same[0].delta.square().sum()))
    print(  # noqa: T201
        json.dumps(
            {
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "layers": len(changes),
                "choose_seconds": round(whole, 1),
                "peak_gib": round(peak, 2),
                "error": plan.error,
                "gap": plan.gap,
                "uniform": [plan.uniform.name, plan.uniform.error] if plan.uniform else None,
                "shapes": len(of_shape),
                "candidates_seconds": round(seconds["ours"], 1),
                "tensorly_seconds": round(seconds["tensorly"], 1),
                "times_faster": round(seconds["tensorly"] / seconds["ours"], 1),
                "error_above_tensorly": {"mean": sum(above) / len(above), "largest": max(above)},
            },
            indent=1,
        )
    )


def resnet50() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the 53 convolutions of a ResNet-50 (He et al., 2016)."""
    found: list[tuple[str, tuple[int, ...]]] = [("conv1", (64, 3, 7, 7))]
    before = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        for block in range(blocks):
            path = f"layer{stage}.{block}"
            found.append((f"{path}.conv1", (width, before, 1, 1)))
            found.append((f"{path}.conv2", (width, width, 3, 3)))
            found.append((f"{path}.conv3", (4 * width, width, 1, 1)))
            if block == 0:
                found.append((f"{path}.downsample.0", (4 * width, before, 1, 1)))
            before = 4 * width
    return found


def _change(order: int, name: str, shape: Sequence[int]) -> Change:
    """A delta whose singular values fall along every mode."""
    generator = torch.Generator().manual_seed(order)
    tensor = torch.randn(*shape[:2], shape[2] * shape[3], generator=generator)
    for mode, n in enumerate(tensor.shape):
        weights = torch.arange(1, n + 1, dtype=torch.float32) ** -0.5
        mixed = torch.randn(n, n, generator=generator) * weights / n**0.5
        tensor = torch.tensordot(mixed, tensor, ([1], [mode])).movedim(0, mode)
    return Change(Target(name, "weight", tuple(shape), kernel=True, order=order), tensor.reshape(*shape))


@on_pytorch
def _afresh(change: Change, name: str, rank: int) -> float:
    """The squared error of one decomposition at one rank, asked of TensorLy with its own defaults."""
    cls = decomposition(name)
    (fold,) = fold_per_layer([change.target])
    tensor = gathered({change.target.name: change.delta}, fold, cls.chain)
    stored = cls.within(tuple(tensor.shape), rank)
    made: Tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranks above a mode
        if name == "cp":
            made = tl.cp_to_tensor(parafac(tensor, stored))
        elif name == "tucker":
            made = tl.tucker_to_tensor(tucker(tensor, list(stored) if isinstance(stored, tuple) else stored))
        elif name == "tt":
            ranks = stored if isinstance(stored, tuple) else (stored,)
            made = tl.tt_to_tensor(tensor_train(tensor, [1, *ranks, 1]))
        else:
            u, s, v = svd_interface(tl.unfold(tensor, 0), n_eigenvecs=stored)
            made = tl.fold((u * s) @ v, 0, tuple(tensor.shape))
    return float((made - tensor).square().sum())


def _within(found: object, rank: int) -> bool:
    return found == rank or (isinstance(found, tuple) and max(found) <= rank)


if __name__ == "__main__":
    main()
