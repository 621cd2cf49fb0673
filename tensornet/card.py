"""The README of a task folder, with the front matter that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tensornet.plan import TensorPlan


def card(
    name: str,
    backbone_name: str,
    counts: Mapping[str, int],
    plans: Sequence[TensorPlan],
    norms: int,
    head: bool,
    classes: Sequence[str] | None = None,
) -> str:
    """Markdown that says what a task is, what it weighs and how to use it.

    Args:
        name: of the task.
        backbone_name: what it belongs to.
        counts: parameters of deltas, norms and head, and their total.
        plans: its tensors.
        norms: how many normalisation layers it has.
        head: whether it has a head.
        classes: what the outputs of the head stand for, where that is known.
    """
    kinds = sorted({plan.decomposition for plan in plans})
    what = f"{' and '.join(kinds)} deltas" if kinds else "no deltas"
    outputs = f"\nIts outputs are, in this order: {', '.join(classes)}.\n" if classes else ""
    return f"""---
library_name: tensornet
base_model: {json.dumps(backbone_name)}
tags: [tensornet, adapter, {", ".join(kinds) or "no-deltas"}]
---

# {name}

A task for the frozen backbone `{backbone_name}`: {what} on {sum(len(plan.fold.members) for plan in plans)} weights,
{norms} normalisation layers of its own{" and a head" if head else ""}.
{outputs}
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
net.set_task({json.dumps(name, ensure_ascii=False)})
```

`task.json` describes every tensor of `task.safetensors`; `tensornet inspect` prints it.
"""
