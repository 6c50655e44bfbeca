"""What several test files share: a run of seconds, the pictures it is trained on, and settings as a
command line.
"""

import dataclasses
import sys

import pytest
import torch

from dino_lib.data.shapes import Shapes
from dino_lib.run.presets import PRESETS

collect_ignore = []
if sys.platform != "linux":  # their processes are forked, so as not to import anew in each
    collect_ignore += ["course/test_notebook_equality.py", "run/test_processes.py"]
if sys.platform == "win32":  # Unix's signals and limits
    collect_ignore += ["data/test_workers.py"]

torch.set_num_threads(1)  # on networks as small as these the threads only wait for each other


def pytest_addoption(parser):
    parser.addoption("--device", help="cpu, cuda or mps; every device that is there, if left out")


def pytest_generate_tests(metafunc):
    if "each_device" in metafunc.fixturenames:
        asked = metafunc.config.getoption("--device")
        there = ["cpu"]
        there += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        names = [asked] if asked else there
        metafunc.parametrize("each_device", [torch.device(name) for name in names], ids=names)


@pytest.fixture(scope="session")
def pictures():
    """32 labelled pictures of 24 pixels: 4 updates of 8 an epoch."""
    return Shapes(32, size=24)


@pytest.fixture(scope="session")
def settings():
    """The function that gives a folder a run of 8 updates: no batch norm or chance in the network,
    CPU, float32.
    """
    options = {
        "img_size": 24,
        "patch_size": 6,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    return lambda folder: dataclasses.replace(
        PRESETS["smoke"],
        limit=None,
        store_size=24,
        global_size=24,
        local_size=12,
        n_local=2,
        num_workers=0,
        backbone="vit_tiny_patch16_224",
        backbone_options=options,
        conv_stem=False,
        drop_path=0.0,
        out_dim=16,
        hidden_dim=16,
        bottleneck_dim=8,
        use_bn=False,
        epochs=2,
        batch_size=8,
        accumulate=1,
        lr=1e-3,
        warmup_epochs=0.5,
        freeze_last_layer=0.0,
        seed=3,
        device="cpu",
        precision="fp32",
        log_every=1,
        eval_every=1,
        save_every=1,
        progress=False,
        output_dir=str(folder),
        data_root=str(folder.parent / "data"),
    )


@pytest.fixture
def tiny(settings, tmp_path):
    """The settings of a tiny run in a folder of the test's own, `tmp_path / "run"`."""
    return settings(tmp_path / "run")


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory, pictures):
    """40 pictures in two folders, of which 32 are trained on."""
    root = tmp_path_factory.mktemp("labelled")
    for i in range(40):
        folder = root / ("even", "odd")[i % 2]
        folder.mkdir(exist_ok=True)
        pictures[i % 32][0].save(folder / f"{i:02d}.png")
    return root


@pytest.fixture
def assert_same():
    """The function that compares two nested values, their tensors bit by bit."""
    return _assert_same


def _assert_same(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            _assert_same(*pair, f"{where}[{i}]")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), f"{where} differs by {(a.float() - b.float()).abs().max()}"
    else:
        assert a == b, where


@pytest.fixture
def as_arguments():
    """The function that writes a Config as the words of `dino`: train, and every setting."""

    def words(value):
        if isinstance(value, dict):
            return [str(word) for pair in value.items() for word in pair]
        return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]

    def convert(config):
        options = [
            (f"--{f.name.replace('_', '-')}", *words(getattr(config, f.name)))
            for f in dataclasses.fields(config)
        ]
        return ["train", *(word for option in options for word in option)]

    return convert
