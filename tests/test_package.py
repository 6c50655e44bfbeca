"""The package from outside: its public names, what an import costs, and that it installs."""

import ast
import importlib
import inspect
import math
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dino_lib
from dino_lib import Shapes, cls_attention, load_teacher, train
from dino_lib.look.report import report
from dino_lib.run.train import build_trainer

ROOT = Path(__file__).parents[1]


def fresh(code, **options):
    """What a new interpreter prints; fails with what it says where it fails."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_and_of_the_package():
    assert dino_lib.__all__ == list(dict.fromkeys(dino_lib.__all__))
    for name in dino_lib.__all__:
        value = getattr(dino_lib, name)
        assert name in dir(dino_lib) and inspect.getdoc(value), name
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__module__.startswith("dino_lib."), name


def test_the_public_names_are_in_reading_order():
    method = [
        "MultiCrop",
        "create_backbone",
        "DINOHead",
        "DINOLoss",
        "make_teacher",
        "cosine_schedule",
    ]
    rest = [
        "Shapes",
        "extract_features",
        "knn_predict",
        "Config",
        "PRESETS",
        "train",
        "launch",
        "load_teacher",
    ]
    places = [dino_lib.__all__.index(name) for name in method + rest]
    assert places == sorted(places)


def test_a_name_that_is_not_there_is_said_so():
    with pytest.raises(AttributeError, match="no attribute 'MultiCorp'"):
        _ = dino_lib.MultiCorp
    with pytest.raises(ImportError, match="MultiCorp"):
        importlib.import_module("dino_lib.MultiCorp")


def test_the_import_is_light():
    """Measured in CPU time, which other work on the machine does not stretch."""
    code = (
        "import sys, time; start = time.process_time(); import dino_lib; "
        "print(time.process_time() - start, {'torch', 'numpy', 'sklearn', 'pydantic'} & "
        "{*sys.modules})"
    )
    seconds, loaded = fresh(code).split(maxsplit=1)
    assert loaded.strip() == "set()" and float(seconds) < 0.05


def test_the_settings_need_no_scikit_learn_and_no_matplotlib():
    code = (
        "import sys; from dino_lib import PRESETS, MultiCrop; PRESETS['demo']; "
        "print({'sklearn', 'matplotlib', 'timm'} & {*sys.modules})"
    )
    assert fresh(code).strip() == "set()"


def test_every_module_says_what_it_is_for():
    for module in pkgutil.walk_packages(dino_lib.__path__, "dino_lib."):
        if module.name in ("dino_lib.__main__", "dino_lib.teachers.ship"):
            continue  # these run when they are imported
        assert inspect.getdoc(importlib.import_module(module.name)), module.name


def public_functions(tree, prefix=""):
    """(name, definition) of the functions and methods of a module; nested ones don't count."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, f"{prefix}{node.name}.")
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node


def what_lacks_a_type(function):
    """The names of the parameters, and "return"."""
    given = function.args
    parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    lacking = [a.arg for a in parameters if a and a.annotation is None]
    lacking = [name for name in lacking if name not in ("self", "cls")]
    return lacking + ["return"] * (function.returns is None)


def test_every_public_function_says_its_types():
    lacking, seen = {}, 0
    for path in sorted((ROOT / "dino_lib").rglob("*.py")):
        for name, function in public_functions(ast.parse(path.read_text())):
            seen += 1
            if what_lacks_a_type(function):
                lacking[f"{path.relative_to(ROOT)}: {name}"] = what_lacks_a_type(function)
    assert seen > 200 and not lacking


@pytest.mark.parametrize(
    ("code", "lacking"),
    [
        ("def f(a: int, *, b, **c) -> int: ...", ["b", "c"]),
        ("class C:\n    def f(self, /, *a): ...", ["a", "return"]),
        ("class C:\n    @classmethod\n    def f(cls, a: int) -> None: ...", []),
    ],
)
def test_a_type_that_is_lacking_is_found(code, lacking):
    [(_, function)] = public_functions(ast.parse(code))
    assert what_lacks_a_type(function) == lacking


SCRIPT = """
from dataclasses import replace
import dino_lib
from dino_lib import PRESETS, Shapes, cls_attention, load_teacher, train
import torch
torch.set_num_threads(1)
config = replace(PRESETS["smoke"], limit=16, epochs=1, warmup_epochs=0, eval_every=0,
                 output_dir="mine", progress=False, device="cpu")
_, history = train(config)
teacher = load_teacher("mine")
image, _ = Shapes(1)[0]
maps = cls_attention(teacher, teacher.transform(image)[None])
print(dino_lib.__file__, history[-1]["step"], tuple(maps.shape))
"""


def test_it_installs_trains_and_looks_elsewhere(tmp_path):
    """`pip install .` without a network: what the package needs is here already."""
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for name in ("dino_lib", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        str(site),
        str(source),
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (site / "dino_lib" / "py.typed").exists() and [*(site / "bin").glob("dino*")]
    assert re.fullmatch(r"\d+\.\d+\.\d+", dino_lib.__version__)
    assert (site / f"dino_lib-{dino_lib.__version__}.dist-info").is_dir()
    printed = fresh(SCRIPT, cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site), "PATH": ""})
    module = site / "dino_lib" / "__init__.py"
    assert printed.splitlines()[-1] == f"{module} 1 (1, 2, 8, 8)"


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_all_works_whatever_the_default_number_format_is(tiny, tmp_path, double_by_default):
    """A run, a report and a look in a process that has asked for float64."""
    config = replace(tiny, dataset="shapes", limit=16, eval_limit=16, epochs=1, warmup_epochs=0)
    _, history = train(config)
    assert history[-1]["step"] == 2 and math.isfinite(history[-1]["knn"])
    for folder, changes in [("views", {"store_size": None}), ("parts", {})]:
        other = replace(config, output_dir=str(tmp_path / folder), eval_every=0, **changes)
        assert build_trainer(other).run()[1][-1]["step"] == 2
    teacher = load_teacher(config.output_dir)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    image = teacher.transform(Shapes(1, size=24)[0][0])[None]
    assert teacher.model(image).dtype == cls_attention(teacher, image).dtype == torch.float32
    for i, (picture, label) in enumerate(Shapes(20, size=24)):
        folder = tmp_path / "labelled" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")
    numbers = report(config.output_dir, dataset=str(tmp_path / "labelled"), out=tmp_path / "report")
    assert 0 <= numbers["knn_trained"] <= 1 and "left_out" not in numbers
    assert torch.get_default_dtype() == torch.float64
