"""A plan: which decomposition and which rank each layer gets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.kinds import Cost
from tensornet.atomic import write_file
from tensornet.config import NONE, AdaptConfig, Choice
from tensornet.decompositions import Decomposition


@dataclass(frozen=True, eq=False)
class Plan:
    """A decomposition and a rank for every layer.

    Attributes:
        table: index layers in network order; columns `decomposition` ("none": no delta), `rank`, `parameters`, `cost`,
            `error` (‖ΔW − ΔŴ‖², with calibration of the layer's output), `relative` (the root of its share of ‖ΔW‖²) and
            `note`.
        error: √(Σ error / Σ ‖ΔW‖²), over all layers together.
        bound: no plan of these candidates within the budget has a lower error.
        budget, unit: what the costs together are held to, and what it is in.
        whole: what the weights of all layers cost.
        uniform: the best single decomposition and rank for all layers within the budget; None for such a one itself.
        curve: √ of the share of error against cost: index budgets, columns the plan and each decomposition alone.
        decompositions: the deltas as they were decomposed, by layer.
    """

    table: pd.DataFrame
    error: float
    bound: float
    budget: int
    unit: Cost
    whole: int
    uniform: Plan | None
    curve: pd.DataFrame
    decompositions: Mapping[str, Decomposition]

    @property
    def cost(self) -> int:
        """Of all layers together."""
        return int(self.table["cost"].sum())

    @property
    def parameters(self) -> int:
        """Of all layers together."""
        return int(self.table["parameters"].sum())

    @property
    def gap(self) -> float:
        """How far the error may be above the best possible, as a share of it."""
        return (self.error - self.bound) / self.error if self.error else 0.0

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        kinds = self.table.loc[self.table["decomposition"] != NONE, ["decomposition", "rank"]].astype(str).drop_duplicates()
        if self.uniform is None:
            used = self.table.loc[self.table["decomposition"] != NONE]
            return f"{used['decomposition'].iloc[0]} {_largest(used['rank'])} everywhere" if len(used) else "no deltas"
        return f"{len(kinds)} kinds and ranks"

    @property
    def layers(self) -> dict[str, Choice]:
        """For `AdaptConfig(layers=…)`: a pattern per layer."""
        kinds = zip(self.table.index, self.table["decomposition"], self.table["rank"], strict=True)
        return {re.escape(str(name)).replace(r"\-", "-"): Choice(kind, rank) for name, kind, rank in kinds}

    def config(self, like: AdaptConfig | None = None) -> AdaptConfig:
        """The config of a task with this plan; norms and head are those of ``like``."""
        like = like or AdaptConfig()
        return AdaptConfig(NONE, layers=self.layers, norms=like.norms, head=like.head)

    def save(self, path: str | Path) -> None:
        """Write the plan as TOML, which `AdaptConfig(layers="plan.toml")` and recipes take.

        Raises:
            WriteError: the place is not writable.
        """
        write_file(path, self.to_toml())

    def to_toml(self) -> str:
        """The plan as a table of patterns under `layers`, with what it costs and loses in comments."""
        lines = [
            f"# {self.parameters:,} parameters in {(self.table['decomposition'] != NONE).sum()} of {len(self.table)} layers",
            f"# relative error {self.error:.6f}, at least {self.bound:.6f} within {self.budget:,} {self.unit}",
            "",
            "[layers]",
        ]
        for (pattern, choice), row in zip(self.layers.items(), self.table.itertuples(), strict=True):
            ranks = "" if choice.rank is None else f", rank = {json.dumps(choice.rank)}"
            comment = f"{row.parameters:,} parameters, relative error {row.relative:.4f}"
            key = json.dumps(pattern, ensure_ascii=False)
            lines.append(f'{key} = {{ decomposition = "{choice.decomposition}"{ranks} }}  # {comment}')
        return "\n".join(lines) + "\n"


def relative(error: float, energy: float) -> float:
    """√(error / energy); 0 where there is nothing to lose."""
    return math.sqrt(error / energy) if energy > 0 else 0.0


def _largest(ranks: pd.Series) -> int:
    return max(max(r) if isinstance(r, tuple) else r for r in ranks)
