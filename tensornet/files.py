"""Tasks on disk: a folder of `task.json`, `task.safetensors` and a `README.md` card."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tensornet.atomic import read_folder, write_folder
from tensornet.card import card
from tensornet.config import AdaptConfig
from tensornet.decompositions import Decomposition
from tensornet.delta import Delta
from tensornet.errors import ConfigError, NonFiniteError, ShapeError, StateError, TaskFileError, bulleted
from tensornet.fingerprint import DTYPES, head_fingerprint
from tensornet.heads import describe, outputs
from tensornet.names import check_task_name
from tensornet.plan import TensorPlan
from tensornet.records import (
    FORMAT,
    VERSION,
    BackboneRecord,
    MemberRecord,
    TaskRecord,
    as_written,
    content_hash,
    parse,
    plans_of,
    record_of,
)
from tensornet.states import packed
from tensornet.task import Task
from tensornet.versions import versions_counted

JSON, TENSORS, CARD = "task.json", "task.safetensors", "README.md"


@dataclass(frozen=True)
class TaskFile:
    """A task as its folder holds it, without a backbone.

    Attributes:
        name: of the task.
        config: what it was made from.
        record: all of `task.json`.
        tensors: every decomposed tensor, in network order.
        norms: tensors of each normalisation layer of the task, by module path.
        head: tensors of the head by name.
    """

    name: str
    config: AdaptConfig
    record: TaskRecord
    tensors: tuple[tuple[TensorPlan, Decomposition], ...]
    norms: Mapping[str, Mapping[str, Tensor]]
    head: Mapping[str, Tensor]

    def deltas(self) -> Iterator[tuple[TensorPlan, Delta, MemberRecord]]:
        """The delta of every weight, its tensor, and what the record says of the weight."""
        for plan, module in self.tensors:
            records = {record.target().name: record for record in self.record.tensors[plan.fold.name].members}
            for member in plan.fold.members:
                yield plan, Delta(module, plan.fold, member, plan.scale), records[member.target.name]

    def copied(self) -> TaskFile:
        """The same, with factors that no one else holds."""
        return replace(self, tensors=tuple((plan, copy.deepcopy(module)) for plan, module in self.tensors))

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of deltas, norms (running statistics are none) and head, and their total."""
        counts = {
            "deltas": sum(plan.parameters for plan, _ in self.tensors),
            "norms": sum(t.numel() for norm in self.norms.values() for n, t in norm.items() if not _is_statistic(n)),
            "head": sum(t.numel() for n, t in self.head.items() if not _is_statistic(n) and t.is_floating_point()),
        }
        return counts | {"total": sum(counts.values())}


def write_task(path: str | Path, task: Task, backbone: nn.Module, backbone_name: str, identity: dict[str, str]) -> None:
    """Write ``task`` as the folder ``path``, whole or not at all.

    Args:
        path: a task that is there is replaced; what else is in its folder stays.
        task: to write.
        backbone: on which it was trained, for the norms of its weights.
        backbone_name, identity: tell it from others; see `fingerprint`.

    Raises:
        NonFiniteError: a tensor of the task holds NaN or infinity.
        StateError: a head or a norm has a state that is no tensor, a norm is of another kind than the backbone's, or the
            task's classes are not names of its outputs.
        WriteError: as `write_folder`.
    """
    classes = _checked_classes(task)
    own = task.own_norms()
    for layer, norm in own.items():
        _check_kind(task.name, layer, norm, backbone.get_submodule(layer))
    head = {} if task.head is None else task.head.state_dict()
    tensors = _keyed(task.tensors(), {layer: norm.state_dict() for layer, norm in own.items()}, head)
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise StateError(f"task {task.name!r}: {key} is a {type(tensor).__name__}, and a task file holds tensors only")
        if _broken(key, tensor):
            raise NonFiniteError(f"task {task.name!r}: {key} holds NaN or infinity; did the training diverge?")
    norms = {}
    for plan, _ in task.tensors():
        for member in plan.fold.members:
            weight = member.target.weight_in(backbone)
            norms[member.target.name] = float(weight.detach().double().norm())
    hashes = dict(identity)
    head_hash = head_fingerprint(backbone, task.head_path) if task.head is None else None
    record = TaskRecord(
        format=FORMAT,
        format_version=VERSION,
        name=task.name,
        sha256="",
        config=task.config.to_dict(),
        backbone=BackboneRecord(
            name=backbone_name, head=task.head_path, head_hash=head_hash, hash=hashes.pop("stored"), hash_as=hashes
        ),
        tensors={plan.fold.name: record_of(plan, norms) for plan, _ in task.tensors()},
        norms={layer: type(norm).__name__ for layer, norm in own.items()},
        head=None if task.head is None else describe(task.head),
        classes=classes,
    )
    plans = [plan for plan, _ in task.tensors()]
    text = card(task.name, backbone_name, task.parameter_counts(), plans, len(task.norms), task.head is not None, classes)
    _write(path, record, tensors, text)


def rewrite_task(path: str | Path, file: TaskFile) -> None:
    """Write a task that was read and changed, such as one that was pruned, as the folder ``path``, whole or not at all.

    Args:
        path: as in `write_task`.
        file: its `config`, `tensors`, `norms` and `head` are written; of its `record` what they do not say: the backbone,
            the norms of its weights, the kinds of norm layers and head.

    Raises:
        WriteError: as `write_folder`.
    """
    norms = {delta.target.name: member.norm for _, delta, member in file.deltas()}
    record = file.record.model_copy(
        update={
            "config": file.config.to_dict(),
            "tensors": {plan.fold.name: record_of(plan, norms) for plan, _ in file.tensors},
            "norms": {layer: file.record.norms[layer] for layer in file.norms},
        }
    )
    plans = [plan for plan, _ in file.tensors]
    counts, head = file.parameter_counts(), bool(file.head)
    text = card(file.name, record.backbone.name, counts, plans, len(file.norms), head, record.classes)
    _write(path, record, _keyed(file.tensors, file.norms, file.head), text)


def _keyed(
    tensors: Iterable[tuple[TensorPlan, Decomposition]],
    norms: Mapping[str, Mapping[str, Tensor]],
    head: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """All tensors of a task under the keys of its file."""
    keyed = {f"delta/{plan.fold.name}/{name}": t for plan, module in tensors for name, t in module.factors().items()}
    keyed |= {f"norm/{layer}/{name}": t for layer, norm in norms.items() for name, t in norm.items()}
    return keyed | {f"head/{name}": t for name, t in head.items()}


def _check_kind(name: str, layer: str, norm: nn.Module, shared: nn.Module) -> None:
    """A task's own norm is of the kind of the backbone's, or a file could not be read back."""
    found, wanted = (
        (type(module).__name__, {key: tuple(getattr(value, "shape", ())) for key, value in module.state_dict().items()})
        for module in (norm, shared)
    )
    if found != wanted:
        raise StateError(
            f"task {name!r}: its norm {layer} is a {found[0]} with {found[1]}, where the backbone has a {wanted[0]} with "
            f"{wanted[1]}; a task file holds norms of the backbone's kind alone"
        )


def _checked_classes(task: Task) -> list[str] | None:
    """The task's classes, which are names, one for each output of the head."""
    if task.classes is None:
        return None
    classes = task.classes
    names = isinstance(classes, Iterable) and not isinstance(classes, str)
    if not names or not all(isinstance(name, str) for name in classes):
        raise StateError(f"task {task.name!r}: its classes should be names in the order of the outputs; got {classes!r}")
    width = None if task.head is None else outputs(task.head)
    if width is not None and len(classes) != width:
        raise StateError(f"task {task.name!r}: its head has {width} outputs; got {len(classes)} classes")
    return list(classes)


def _write(path: str | Path, record: TaskRecord, tensors: Mapping[str, Tensor], text: str) -> None:
    metadata = {"record": content_hash(record)}  # one entry: the order in which several are written varies
    data = save(packed(dict(sorted(tensors.items()))), metadata)
    record = record.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    write_folder(path, {JSON: json.dumps(as_written(record), indent=1) + "\n", TENSORS: data, CARD: text}, mark=JSON)


@versions_counted()
def read_task(path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> TaskFile:
    """Read a task folder; no backbone is needed.

    Args:
        path: the folder.
        device: where its tensors go.
        dtype: of its floating-point tensors; as stored where it is None.

    Raises:
        TaskFileError: a file is missing, was changed, or is of a newer format, or its parts contradict each other.
        UnknownNameError: a decomposition is not registered.
    """
    path = Path(path)
    text, data = _both(path)
    record = parse(text, f"{path / JSON}")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise TaskFileError(f"{path / TENSORS} is not the file that {JSON} describes: it was changed or cut short")
    try:
        name = check_task_name(record.name)
        config = AdaptConfig.from_dict(record.config)
        tensors = load(data)
        metadata = _metadata(data)
    except (SafetensorError, ConfigError, ValueError) as error:
        raise TaskFileError(f"{path}: {error}") from None
    if metadata.get("record") != content_hash(record):
        raise TaskFileError(f"{path / JSON} is not the file that {TENSORS} was written with: it was changed")
    plans = plans_of(record, str(path / JSON))
    for key, tensor in tensors.items():
        if _broken(key, tensor):
            raise TaskFileError(f"{path / TENSORS}: {key} holds NaN or infinity")
        if tensor.dtype not in DTYPES.values() and not key.startswith("head/") and not key.endswith("/num_batches_tracked"):
            raise TaskFileError(f"{path / TENSORS}: {key} is {tensor.dtype}; floating-point numbers were expected")
        own = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        tensors[key] = tensor.to(device, own)
    return _assembled(name, config, record, plans, tensors, path)


def _assembled(
    name: str, config: AdaptConfig, record: TaskRecord, plans: list[TensorPlan], tensors: dict[str, Tensor], path: Path
) -> TaskFile:
    decomposed: list[tuple[TensorPlan, Decomposition]] = []
    problems: list[str] = []
    for plan in plans:
        wanted = plan.cls.factor_shapes(plan.shape, plan.rank)
        keys = {factor: f"delta/{plan.fold.name}/{factor}" for factor in wanted}
        found = {factor: tensors.pop(key) for factor, key in keys.items() if key in tensors}
        try:
            decomposed.append((plan, plan.cls.from_factors(plan.shape, plan.rank, found)))
        except ShapeError as error:
            problems.append(f"{plan.fold.name}: {error}")
    norms: dict[str, dict[str, Tensor]] = {layer: {} for layer in record.norms}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        part, _, rest = key.partition("/")
        layer, _, leaf = rest.rpartition("/")
        if part == "norm" and layer in norms and leaf:
            norms[layer][leaf] = tensor
        elif part == "head" and rest and record.head is not None:
            head[rest] = tensor
        else:
            problems.append(f"{key!r} is in {TENSORS} and not in {JSON}")
    problems += [f"norm layer {layer!r} has no tensors" for layer, found in norms.items() if not found]
    if problems:
        raise TaskFileError(f"{path}: {JSON} and {TENSORS} contradict each other:{bulleted(problems, 20)}")
    return TaskFile(name, config, record, tuple(decomposed), norms, head)


def _both(path: Path) -> tuple[bytes, bytes]:
    """The two files of one version of a task."""
    try:
        text, data = read_folder(path, [JSON, TENSORS])
    except FileNotFoundError as error:
        raise TaskFileError(f"{path} is no task folder: {Path(error.filename).name}: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise TaskFileError(f"{path} cannot be read: {error}") from None
    return text, data


def _metadata(data: bytes) -> dict[str, str]:
    """What a safetensors file says about itself: its header begins with eight bytes of length."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def _broken(key: str, tensor: Tensor) -> bool:
    """Whether it holds NaN, or infinity anywhere but in a head, where that can be a mask."""
    if not tensor.is_floating_point():
        return False
    bad = torch.isnan(tensor) if key.startswith("head/") else ~torch.isfinite(tensor)
    return bool(bad.any())


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
