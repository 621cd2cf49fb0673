"""A process that says what a backbone and a hundred tasks weigh in it: `python -m tensornet.bench.memory SETUP`."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import psutil
import torch

from tensornet.bench.contenders import fresh_head
from tensornet.bench.setups import find_setup
from tensornet.config import AdaptConfig
from tensornet.network import adapt


@torch.no_grad()
def weigh(name: str, data: Path | None, tasks: int = 100) -> dict[str, object]:
    """Resident bytes beyond the backbone, of ``tasks`` loaded tasks and one that is set and was run once.

    They should be the bytes of the task files and one copy of the adapted weights.
    """
    setup = find_setup(name)
    net = adapt(setup.build(data), AdaptConfig("cp", rank=8)).eval()
    x = setup.inputs(1)
    net.add_task("first", fresh_head(net.backbone))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task"
        net.save_task("first", path)
        net.load_task(path, "second")
        net(x)
        size = (path / "task.safetensors").stat().st_size
        targets = [member.target for plan in net.plans for member in plan.fold.members]
        weights = {id(weight): weight.nbytes for weight in (target.weight_in(net.backbone) for target in targets)}
        before = _resident()
        for i in range(tasks):
            net.load_task(path, f"task{i}")
        net.set_task("task0")
        net(x)
        grown = _resident() - before
    backbone = sum(p.nbytes for p in net.backbone.parameters())
    wanted = backbone + tasks * size + sum(weights.values())
    return {
        "contender": f"backbone and {tasks} tasks",
        "bytes": backbone + grown,
        "expected_bytes": wanted,
        "ratio": (backbone + grown) / wanted,
        "file_bytes": size,
    }


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(weigh(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)))  # noqa: T201
