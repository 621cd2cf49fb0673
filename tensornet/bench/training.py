"""What a step of training costs, beside the limit: frozen weights, norms and head trained."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tensornet.bench.clock import interleaved, ratio
from tensornet.bench.contenders import LIMIT, Contender, contenders
from tensornet.bench.place import Row, Workplace
from tensornet.bench.setups import CLASSES


def training(place: Workplace) -> list[Row]:
    """A step of training: forward, backward and AdamW; what it saves for backward, and its multiply-adds."""
    makers = {n: m for n, m in contenders().items() if not place.only or n in place.only or n == LIMIT}
    made = {name: place.made(maker) for name, maker in makers.items()}
    x, labels = place.inputs(), torch.randint(CLASSES, (place.setup.rows,), device=place.device)
    steps = {name: step(contender, x, labels) for name, contender in made.items()}
    taken = interleaved(steps, place.repeats, place.device)
    saved = {name: saved_for_backward(contender.model, x) for name, contender in made.items()}
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


def step(contender: Contender, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of training as a call."""
    optimizer = torch.optim.AdamW(contender.trained, lr=1e-5, fused=True)

    def run() -> None:
        F.cross_entropy(contender.model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def saved_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes that one forward keeps for backward, beyond the network's own parameters and buffers and its input."""
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # nothing is freed before it is counted

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(found.values())


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of products and convolutions in one call."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops() // 2
