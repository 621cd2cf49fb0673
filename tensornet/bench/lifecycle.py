"""What it costs to have tasks: adding, switching, loading, and a hundred of them in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from tensornet.bench.clock import interleaved, ratio, seconds
from tensornet.bench.contenders import fresh_head, twin
from tensornet.bench.place import Row, Workplace
from tensornet.config import AdaptConfig
from tensornet.files import read_task
from tensornet.network import adapt


def tasks(place: Workplace) -> list[Row]:
    """Switching, adding and loading tasks while there are few and many."""
    net = adapt(twin(place.backbone).to(place.device), AdaptConfig("cp", rank=8)).eval()
    rows: list[Row] = []

    def added(i: int) -> float:
        return seconds(lambda: net.add_task(f"task{i}", fresh_head(net.backbone)), place.device)

    def switched() -> float:
        return median(seconds(partial(net.set_task, n), place.device) for n in (*net.tasks[:2], *net.tasks[-2:]) * 5)

    first = median(added(i) for i in range(3))
    few = switched()
    for i in range(3, 97):
        added(i)
    rows.append({"contender": "add_task, the first three", "seconds": first})
    rows.append({"contender": "add_task, the last three of a hundred", "seconds": median(added(i) for i in range(97, 100))})
    rows.append({"contender": "set_task among three", "seconds": few})
    rows.append({"contender": "set_task among a hundred", "seconds": switched()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task"
        net.save_task("task0", path)
        names = iter(range(10**6))
        runs = {
            "reading a task file (read_task)": lambda: read_task(path),
            "load_task": lambda: net.load_task(path, f"loaded{next(names)}"),
        }
        taken = interleaved(runs, max(place.repeats, 9), place.device)
        reading = taken["reading a task file (read_task)"]
        rows += [{"contender": name, "seconds": median(own), "ratio": ratio(own, reading)} for name, own in taken.items()]
    return rows


def memory(place: Workplace) -> list[Row]:
    """A hundred tasks in a process of their own, as the operating system counts it; see `weigh`."""
    command = [sys.executable, "-m", "tensornet.bench.memory", place.setup.name]
    if place.data is not None:
        command.append(str(place.data))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Row = json.loads(done.stdout)
    return [found]
