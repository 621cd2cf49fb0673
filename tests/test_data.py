"""Where images come from, and what happens to them."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tensornet.data import images as images_module
from tensornet.data.augment import centre_crop, normalised, random_crop, random_flip
from tensornet.data.images import Images, Shuffled
from tensornet.data.sources import Split, read_domain
from tensornet.errors import DataError
from tests.images import image_folder, lists, parquet, picture


@pytest.mark.parametrize("make", [image_folder, parquet])
def test_layouts_give_the_same_images(make, tmp_path):
    train, test = read_domain(make(tmp_path / "set"))
    assert train.classes == test.classes == ("ant", "bee")
    assert (len(train.images), len(test.images)) == (48, 20)
    found = Images(test, 12)
    for i in (0, 1, 2):
        wanted = sorted((picture(0, 500 + j) for j in range(10)), key=lambda p: np.asarray(p).tobytes())
        assert any(np.array_equal(found[i][0].permute(1, 2, 0).numpy(), np.asarray(p)) for p in wanted)


def test_lists(tmp_path):
    lists(tmp_path)
    train, test = read_domain(tmp_path, tmp_path / "clipart_train.txt", tmp_path / "clipart_test.txt")
    assert train.classes == test.classes == ("ant", "bee")
    assert len(train.images) == 16
    (tmp_path / "clipart_test.txt").write_text("nowhere.jpg 0\nbad ²\n")
    with pytest.raises(DataError, match=r"(?s)line 1: there is no .*nowhere.*line 2: expected 'PATH LABEL'"):
        read_domain(tmp_path, tmp_path / "clipart_train.txt", tmp_path / "clipart_test.txt")


def test_flat_lists_are_told_apart_by_their_labels(tmp_path):
    root = image_folder(tmp_path / "set")
    flat = tmp_path / "images"
    flat.mkdir()
    files = sorted((root / "train").rglob("*.png"))[:6]
    for i, file in enumerate(files):
        shutil.copy(file, flat / f"{i}.png")
    (tmp_path / "train.txt").write_text("images/0.png 0\nimages/1.png 3\nimages/2.png 7\n")
    (tmp_path / "test.txt").write_text("images/3.png 7\nimages/4.png 0\nimages/5.png 3\n")
    train, test = read_domain(tmp_path, tmp_path / "train.txt", tmp_path / "test.txt")
    assert train.classes == test.classes == ("0", "3", "7")
    assert (list(train.labels), list(test.labels)) == ([0, 1, 2], [2, 0, 1])
    (tmp_path / "test.txt").write_text("images/3.png 7\nimages/4.png 0\nimages/5.png 4\n")
    with pytest.raises(DataError, match=r"other classes: only in train \['3'\], only in test \['4'\]"):
        read_domain(tmp_path, tmp_path / "train.txt", tmp_path / "test.txt")


def test_parquet_rows_without_a_label_or_an_image(tmp_path):
    import datasets

    root = image_folder(tmp_path / "set")
    stored = sorted((root / "train").rglob("*.png"))[0].read_bytes()
    named = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})

    def write(split, images, labels, features=named):
        data = {"image": [image and {"bytes": image, "path": None} for image in images], "label": labels}
        datasets.Dataset.from_dict(data, features=features).to_parquet(tmp_path / f"{split}.parquet")

    write("test", [stored, stored], [0, 1])
    for images, labels, words in (
        ([stored] * 3, [0, -1, 1], "1 of 3 rows have no label: 1"),
        ([stored] * 3, [None, 0, 1], "1 of 3 rows have no label: 0"),
        ([stored, stored, None], [0, 1, 1], "1 of 3 rows have no image: 2"),
    ):
        write("train", images, labels)
        with pytest.raises(DataError, match=words):
            read_domain(tmp_path)
    swapped = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["bee", "ant"])})
    write("train", [stored, stored], [0, 1], swapped)
    with pytest.raises(DataError, match="the same classes in another order"):
        read_domain(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda root: shutil.rmtree(root / "test"), "test does not exist"),
        (lambda root: shutil.rmtree(root / "test" / "bee"), r"only in train \['bee'\]"),
        (lambda root: [shutil.rmtree(root / "train" / c) for c in ("ant", "bee")], "holds no images"),
        (lambda root: [p.unlink() for p in (root / "train" / "ant").iterdir()], "ant holds no images"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, spoil, words):
    root = image_folder(tmp_path / "set")
    spoil(root)
    with pytest.raises(DataError, match=words):
        read_domain(root)


def test_unreadable_images_are_all_listed(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "set")
    (root / "train/ant/0.png").write_bytes(b"not an image")
    (root / "train/bee/3.png").write_bytes((root / "train/bee/4.png").read_bytes()[:40])
    train, _ = read_domain(root)
    with pytest.raises(DataError, match=r"(?s)2 of 48 images cannot be read.*ant/0\.png.*bee/3\.png"):
        Images(train, 8)
    monkeypatch.setattr(images_module, "IN_MEMORY", 0)
    with pytest.raises(DataError, match=r"ant/0\.png"):
        Images(train, 8)


def test_parquet_with_other_columns(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="expected the columns 'image' and 'label'"):
        read_domain(tmp_path)
    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])})
    plain = datasets.Dataset.from_dict({"image": [b"x"], "label": [0]}, features=features)
    plain.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="a struct of 'bytes' and 'path'"):
        read_domain(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read"):
        read_domain(tmp_path)


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    wide = picture(2, 0, 20).resize((40, 20))
    wide.save(tmp_path / "wide.png")
    images = Images(Split("one", [tmp_path / "wide.png"], [0], ("a",)), 10)
    assert images[0][0].shape == (3, 10, 10)
    lazy = images.__getitems__([0])
    assert lazy[0].dtype == torch.uint8


def test_hidden_folders_and_files_are_no_data(tmp_path):
    folder = image_folder(tmp_path / "set", train=3, test=2)
    for hidden in ("train/.ipynb_checkpoints/0.png", "train/ant/.ipynb_checkpoints/0-checkpoint.png", "train/ant/._0.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "train/ant/0.png", folder / hidden)
    train, _ = read_domain(folder)
    assert train.classes == ("ant", "bee")
    assert len(train.images) == 6


def test_every_image_of_a_class_is_read(tmp_path):
    folder = image_folder(tmp_path / "set", train=3, test=2)
    for suffix in ("gif", "pgm", "jfif"):
        picture(0, 7).convert("L").save(folder / f"train/ant/more.{suffix}", {"jfif": "JPEG"}.get(suffix))
    shutil.move(folder / "train/ant/0.png", tmp_path / "elsewhere.png")
    (tmp_path / "linked").mkdir()
    shutil.move(tmp_path / "elsewhere.png", tmp_path / "linked/0.png")
    (folder / "train/ant/linked").symlink_to(tmp_path / "linked")
    (tmp_path / "linked/back").symlink_to(folder / "train/ant")
    train, _ = read_domain(folder)
    assert sorted(path.name for path in train.images[:6]) == ["0.png", "1.png", "2.png", "more.gif", "more.jfif", "more.pgm"]
    assert Images(train, 12)[0][0].shape == (3, 12, 12)


def test_a_class_without_an_image_to_learn_from(tmp_path):
    folder = parquet(tmp_path / "set")
    rows = datasets_rows(folder / "train.parquet")
    rows.filter(lambda row: row["label"] == 0).to_parquet(folder / "train.parquet")
    with pytest.raises(DataError, match="test has images of classes of which train has none: bee"):
        read_domain(folder)


def datasets_rows(path):
    import datasets

    return datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "cache"))


def test_images_are_turned_as_their_camera_says(tmp_path):
    upright = Image.fromarray(np.repeat(np.arange(0, 240, 20, dtype=np.uint8)[:, None], 12, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° to the right
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    images = Images(Split("here", [tmp_path / "turned.png", tmp_path / "upright.png"], [0, 1], ("a", "b")), 12)
    assert torch.equal(images[0][0], images[1][0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    drawn = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (0, 0, 8, 4))
    if mode == "P":
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(0, (0, 0, 8, 4))
        palette.save(tmp_path / "icon.png", transparency=1)
    else:
        drawn.convert(mode).save(tmp_path / "icon.png")
    pixels, _ = Images(Split("here", [tmp_path / "icon.png"], [0], ("a",)), 8)[0]
    assert not pixels[:, :4].any()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_cut_down_to_white(mode, tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    wide = (grey.astype(np.int64) * 257).astype({"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode])
    Image.fromarray(wide).save(tmp_path / "wide.tif")
    with Image.open(tmp_path / "wide.tif") as image:
        assert image.mode == mode
    Image.fromarray(wide.astype("<u2")).save(tmp_path / "wide.png")
    for name in ("wide.tif", "wide.png"):
        pixels, _ = Images(Split("here", [tmp_path / name], [0], ("a",)), 4)[0]
        assert np.array_equal(pixels.numpy(), np.stack([grey] * 3)), name


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32)])
def test_pixels_without_a_white_are_refused(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "0.tif")
    with pytest.raises(DataError, match=r"0\.tif: its pixels are .*save it with 8 or 16 bits"):
        Images(Split("here", [tmp_path / "0.tif"], [0], ("a",)), 4)


def test_kept_and_lazy_images_are_equal(tmp_path, monkeypatch):
    train, _ = read_domain(image_folder(tmp_path / "set"))
    kept = Images(train, 8).__getitems__([3, 1])
    monkeypatch.setattr(images_module, "IN_MEMORY", 0)
    lazy = Images(train, 8).__getitems__([3, 1])
    assert all(torch.equal(a, b) for a, b in zip(kept, lazy, strict=True))


@given(length=st.integers(2, 60), batch=st.integers(1, 20), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_order_covers_everything_and_repeats(length, batch, seed, epoch):
    sampler = Shuffled(length, batch, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(i for b in batches for i in b) == list(range(length))
    assert batches == list(sampler)
    if batch > 1:
        assert min(len(b) for b in batches) > 1, "batch norm cannot use a single image"


@given(size=st.integers(2, 8), pad=st.integers(0, 3), seed=st.integers(0, 9))
def test_crops_and_flips_are_pieces_of_the_image(size, pad, seed):
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8) + 1
    generator = torch.Generator().manual_seed(seed)
    cropped = random_crop(images, size, pad, generator)
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    for image, crop in zip(padded, cropped, strict=True):
        windows = image.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
        assert (windows == crop).flatten(1).all(1).any()
    flipped = random_flip(images, generator)
    for image, flip in zip(images, flipped, strict=True):
        assert torch.equal(image, flip) or torch.equal(image.flip(2), flip)
    assert centre_crop(images, size).shape == (2, 3, size, size)


def test_normalisation():
    x = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    y = normalised(x, torch.tensor([0.5, 0.0, 1.0]), torch.tensor([0.5, 2.0, 1.0]))
    assert y.flatten().tolist() == [1.0, 0.5, 0.0]


def test_a_file_that_ends_too_early_is_named_when_it_is_decoded_late(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "set")
    data = (root / "train/ant/0.png").read_bytes()
    monkeypatch.setattr(images_module, "IN_MEMORY", 0)
    images = Images(read_domain(root)[0], 8)
    (root / "train/ant/0.png").write_bytes(data[:60])
    with pytest.raises(DataError, match=r"ant/0\.png cannot be decoded"):
        images.__getitems__([1, 0])
