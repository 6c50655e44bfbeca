"""The notebooks' set-up cell, where the course's package is there and where it is not; and the
addresses that notebooks/stamp.py writes.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
from build import SETUP  # noqa: E402
from stamp import checked  # noqa: E402

ADDRESS = "https://github.com/someone/a-fork.of_dino"
HOSTS = ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"]


@pytest.fixture
def run_cell(monkeypatch):
    """Runs the cell as if here or at a host, with the package or without; -> pip's commands."""
    asked = []

    def run(host=None, there=False, address=ADDRESS, status=0):
        for name in HOSTS:
            monkeypatch.delenv(name, raising=False)
        if host:
            monkeypatch.setenv(host, "something")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
        done = subprocess.CompletedProcess([], status)
        monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.append(command) or done)
        code = re.sub('REPOSITORY = ".*"', f'REPOSITORY = "{address}"', SETUP)
        exec(code.replace("%matplotlib inline", ""), {})
        return asked

    run.asked = asked
    return run


@pytest.mark.parametrize("host", [None, *HOSTS])
def test_nothing_is_installed_where_the_package_is(run_cell, host, capsys):
    assert run_cell(host, there=True) == []
    assert re.fullmatch(r"torch \S+, timm \S+, (a|no) GPU\n", capsys.readouterr().out)


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_install_the_package_and_leave_to_pip_what_it_needs(run_cell, host):
    """pip's own rule: what is new enough stays. --upgrade would touch torch."""
    [command] = run_cell(host)
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[4:] == ["-q", f"{ADDRESS}/archive/HEAD.zip"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"pip install -e \..*restart the kernel"),
        ({"address": "https://github.com/OWNER/dino-course"}, "pip install -e"),
        (
            {"host": HOSTS[0], "address": "https://github.com/OWNER/dino-course"},
            "address of your copy",
        ),
        ({"host": HOSTS[1], "status": 1}, f"can't install {ADDRESS}.*Internet"),
    ],
)
def test_else_one_line_says_what_to_do(run_cell, options, words):
    with pytest.raises(SystemExit) as ended:
        run_cell(**options)
    text = str(ended.value)
    assert re.search(words, text) and "\n" not in text
    assert len(run_cell.asked) == ("status" in options)


@pytest.mark.parametrize("wrong", ["", "github.com/a/b", "https://github.com/a", "https://x.y/a/b"])
def test_an_address_that_is_none_of_githubs_is_refused(wrong):
    with pytest.raises(ValueError, match=re.escape(f"the address = {wrong!r}")):
        checked(wrong, "the address")


@pytest.fixture
def fork(tmp_path):
    """A clone of a copy of this repository: what the workflow checks out. `origin` is bare."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    copy, clone = tmp_path / "copy", tmp_path / "clone"
    shutil.copytree(ROOT / "notebooks", copy / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "--message", "all"]):
        subprocess.run([*git, *command], cwd=copy, check=True)
    for command in (["--bare", copy, tmp_path / "origin"], [tmp_path / "origin", clone]):
        subprocess.run([*git, "clone", "--quiet", *command], check=True)
    return clone


def log(folder):
    command = ["git", "log", "--format=%s", "main"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="the workflow's shell is a Unix one")
def test_the_workflow_stamps_a_fork_once_and_pushes(fork):
    workflow = yaml.safe_load((ROOT / ".github/workflows/stamp.yml").read_text(encoding="utf-8"))
    scripts = {step.get("name"): step.get("run") for step in workflow["jobs"]["stamp"]["steps"]}
    environment = os.environ | {
        "GITHUB_REPOSITORY": ADDRESS.removeprefix("https://github.com/"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for _ in range(2):  # the second time there is nothing to do
        for name in ("stamp", "commit"):
            shell = ["bash", "-eo", "pipefail", "-c", scripts[name]]
            subprocess.run(shell, cwd=fork, env=environment, check=True)
        message = f"The addresses of this repository: {environment['GITHUB_REPOSITORY']}"
        assert log(fork.with_name("origin")) == log(fork) == [message, "all"]
    project = tomllib.loads((fork / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Repository"] == ADDRESS
    changed = ["git", "diff", "--numstat", "HEAD~1"]
    lines = subprocess.run(changed, cwd=fork, capture_output=True, text=True).stdout.splitlines()
    badges = 0
    for path in fork.glob("notebooks/**/*.ipynb"):
        first, setup = nbformat.read(path, 4).cells[:2]
        assert f'REPOSITORY = "{ADDRESS}"' in setup.source
        place = path.relative_to(fork).as_posix()
        badge = first.source.count(f"/github/someone/a-fork.of_dino/blob/main/{place})")
        assert badge == first.source.count("<!-- badge -->")
        assert f"{1 + badge}\t{1 + badge}\t{place}" in lines  # nothing else has changed
        badges += badge
    assert badges >= 8 and len(lines) == 1 + len([*fork.glob("notebooks/**/*.ipynb")])
