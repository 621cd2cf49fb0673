"""What plans are worth: test accuracy of their deltas, extracted from a fine-tuned network and not trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.selection.plan import Plan
from analysis.selection.setting import Setting
from tensornet.extraction import extract_task
from tensornet.training.statistics import reestimate


def extraction_accuracy(setting: Setting, tuned: Path, plans: Mapping[str, Plan]) -> pd.DataFrame:
    """Extract a task with each plan and test it.

    Args:
        setting: a task of a recipe.
        tuned: the checkpoint that the plans were made for.
        plans: by name.

    Returns:
        A row per plan and one, `fine-tuned`, for the network itself; columns `parameters` (of deltas), `error` (the
        plan's), `accuracy` and `reestimated` (with batch-norm statistics estimated anew on the training data), in [0, 1].
    """
    network = setting.tuned(tuned)
    rows: dict[str, dict[str, float | None]] = {}
    rows["fine-tuned"] = {"parameters": None, "error": 0.0, "accuracy": setting.accuracy(network), "reestimated": None}
    for name, plan in plans.items():
        net = setting.network()
        task = extract_task(net, "extracted", network, plan.config(net.default_config), plan.decompositions)
        net.set_task(task.name)
        row: dict[str, float | None] = {
            "parameters": plan.parameters,
            "error": plan.error,
            "accuracy": setting.accuracy(net),
        }
        reestimate(net, task.name, setting.training_inputs())
        rows[name] = row | {"reestimated": setting.accuracy(net)}
    return pd.DataFrame.from_dict(rows, orient="index")
