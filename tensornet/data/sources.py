"""Where labelled images are: folders of classes, parquet files, or lists of files."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensornet.errors import DataError, MissingExtraError, bulleted

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Split:
    """Labelled images, not yet decoded.

    Attributes:
        where: for messages.
        images: paths, or encoded bytes.
        labels: index into ``classes``, one per image.
        classes: names in label order.
    """

    where: str
    images: Sequence[Path | bytes]
    labels: Sequence[int]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise DataError(f"{self.where} holds no images (looked for {', '.join(sorted(SUFFIXES))})")

    def fingerprint(self) -> str:
        """SHA-256 over classes, labels and images: their bytes, or the names and sizes of their files."""
        digest = hashlib.sha256("|".join(self.classes).encode())
        for image, label in zip(self.images, self.labels, strict=True):
            seen = image if isinstance(image, bytes) else f"{image.name}|{image.stat().st_size}".encode()
            digest.update(b"|%d|%d|%s" % (label, len(seen), seen))
        return digest.hexdigest()


def read_domain(data: Path, train: Path | None = None, test: Path | None = None) -> tuple[Split, Split]:
    """The train and the test split of one domain.

    Args:
        data: a folder with `train.parquet` and `test.parquet` (columns `image` and `label`), or with `train/CLASS/` and
            `test/CLASS/` folders of images; with ``train`` and ``test``, the folder from which their lines begin.
        train, test: lists of files, a path and a label in each line, as DomainNet has them.

    Raises:
        DataError: a split is missing or empty, the classes of the two differ, or test has one that train has no image of.
    """
    if train is not None and test is not None:
        splits = read_lists(data, train, test)
    elif not data.is_dir():
        raise DataError(f"the data folder {data} does not exist")
    elif (data / "train.parquet").is_file():
        splits = (read_parquet(data / "train.parquet"), read_parquet(data / "test.parquet"))
    else:
        splits = (read_folder(data / "train"), read_folder(data / "test"))
    if splits[0].classes != splits[1].classes:
        only = [sorted(set(a.classes) - set(b.classes)) for a, b in (splits, splits[::-1])]
        if only == [[], []]:
            raise DataError(f"{data}: train and test have the same classes in another order; write both in the same")
        raise DataError(f"{data}: train and test have other classes: only in train {only[0]}, only in test {only[1]}")
    unseen = [splits[1].classes[label] for label in sorted(set(splits[1].labels) - set(splits[0].labels))]
    if unseen:
        raise DataError(f"{data}: test has images of classes of which train has none: {', '.join(unseen[:20])}")
    return splits


def held_out(split: Split, share: float) -> tuple[Split, Split]:
    """A split in two: what is left, and ``share`` of every class's images, the same ones in every call.

    Raises:
        DataError: a class is left with no image, or the share holds none.
    """
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels):
        rows.setdefault(label, []).append(row)
    kept: set[int] = set()
    for label, own in rows.items():
        count = round(share * len(own))
        if count == len(own):
            raise DataError(f"{split.where}: holding out {share:g} leaves no image of {split.classes[label]!r}; lower it")
        kept.update(random.Random(label).sample(own, count))
    if not kept:
        raise DataError(f"{split.where}: {share:g} of its {len(split.labels)} images is none; raise the share")

    def part(where: str, chosen: Sequence[int]) -> Split:
        return Split(where, [split.images[i] for i in chosen], [split.labels[i] for i in chosen], split.classes)

    rest = [i for i in range(len(split.labels)) if i not in kept]
    return part(split.where, rest), part(f"{split.where}, held out", sorted(kept))


def read_folder(folder: Path) -> Split:
    """A folder with one folder of images per class, sorted by name (ImageFolder); what begins with a dot is left out.

    Raises:
        DataError: there is no such folder, it cannot be read, or holds no class or no image.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; expected train/CLASS/ and test/CLASS/ folders, or train.parquet and test.parquet"
        )
    try:
        classes = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    images, labels = [], []
    for label, name in enumerate(classes):
        every = sorted(p for p in _files(folder / name) if p.suffix.lower() in SUFFIXES)
        found = [p for p in every if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
        if not found:
            raise DataError(f"{folder / name} holds no images")
        images += found
        labels += [label] * len(found)
    return Split(str(folder), images, labels, tuple(classes))


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, also behind links, of which some may lead back."""
    seen: set[str] = set()
    for at, below, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(at)) in seen:
            below.clear()
            continue
        seen.add(place)
        yield from (Path(at, name) for name in files)


def read_parquet(path: Path) -> Split:
    """A parquet file in the image format of the `datasets` library: columns `image` and `label`.

    Raises:
        DataError: there is no such file, or it has other columns.
    """
    try:
        from datasets import ClassLabel, Features
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet files", "train", error.name) from error
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        table = parquet.read_table(path, use_threads=False)
        features = Features.from_arrow_schema(table.schema)
    except (OSError, ArrowException, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(features.get("label"), ClassLabel) or "image" not in features:
        raise DataError(f"{path}: expected the columns 'image' and 'label' (with class names); got {features}")
    stored = table["image"].to_pylist()
    if any(image is not None and not isinstance(image, dict) for image in stored):
        raise DataError(f"{path}: 'image' is not in the format of `datasets`, a struct of 'bytes' and 'path'")
    labels, classes = table["label"].to_pylist(), tuple(features["label"].names)
    unlabelled = [i for i, label in enumerate(labels) if label is None or not 0 <= label < len(classes)]
    absent = [i for i, image in enumerate(stored) if image is None or image["bytes"] is image["path"] is None]
    for rows, what in ((unlabelled, "label"), (absent, "image")):
        if rows:
            some = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
            raise DataError(f"{path}: {len(rows)} of {len(labels)} rows have no {what}: {some}; leave them out")
    images = [image["bytes"] if image["bytes"] is not None else Path(image["path"]) for image in stored]
    return Split(str(path), images, labels, classes)


def read_lists(root: Path, train: Path, test: Path) -> tuple[Split, Split]:
    """Two lists of files, a path (from ``root``) and a label in each line.

    A class is named by the file's folder; where folders of two classes have one name, every class by its label.

    Raises:
        DataError: a list is missing, a line is wrong, or a file is; all are listed.
    """
    parsed = [(path, _lines(root, path)) for path in (train, test)]
    names: dict[int, str] = {}
    for _, rows in parsed:
        for file, label in rows:
            names.setdefault(label, file.parent.name)
    if len(set(names.values())) < len(names):
        names = {label: str(label) for label in names}
    splits = []
    for path, rows in parsed:
        seen = sorted({label for _, label in rows})
        index = {label: i for i, label in enumerate(seen)}
        classes = tuple(names[label] for label in seen)
        splits.append(Split(str(path), [file for file, _ in rows], [index[label] for _, label in rows], classes))
    return splits[0], splits[1]


def _lines(root: Path, path: Path) -> list[tuple[Path, int]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from None
    rows, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not label.isdecimal() or not name:
            problems.append(f"line {number}: expected 'PATH LABEL'; got {line!r}")
        elif not (root / name).is_file():
            problems.append(f"line {number}: there is no {root / name}")
        else:
            rows.append((root / name, int(label)))
    if problems:
        raise DataError(f"the list {path} cannot be used:{bulleted(problems, 10)}")
    return rows
