"""Task folders that are looked at together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tensornet.errors import TaskFileError
from tensornet.files import TaskFile, read_task

Folders = Sequence[str | Path] | str | Path


def read_tasks(tasks: Folders) -> dict[str, TaskFile]:
    """Tasks of one backbone by label: the task's name; where names are equal, what else tells them apart.

    Raises:
        TaskFileError: a folder is not a task, holds no deltas, or belongs to another backbone than the first.
    """
    paths = [Path(path) for path in ([tasks] if isinstance(tasks, str | Path) else tasks)]
    if not paths:
        raise TaskFileError("no task folder was given")
    files = [read_task(path) for path in paths]
    first = files[0].record.backbone
    for path, file in zip(paths, files, strict=True):
        if not file.tensors:
            raise TaskFileError(f"{path} has no deltas: nothing to measure")
        if file.record.backbone.hash != first.hash:
            theirs = file.record.backbone
            raise TaskFileError(
                f"{path} belongs to the backbone {theirs.name} ({theirs.hash[:12]}…), {paths[0]} to {first.name} "
                f"({first.hash[:12]}…): tasks of different backbones cannot be compared"
            )
    return dict(zip(_labels(paths, files), files, strict=True))


def _labels(paths: Sequence[Path], files: Sequence[TaskFile]) -> list[str]:
    """The shortest labels that differ: name, then kind and rank, then both, then the path."""
    ways: list[Callable[[Path, TaskFile], str]] = [
        lambda path, file: file.name,
        lambda path, file: _kind(file),
        lambda path, file: f"{file.name}, {_kind(file)}",
    ]
    for way in ways:
        labels = [way(path, file) for path, file in zip(paths, files, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    return (
        list(dict.fromkeys(map(str, paths)))
        if len(set(paths)) == len(paths)
        else [f"{p} ({i})" for i, p in enumerate(paths)]
    )


def _kind(file: TaskFile) -> str:
    kinds = {plan.decomposition for plan, _ in file.tensors}
    ranks = [max(plan.rank) if isinstance(plan.rank, tuple) else plan.rank for plan, _ in file.tensors]
    return f"{' and '.join(sorted(kinds))}, rank {max(ranks)}"
