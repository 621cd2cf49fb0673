"""What a step of training costs, beside the limit: frozen weights, norms and head trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tensornet.bench.clock import interleaved, ratio
from tensornet.bench.contenders import FULL, LIMIT, Contender, contenders
from tensornet.bench.place import Row, Workplace
from tensornet.bench.setups import CLASSES

COMPILED = ("CP 8", "CP 50", "PEFT LoRA 8", FULL)
"""Whose steps are compiled where no contender is named: a compiler takes a minute for each."""


def training(place: Workplace) -> list[Row]:
    """A step of training: forward, backward and AdamW; what it saves for backward, and its multiply-adds."""
    made = _made(place, place.only or tuple(contenders()))
    x, labels = place.inputs(), torch.randint(CLASSES, (place.setup.rows,), device=place.device)
    steps = {name: step(place, contender, x, labels) for name, contender in made.items()}
    taken = interleaved(steps, place.repeats, place.device)
    saved = {name: saved_for_backward(contender.model, x, place.call) for name, contender in made.items()}
    return [
        {
            "contender": name,
            "seconds": median(taken[name]),
            "ratio": ratio(taken[name], taken[LIMIT]),
            "saved_bytes": saved[name],
            "saved_ratio": saved[name] / saved[LIMIT],
            "multiply_adds": multiply_adds(steps[name]),
            "trained_parameters": contender.parameters(),
        }
        for name, contender in made.items()
    ]


def compiled_training(place: Workplace) -> list[Row]:
    """The same step, eager and with the network under `torch.compile`, each beside the limit of its own kind.

    The compiler's mode "reduce-overhead" replays launches as one graph on CUDA, and changes nothing on the CPU.
    """
    x, labels = place.inputs(), torch.randint(CLASSES, (place.setup.rows,), device=place.device)
    torch._dynamo.reset()
    eager, compiled = "", ", compiled"
    steps: dict[str, Callable[[], None]] = {}
    for name, made in _made(place, place.only or COMPILED).items():
        steps[name + eager] = step(place, made, x, labels)
        network: nn.Module = torch.compile(made.model, mode="reduce-overhead")  # type: ignore[assignment]
        steps[name + compiled] = step(place, replace(made, model=network), x, labels)
    taken = interleaved(steps, place.repeats, place.device)
    rows: list[Row] = []
    for name, own in taken.items():
        kind = compiled if name.endswith(compiled) else eager
        row: Row = {"contender": name, "seconds": median(own), "ratio": ratio(own, taken[LIMIT + kind])}
        rows.append(row | ({"eager_ratio": ratio(own, taken[name.removesuffix(kind)])} if kind else {}))
    return rows


def _made(place: Workplace, names: Sequence[str]) -> dict[str, Contender]:
    """The limit, and the contenders of these names that can be built here."""
    return {name: place.made(maker) for name, maker in contenders().items() if name in names or name == LIMIT}


def step(place: Workplace, contender: Contender, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of training as a call."""
    optimizer = torch.optim.AdamW(contender.trained, lr=1e-5, fused=True)

    def run() -> None:
        F.cross_entropy(place.call(contender.model, x).float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def saved_for_backward(model: nn.Module, x: Tensor, call: Callable[[nn.Module, Tensor], object] = nn.Module.__call__) -> int:
    """Bytes that one forward keeps for backward, beyond the network's own parameters and buffers and its input."""
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # nothing is freed before it is counted

    def pack(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # with its graph it would hold itself
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(model, x)
    return sum(found.values())


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of products and convolutions in one call."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops() // 2
