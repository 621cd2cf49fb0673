"""Deltas that matter little, removed or rounded to a lower rank: a smaller task that is a task again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import nn

from analysis.kinds import ROUNDING, Kind, plain
from analysis.norm_layers import norm_changes
from analysis.norms import layer_norms
from tensornet.config import NONE, Choice
from tensornet.decompositions import Decomposition, Rung, Spectrum
from tensornet.errors import ConfigError, TaskFileError
from tensornet.files import TaskFile, read_task, rewrite_task
from tensornet.plan import TensorPlan
from tensornet.shapes import Rank

_COLUMNS = ["norm", "kept", "decomposition", "rank_before", "rank", "parameters_before", "parameters"]


@dataclass(frozen=True, eq=False)
class Pruned:
    """What is left of a task.

    Attributes:
        file: the smaller task.
        table: index layers in network order; columns `norm`, `kept`, `decomposition`, `rank_before`, `rank`,
            `parameters_before` and `parameters` (of a tensor that several layers share, at its first layer).
        returned: norm layers that are the backbone's again, with how much the task had changed them.
    """

    file: TaskFile
    table: pd.DataFrame
    returned: Mapping[str, float]

    @property
    def removed(self) -> list[str]:
        """The layers that compute what the backbone computes."""
        return [str(layer) for layer in self.table.index[~self.table["kept"]]]


def prune(
    task: str | Path,
    out: str | Path | None = None,
    *,
    threshold: float | None = None,
    keep: int | None = None,
    budget: float | None = None,
    energy: float | None = None,
    kind: Kind = "delta",
    norms: float | None = None,
    backbone: nn.Module | None = None,
) -> Pruned:
    """Remove the deltas of layers that changed little, or round every delta to the rank that it needs.

    Args:
        task: a task folder; no backbone and no data are needed.
        out: the folder for the smaller task; None writes nothing.
        threshold: layers whose norm is strictly below it lose their delta.
        keep: only so many layers keep theirs, those of the largest norm.
        budget: layers lose theirs, the smallest norm first, until the deltas hold at most so many parameters; a float in
            (0, 1] is a share of what they hold.
        energy: in (0, 1]; each tensor is rounded to the fewest parameters found that keep this share of its squared norm,
            which is ‖ΔW‖²; where a depth folding stacks the deltas of several layers, that of all of them together.
        kind: of the norm: "delta", "relative" or "per_parameter".
        norms: norm layers that changed less than this become the backbone's again; see `norm_changes`. May be given alone.
        backbone: for ``norms``; the network, its weights loaded.

    Raises:
        ConfigError: none or several of the criteria, a value that none can have, or ``out`` is the task itself.
        TaskFileError: the folder is no task, has no deltas, all of them would go, or it is of another backbone.
        WriteError: ``out`` cannot be written.
    """
    file = read_task(task)
    if out is not None and Path(out).resolve() == Path(task).resolve():
        raise ConfigError(f"{out} is the task that is pruned, and would be gone; choose another folder for the smaller one")
    alone = norms is not None and threshold is keep is budget is energy is None
    if not file.tensors and not alone:
        raise TaskFileError(f"{task} has no deltas: nothing to prune")
    if alone:
        found = layer_norms(file, kind) if file.tensors else {}
        pruned = _described(file, found, set(found), {})
    else:
        pruned = pruned_file(file, threshold, keep, budget, energy, kind)
    if norms is not None:
        pruned = _norms_returned(pruned, norms, backbone)
    if out is not None:
        rewrite_task(out, pruned.file)
    return pruned


def pruned_file(
    file: TaskFile,
    threshold: float | None = None,
    keep: int | None = None,
    budget: float | None = None,
    energy: float | None = None,
    kind: Kind = "delta",
) -> Pruned:
    """`prune` of a task that was read already; nothing is written."""
    criteria = {"threshold": threshold, "keep": keep, "budget": budget, "energy": energy}
    given = {name: plain(value) for name, value in criteria.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"give one of threshold, keep, budget and energy; got {', '.join(given) or 'none'}")
    (what, value), found = *given.items(), layer_norms(file, kind)
    _check(what, value)
    if what == "energy":
        rounded = {plan.fold.name: _rounded(module, value) for plan, module in file.tensors}
        if all(module is None for module in rounded.values()):
            raise TaskFileError(f"every delta of {file.name!r} is zero: there is no energy to keep. Say keep=0 to keep none")
        return _described(file, found, set(found), rounded)
    ascending = sorted(found, key=lambda layer: found[layer])
    if what == "threshold":
        kept = {layer for layer in found if found[layer] >= value}
        if not kept:
            raise TaskFileError(
                f"threshold {value} removes every delta of {file.name!r}: the largest norm is {max(found.values()):.6g}. "
                "Lower it, or say keep=0 to keep none"
            )
    elif what == "keep":
        kept = set(ascending[max(len(ascending) - int(value), 0) :])
    else:
        limit = math.floor(value * _held(file, set(found))) if isinstance(value, float) else int(value)
        kept = set(found)
        for layer in ascending:
            if _held(file, kept) <= limit:
                break
            kept.discard(layer)
    return _described(file, found, kept, {})


def _check(what: str, value: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = number and isinstance(value, int) and value >= 0
    allowed = {
        "threshold": (number and value >= 0, "a number ≥ 0"),
        "keep": (whole, "a number of layers, an int ≥ 0"),
        "budget": (whole or (number and 0 < value <= 1), "a number of parameters, an int ≥ 0, or a share in (0, 1]"),
        "energy": (number and 0 < value <= 1, "a share in (0, 1]"),
    }
    fine, expected = allowed[what]
    if not fine:
        raise ConfigError(f"{what} must be {expected}; got {value!r}")


def _held(file: TaskFile, kept: set[str]) -> int:
    """Parameters of the tensors that still have a layer."""
    return sum(plan.parameters for plan, _ in file.tensors if any(m.target.name in kept for m in plan.fold.members))


def _rounded(module: Decomposition, energy: float) -> Decomposition | None:
    """The same tensor with the fewest parameters that keep a share of its energy; None for a zero tensor."""
    tensor = module.to_tensor().detach()
    if not tensor.any():
        return None
    cls, spectrum = type(module), Spectrum(tensor)
    allowed = (1 - energy + ROUNDING) * spectrum.energy
    fits = [rung for rung in _near(cls, spectrum, allowed, module.rank) if rung.error <= allowed]
    best = min(fits, key=lambda rung: cls.parameter_count(module.shape, rung.rank), default=None)
    if best is None or cls.parameter_count(module.shape, best.rank) >= cls.parameter_count(module.shape, module.rank):
        return module
    dtype = next(module.parameters()).dtype
    return cls.from_factors(module.shape, best.rank, {name: factor.to(dtype) for name, factor in best.factors.items()})


def _near(cls: type[Decomposition], spectrum: Spectrum, allowed: float, rank: Rank) -> list[Rung]:
    """Decompositions of about the lowest ranks whose error is allowed."""
    known = cls.cheapest(spectrum, allowed)
    if known is not None:
        return [known]
    highest = max(rank) if isinstance(rank, tuple) else rank
    doubling = [*(2**i for i in range(highest.bit_length()) if 2**i < highest), highest]
    for enough in doubling:
        found = cls.ladder(spectrum, [enough], 0)
        if any(rung.error <= allowed for rung in found):  # which a longer ladder, with other starts, may not find again
            return [*found, *cls.ladder(spectrum, range(enough // 2 + 1, enough + 1), 0)]
    return []


def _described(
    file: TaskFile, norms: Mapping[str, float], kept: set[str], rounded: Mapping[str, Decomposition | None]
) -> Pruned:
    tensors: list[tuple[TensorPlan, Decomposition]] = []
    rows: dict[str, dict[str, object]] = {}
    choices: dict[str, Choice] = {}
    for plan, before in file.tensors:
        after = rounded.get(plan.fold.name, before)
        members = tuple(m for m in plan.fold.members if m.target.name in kept and after is not None)
        if members and after is not None:
            tensors.append((replace(plan, fold=replace(plan.fold, members=members), rank=after.rank), after))
        for i, member in enumerate(plan.fold.members):
            name, stays = member.target.name, member in members
            rank = after.rank if stays and after is not None else None
            first = next((m.target.name for m in members), None)
            rows[name] = {
                "norm": norms[name],
                "kept": stays,
                "decomposition": plan.decomposition if stays else NONE,
                "rank_before": plan.rank,
                "rank": rank,
                "parameters_before": plan.parameters if i == 0 else 0,
                "parameters": plan.cls.parameter_count(plan.shape, rank) if rank is not None and name == first else 0,
            }
            if not stays or rank != plan.rank:
                choices[re.escape(name)] = Choice(plan.decomposition, rank) if stays else Choice(NONE)
    table = pd.DataFrame(rows.values(), index=list(rows), columns=_COLUMNS)
    table["rank"] = pd.Series([row["rank"] for row in rows.values()], index=table.index, dtype=object)  # ints stay ints
    table = table.reindex(list(norms))
    table.index.name = "layer"
    layers = {pattern: choice for pattern, choice in file.config.per_layer.items() if pattern not in choices}
    layers.update(choices)  # the last match wins, so these come last
    config = replace(file.config, layers=layers)
    return Pruned(replace(file, config=config, tensors=tuple(tensors)), table, {})


def _norms_returned(pruned: Pruned, limit: float, backbone: nn.Module | None) -> Pruned:
    if backbone is None:
        raise ConfigError("which norm layers changed little can only be told with the backbone: give it too")
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
        raise ConfigError(f"norms must be a number ≥ 0; got {limit!r}")
    changed = norm_changes(pruned.file, backbone)
    returned = {path: change for path, change in changed.items() if change < limit}
    left = {path: norm for path, norm in pruned.file.norms.items() if path not in returned}
    config = replace(pruned.file.config, norms=f"(?:{'|'.join(map(re.escape, left))})" if left else "shared")
    return replace(pruned, file=replace(pruned.file, config=config, norms=left), returned=returned)
