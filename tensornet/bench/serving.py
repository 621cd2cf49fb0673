"""What tasks cost once they are trained: one at a time, mixed in a batch, all on every row, and compiled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.bench.clock import interleaved, now, ratio, seconds
from tensornet.bench.contenders import contenders, fresh_head, twin
from tensornet.bench.place import Row, Workplace
from tensornet.config import AdaptConfig
from tensornet.network import AdaptedNetwork, adapt
from tensornet.paths.branch import Way

_BARE = "bare backbone"


@torch.no_grad()
def inference(place: Workplace) -> list[Row]:
    """A forward in eval mode: the bare backbone, a task that is set (from the second call), a merged copy, an adapter."""
    networks: dict[str, nn.Module] = {_BARE: twin(place.backbone).to(place.device)}
    for rank in (8, 50):
        networks[f"CP {rank}, set"] = place.network(rank)
    first = networks["CP 8, set"]
    assert isinstance(first, AdaptedNetwork)
    networks["CP 8, merged"] = first.merged("task")
    networks |= {
        f"{name}, not merged": place.made(maker).model for name, maker in contenders().items() if name == "PEFT LoRA 8"
    }
    x = place.inputs()
    runs = {name: partial(place.call, network, x) for name, network in networks.items()}
    for network in networks.values():
        network.eval()
    taken = interleaved(runs, 2 * place.repeats, place.device)
    return [{"contender": name, "seconds": median(own), "ratio": ratio(own, taken[_BARE])} for name, own in taken.items()]


@torch.no_grad()
def mixed(place: Workplace) -> list[Row]:
    """32 rows of 8 tasks in one call, beside one task for the same rows, and beside one call per task."""
    net = place.network(tasks=8)
    x = place.inputs(32)
    names = [net.tasks[i % 8] for i in range(32)]
    rows = {name: x[i::8].contiguous() for i, name in enumerate(net.tasks)}

    def loop() -> None:
        for name in net.tasks:
            net.set_task(name)
            place.call(net, rows[name])
        net.set_task("task")

    runs: dict[str, Callable[[], object]] = {
        "one task": partial(place.call, net, x),
        "mixed batch": partial(place.call, net, x, tasks=names),
        "one call per task": loop,
    }
    taken = interleaved(runs, place.repeats, place.device)
    return [
        {"contender": name, "seconds": median(own), "ratio": ratio(own, taken["one task"])} for name, own in taken.items()
    ]


@torch.no_grad()
def switching(place: Workplace) -> list[Row]:
    """One row at a time: of a task that stays set, of another task every time, and of every task."""
    net, still = place.network(tasks=8), place.network()  # a change of the task takes what was kept of the one before
    x, names = place.inputs(1), net.tasks
    turns = itertools.cycle(names)

    def changing(path: Way) -> None:
        net.path = path
        for _ in names:
            with net.task(next(turns)):
                place.call(net, x)
        net.path = "auto"

    def staying() -> None:
        for _ in names:
            place.call(still, x)

    bare = twin(place.backbone).to(place.device).eval()
    repeated = x.repeat(len(names), *[1] * (x.ndim - 1))
    runs: dict[str, Callable[[], object]] = {
        _BARE: lambda: [place.call(bare, x) for _ in names],
        "a task that stays set": staying,
        "changing tasks": partial(changing, "auto"),
        "changing tasks, on the activations": partial(changing, "activations"),
        "every task: forward_tasks": partial(place.call, net.forward_tasks, x, tasks=names),
        "every task: the row repeated in a mixed batch": partial(place.call, net, repeated, tasks=names),
    }
    taken = interleaved(runs, place.repeats, place.device)
    return [{"contender": name, "seconds": median(own), "ratio": ratio(own, taken[_BARE])} for name, own in taken.items()]


@torch.no_grad()
def prefix(place: Workplace) -> list[Row]:
    """`forward_tasks` on tasks that share the first half of the layers, beside prefix + tasks × rest."""
    count = 4
    backbone = twin(place.backbone).to(place.device)
    targets = [p.fold.members[0].target.module for p in adapt(twin(place.backbone), AdaptConfig("cp", rank=1)).plans]
    late = targets[len(targets) // 2 :]
    net = adapt(backbone, AdaptConfig("cp", rank=8, targets=tuple(late), norms="shared")).eval()
    for i in range(count):
        net.add_task(f"task{i}", fresh_head(net.backbone))
    x, marks = place.inputs(), []
    handle = net.backbone.get_submodule(late[0]).register_forward_pre_hook(lambda *_: marks.append(now(place.device)))
    net.set_task("task0")
    before: list[float] = []
    whole: list[float] = []
    together: list[float] = []
    for _ in range(place.repeats + 2):
        marks.clear()
        start = now(place.device)
        place.call(net, x)
        whole.append(now(place.device) - start)
        before.append(marks[0] - start)
        together.append(seconds(lambda: place.call(net.forward_tasks, x, tasks=net.tasks), place.device))
    handle.remove()
    expected = [b + count * (w - b) for b, w in zip(before[2:], whole[2:], strict=True)]
    return [
        {"contender": "shared layers", "seconds": median(before[2:])},
        {"contender": "one task", "seconds": median(whole[2:])},
        {"contender": f"shared layers + {count} × the rest", "seconds": median(expected), "ratio": 1.0},
        {
            "contender": f"forward_tasks of {count}",
            "seconds": median(together[2:]),
            "ratio": ratio(together[2:], expected),
        },
    ]


def compiled(place: Workplace) -> list[Row]:
    """Ten tasks under `torch.compile`: how many graphs they need, and the time beside eager."""
    rows: list[Row] = []
    net = place.network(tasks=10)
    x = place.inputs()
    for mode in ("inference", "training"):
        net.train(mode == "training")
        graphs = 0

        def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            nonlocal graphs
            graphs += 1
            from torch._inductor.compile_fx import compile_fx

            return compile_fx(graph, inputs)  # type: ignore[return-value]

        torch._dynamo.reset()
        network = torch.compile(net, backend=counted)

        def forward(call: Callable[[Tensor], Tensor], mode: str = mode) -> None:
            with torch.set_grad_enabled(mode == "training"):
                y = place.call(call, x)
                if mode == "training":
                    y.sum().backward()

        for name in net.tasks:
            net.set_task(name)
            forward(network)
        runs = {"eager": partial(forward, net), "compiled": partial(forward, network)}
        taken = interleaved(runs, place.repeats, place.device)
        for name, own in taken.items():
            row: Row = {"contender": f"{mode}, {name}", "seconds": median(own), "ratio": ratio(own, taken["eager"])}
            rows.append(row | ({"graphs": graphs} if name == "compiled" else {}))
    return rows
