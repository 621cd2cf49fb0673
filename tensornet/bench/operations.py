"""Where a step of training spends its time, by operation."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from tensornet.bench.contenders import LIMIT, contenders
from tensornet.bench.place import Row, Workplace
from tensornet.bench.setups import CLASSES
from tensornet.bench.training import step

SMALLEST = 0.01
"""The share of a step below which an operation is not listed by itself."""


def operations(place: Workplace) -> list[Row]:
    """A step of training of the limit and of CP of rank 8 under PyTorch's profiler: seconds of each operation itself."""
    rows: list[Row] = []
    makers = contenders()
    x, labels = place.inputs(), torch.randint(CLASSES, (place.setup.rows,), device=place.device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if place.device.startswith("cuda") else [])
    for name in (LIMIT, "CP 8"):
        run = step(place, place.made(makers[name]), x, labels)
        for _ in range(2):
            run()
        with profile(activities=activities) as watched:
            for _ in range(place.repeats):
                run()
        taken = {
            event.key: (event.count / place.repeats, _own(event, place.device) / place.repeats)
            for event in watched.key_averages()
            if event.device_type.name == "CPU"  # what an operation launches is its own time on the device
        }
        whole = sum(own for _, own in taken.values())
        listed = {key: found for key, found in taken.items() if found[1] >= SMALLEST * whole}
        for key, (calls, own) in sorted(listed.items(), key=lambda item: -item[1][1]):
            rows.append({"contender": name, "operation": key, "calls": calls, "seconds": own})
        rest = whole - sum(own for _, own in listed.values())
        rows.append({"contender": name, "operation": "everything else", "seconds": rest})
        rows.append({"contender": name, "operation": "all together", "seconds": whole})
    return rows


def _own(event: torch.autograd.profiler_util.FunctionEventAvg, device: str) -> float:
    """Seconds."""
    return float(event.self_device_time_total if device.startswith("cuda") else event.self_cpu_time_total) / 1e6
