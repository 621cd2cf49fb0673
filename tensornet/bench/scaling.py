"""How costs grow: with the rank, the size of the input, and the number of tasks; multiply-adds beside seconds."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from tensornet.bench.clock import interleaved, ratio
from tensornet.bench.contenders import LIMIT, Contender, adapted, contenders, twin
from tensornet.bench.place import Row, Workplace
from tensornet.bench.setups import CLASSES
from tensornet.bench.training import multiply_adds, step


def cost_of_rank(place: Workplace) -> list[Row]:
    """A step of training against the rank, measured and in multiply-adds."""
    base = place.made(contenders()[LIMIT])
    x, labels = place.inputs(), torch.randint(CLASSES, (place.setup.rows,), device=place.device)
    steps = {"0": step(place, base, x, labels)}
    for rank in (1, 2, 4, 8, 16, 32, 64):
        made = adapted(twin(place.backbone).to(place.device), "cp", rank)
        steps[str(rank)] = step(place, Contender(made, list(made["task"].parameters())), x, labels)
    return _against(steps, place, "0")


def cost_of_size(place: Workplace) -> list[Row]:
    """A step of training against the size of the input, for the limit and for CP of rank 8."""
    rows: list[Row] = []
    base, net = place.made(contenders()[LIMIT]), place.made(contenders()["CP 8"])
    largest = max(2 * place.setup.size, 32)
    sizes = [size for size in (16, 32, 64, 96, 128, 160, 224) if size <= largest]
    for size in [place.setup.size] if place.setup.tokens is not None else sizes:
        x = place.inputs(max(2, place.setup.rows // 2), size)
        labels = torch.randint(CLASSES, (len(x),), device=place.device)
        steps = {"limit": step(place, base, x, labels), "CP 8": step(place, net, x, labels)}
        rows += [row | {"size": size} for row in _against(steps, place, "limit")]
    return rows


@torch.no_grad()
def cost_of_tasks(place: Workplace) -> list[Row]:
    """32 rows against the number of tasks among them, and every task on every row of a batch."""
    net = place.network(tasks=32)
    x = place.inputs(32)
    some = place.inputs(4)
    rows: list[Row] = []
    for count in (1, 2, 4, 8, 16, 32):
        names = [net.tasks[i % count] for i in range(32)]
        runs = {
            "mixed batch of 32 rows": lambda names=names: place.call(net, x, tasks=names),
            "forward_tasks of 4 rows": lambda count=count: place.call(net.forward_tasks, some, tasks=net.tasks[:count]),
        }
        taken = interleaved(runs, max(place.repeats // 3, 2), place.device, warmup=1)
        rows += [
            {"contender": name, "tasks": count, "seconds": median(own), "multiply_adds": multiply_adds(runs[name])}
            for name, own in taken.items()
        ]
    return rows


def _against(steps: dict[str, Callable[[], None]], place: Workplace, base: str) -> list[Row]:
    taken = interleaved(steps, max(place.repeats // 2, 2), place.device)
    work = {name: multiply_adds(run) for name, run in steps.items()}
    return [
        {
            "contender": name,
            "seconds": median(own),
            "ratio": ratio(own, taken[base]),
            "multiply_adds": work[name],
            "multiply_adds_ratio": work[name] / work[base],
        }
        for name, own in taken.items()
    ]
