"""Settings of the suite, and the real architectures where they can be imported."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import library

from tests.commands import HUB, RECIPE, tensornet
from tests.images import image_folder, parquet

VISION = Path(sys.prefix) / "vision"
DATA = Path(__file__).parents[2] / "shared" / "data"

settings.register_profile("fast", max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("fast")
torch.set_num_threads(1)  # the suite runs in one process per core, and so do the commands that it runs
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, and a hub that cannot be reached is not asked again and again


def pytest_addoption(parser):
    parser.addoption("--data", default=str(DATA), help="folder with real data sets and backbones")
    parser.addoption("--device", default="cpu", help="where the laws of layers and networks are tested: cpu, cuda, …")


@pytest.fixture(scope="session")
def data(request):
    folder = Path(request.config.getoption("--data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; pass --data DIR")
    return folder


@pytest.fixture(scope="session")
def torchvision():
    """The real torchvision; a build without its operators imports once their schemas are declared."""
    if VISION.is_dir() and str(VISION) not in sys.path:
        sys.path.append(str(VISION))
    try:
        schemas = library.Library("torchvision", "DEF")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch._tensornet_tests_keep = schemas
    except RuntimeError:
        pass  # a complete build declares them itself
    return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def timm(torchvision):
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "hub").symlink_to(HUB)
    image_folder(root / "folders")
    parquet(root / "parquet", ("up", "down", "left"))
    (root / "recipe.toml").write_text(RECIPE)
    image_folder(root / "broken", train=3, test=2)
    (root / "broken/train/ant/1.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="session")
def trained_run(data_root):
    out = data_root / "run"
    tensornet("train", data_root / "recipe.toml", "--data", data_root, "--out", out)
    return out


@pytest.fixture(autouse=True)
def _seeded(request):
    torch.manual_seed(0)
    device = request.config.getoption("--device")
    if device == "cpu":
        yield
        return
    flags = torch.backends.cudnn.flags(deterministic=True, allow_tf32=False)  # laws are of exact products
    with torch.device(device), flags:
        yield
