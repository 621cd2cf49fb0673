"""The contents of `task.json`, checked field by field."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from tensornet.errors import TaskFileError, TensornetError, bulleted
from tensornet.foldings import Fold, Member, check_fold
from tensornet.plan import TensorPlan
from tensornet.shapes import check_shape
from tensornet.targets import Target

FORMAT = "tensornet-task"
VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MemberRecord(_Record):
    """One weight of a tensor: where it is, which slice it takes, the norm of the backbone's weight."""

    module: str
    parameter: str
    slice: dict[str, NonNegativeInt]
    shape: list[PositiveInt]
    transposed: bool
    kernel: bool
    order: NonNegativeInt
    norm: float
    tied: list[list[str]]

    def target(self) -> Target:
        """The weight, as it was found in the backbone."""
        tied = tuple((place[0], place[1]) for place in self.tied if len(place) == 2)
        shape = check_shape(self.shape, 2)
        return Target(self.module, self.parameter, shape, self.transposed, self.kernel, self.order, tied)


class TensorRecord(_Record):
    """One decomposed tensor. Factors listed under `shared` would be the network's, not the task's; none is yet."""

    decomposition: str
    shape: list[PositiveInt]
    ranks: PositiveInt | list[PositiveInt]
    scale: float
    folding: str
    modes: dict[str, PositiveInt]
    shared: list[str]
    members: list[MemberRecord]

    def plan(self, name: str) -> TensorPlan:
        """The tensor without its factors.

        Raises:
            TensornetError: its parts contradict each other.
        """
        fold = Fold(name, self.modes, tuple(Member(m.target(), m.slice) for m in self.members))
        check_shape(self.shape)
        check_fold(fold)
        if self.shared or not fold.members:
            raise TaskFileError(f"{name}: it has no members, or factors outside this file: {self.shared}")
        rank = self.ranks if isinstance(self.ranks, int) else tuple(self.ranks)
        made = TensorPlan(fold, self.decomposition, rank, self.folding, self.scale)
        if made.shape != tuple(self.shape) or made.cls.feasible_rank(made.shape, rank) != rank:
            raise TaskFileError(f"{name}: {self.decomposition} of shape {self.shape} cannot have the ranks {self.ranks}")
        return made


class BackboneRecord(_Record):
    """Which backbone the task belongs to; see `fingerprint`. `head_hash` is there where the task uses its head."""

    name: str
    head: str | None
    head_hash: str | None
    hash: str
    hash_as: dict[str, str]


class TaskRecord(_Record):
    """All of `task.json`; `classes` are None where no one has named them."""

    format: str
    format_version: int
    name: str
    sha256: str
    config: dict[str, Any]
    backbone: BackboneRecord
    tensors: dict[str, TensorRecord]
    norms: dict[str, str]
    head: dict[str, Any] | None
    classes: list[str] | None = None


def parse(text: bytes, source: str) -> TaskRecord:
    """The record in a `task.json`.

    Raises:
        TaskFileError: it is not JSON, of another or a newer format, or a field is missing, unknown or wrong: all are listed.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f"{source} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TaskFileError(f"{source} does not describe a task: its format should be {FORMAT!r}")
    version = data.get("format_version")
    if not isinstance(version, int) or version > VERSION:
        raise TaskFileError(f"{source} has format version {version}; this tensornet reads up to {VERSION}: upgrade it")
    try:
        return TaskRecord.model_validate(data)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise TaskFileError(f"{source} has {len(lines)} mistakes:{bulleted(lines, 20)}") from None


def as_written(record: TaskRecord) -> dict[str, Any]:
    """A record as plain data, without keys that its file does not have: older files have no classes."""
    return record.model_dump(exclude_unset=True)


def content_hash(record: TaskRecord) -> str:
    """SHA-256 over everything that a record says but the hash of the tensors, which hold this one."""
    text = json.dumps({key: value for key, value in as_written(record).items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def record_of(plan: TensorPlan, norms: dict[str, float]) -> TensorRecord:
    """The record of a tensor; ``norms`` of the backbone's weights by target name."""
    members = [
        MemberRecord(
            module=m.target.module,
            parameter=m.target.parameter,
            slice=dict(m.index),
            shape=list(m.target.shape),
            transposed=m.target.transposed,
            kernel=m.target.kernel,
            order=m.target.order,
            norm=norms[m.target.name],
            tied=[list(place) for place in m.target.tied],
        )
        for m in plan.fold.members
    ]
    return TensorRecord(
        decomposition=plan.decomposition,
        shape=list(plan.shape),
        ranks=plan.rank if isinstance(plan.rank, int) else list(plan.rank),
        scale=plan.scale,
        folding=plan.folding,
        modes=dict(plan.fold.modes),
        shared=[],
        members=members,
    )


def plans_of(record: TaskRecord, source: str) -> list[TensorPlan]:
    """The tensors of a record, in network order.

    Raises:
        TaskFileError: one contradicts itself; all that do are listed.
    """
    plans, problems = [], []
    for name, tensor in record.tensors.items():
        try:
            plans.append(tensor.plan(name))
        except TensornetError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise TaskFileError(f"{source} has {len(problems)} tensors that cannot be:{bulleted(problems, 20)}")
    return plans
