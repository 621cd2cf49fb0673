"""Every error that the library raises on bad input, and the sentences they are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def bulleted(lines: Sequence[str], most: int | None = None) -> str:
    """Lines below a sentence, each behind a dash; of more than ``most`` the first, and how many more there are."""
    shown = list(lines) if most is None or len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]
    return "".join(f"\n  - {line}" for line in shown)


class TensornetError(Exception):
    """Base of every error raised on bad input; each also derives from the built-in it specialises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), vars(self)  # a worker process sends its errors as pickles


class ConfigError(TensornetError, ValueError):
    """A setting is not one of those allowed."""


class RankError(ConfigError):
    """A rank or a parameter budget that the shape cannot serve."""


class ShapeError(TensornetError, ValueError):
    """Tensors or modules whose shapes do not meet."""


class NonFiniteError(TensornetError, ValueError):
    """NaN or infinity where numbers were expected."""


class TargetError(TensornetError, ValueError):
    """A pattern or layer that cannot be adapted."""


class NameTakenError(TensornetError, ValueError):
    """A name that is used already, or that must not be used."""


class UnknownNameError(TensornetError, KeyError):
    """A name that nothing is registered under; the sentence lists those that exist."""

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        self.sentence = f"unknown {kind} {name!r}. {near(str(name), known)}{hint}"
        super().__init__(self.sentence)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.sentence


class StateError(TensornetError, RuntimeError):
    """A call that the present state of the object does not allow."""


class BackboneError(TensornetError, ValueError):
    """A backbone that cannot be found, built or used."""


class TaskFileError(TensornetError, ValueError):
    """A task folder that cannot be trusted or understood."""


class MismatchError(TaskFileError):
    """A task and a backbone that do not belong together; every mismatch is listed."""

    def __init__(self, what: str, mismatches: Sequence[str], advice: str = "") -> None:
        self.mismatches = tuple(mismatches)
        super().__init__(f"{what}:{bulleted(mismatches)}" + (f"\n{advice}" if advice else ""))


class WriteError(TensornetError, OSError):
    """A file that could not be written; nothing was left half-written."""


class DataError(TensornetError, ValueError):
    """A data folder that cannot be used."""


class RecipeError(TensornetError, ValueError):
    """A recipe with mistakes; every one is listed, with its line where it has one."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{source} cannot be run:{bulleted(problems)}")


class MissingExtraError(TensornetError, ImportError):
    """A part of the package whose optional dependencies are not installed."""

    def __init__(self, what: str, extra: str, missing: object) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'tensornet[{extra}]' (missing: {missing})")


def _again(cls: type[TensornetError], args: tuple[Any, ...]) -> TensornetError:
    """An error with the ``args`` of another, whatever its own constructor takes."""
    error = cls.__new__(cls, *args)
    error.args = args
    return error


def near(name: str, known: Iterable[str], limit: int = 8) -> str:
    """One sentence that offers the names closest to ``name``, or lists what there is."""
    names = list(dict.fromkeys(filter(None, known)))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    close += [n for n in names if name and name in n and n not in close][: 3 - len(close)]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    if not names:
        return "There is none."
    rest = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return f"There is: {', '.join(names[:limit])}{rest}."
