"""The README of a task folder, with the front matter that model hubs read."""

from __future__ import annotations

import json

from tensornet.task import Task


def card(task: Task, backbone_name: str) -> str:
    """Markdown that says what the task is, what it weighs and how to use it."""
    counts = task.parameter_counts()
    kinds = sorted({plan.decomposition for plan, _ in task.tensors()})
    what = f"{' and '.join(kinds)} deltas" if kinds else "no deltas"
    return f"""---
library_name: tensornet
base_model: {json.dumps(backbone_name)}
tags: [tensornet, adapter, {", ".join(kinds) or "no-deltas"}]
---

# {task.name}

A task for the frozen backbone `{backbone_name}`: {what} on {sum(len(p.fold.members) for p, _ in task.tensors())} weights,
{len(task.norms)} normalisation layers of its own{" and a head" if task.head is not None else ""}.

| part | parameters |
|---|---:|
| deltas | {counts["deltas"]:,} |
| norms | {counts["norms"]:,} |
| head | {counts["head"]:,} |
| total | {counts["total"]:,} |

```python
import tensornet as tn

net = tn.adapt(backbone)  # {backbone_name}, with the weights it was trained on
net.load_task("path/to/this/folder")
net.set_task({json.dumps(task.name, ensure_ascii=False)})
```

`task.json` describes every tensor of `task.safetensors`; `tensornet inspect` prints it.
"""
