"""Small image sets on disk, in the layouts that recipes read."""

import io

import numpy as np
from PIL import Image


def picture(label, seed, size=12):
    """An image whose brightest half tells its class; enough to be learnt."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
    half = size // 2
    region = [np.s_[:half], np.s_[half:], np.s_[:, :half]][label]
    pixels[region] += 150
    return Image.fromarray(pixels)


def image_folder(root, classes=("ant", "bee"), train=24, test=10, size=12):
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(label, 1000 * label + i + (500 if split == "test" else 0), size).save(folder / f"{i}.png")
    return root


def parquet(root, classes=("ant", "bee"), train=24, test=10):
    import datasets

    root.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))})
    for split, count in (("train", train), ("test", test)):
        rows = {"image": [], "label": []}
        for label in range(len(classes)):
            for i in range(count):
                buffer = io.BytesIO()
                picture(label, 1000 * label + i + (500 if split == "test" else 0)).save(buffer, "PNG")
                rows["image"].append({"bytes": buffer.getvalue(), "path": None})
                rows["label"].append(label)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{split}.parquet")
    return root


def lists(root, domains=("clipart", "sketch"), classes=("ant", "bee")):
    """DomainNet: DOMAIN/CLASS/FILE, and DOMAIN_train.txt and DOMAIN_test.txt."""
    for domain in domains:
        for split, count in (("train", 8), ("test", 4)):
            lines = []
            for label, name in enumerate(classes):
                folder = root / domain / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    file = folder / f"{split}_{i}.jpg"
                    picture(label, i).save(file)
                    lines.append(f"{domain}/{name}/{file.name} {label}")
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")
    return root
