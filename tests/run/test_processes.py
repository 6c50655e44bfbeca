"""Several processes: their training against one's, what they agree on, and how a job of theirs ends
and goes on.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
import torch.distributed as dist
from nbclient import NotebookClient

from dino_lib.data.loaders import share_of_workers
from dino_lib.loss import DINOLoss
from dino_lib.run import processes
from dino_lib.run import train as train_module
from dino_lib.run.checkpoint import load_newest
from dino_lib.run.dinov2 import SinkhornLoss
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.processes import Interrupts, Ranks
from dino_lib.run.train import launch, train

ROOT = Path(__file__).parents[2]


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forked(function, processes, folder):
    """function(rank, folder) in so many processes with gloo; no backward pass, which a fork does
    not survive.
    """
    context = torch.multiprocessing.start_processes(
        _join, (function, processes, str(folder)), processes, join=False, start_method="fork"
    )
    while not context.join(timeout=60):
        pass


def _join(rank, function, processes, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes
    )
    function(rank, folder)
    dist.barrier()  # nobody leaves while another still talks
    os._exit(0)  # destroy_process_group of torch 2.6 can wait for ever in a fork


# --- the same training ----------------------------------------------------------------------------


def test_two_and_three_processes_train_as_one():
    """The quick version of the benchmark, over two epochs, in a process in which nothing has
    run.
    """
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "processes.py"), "--steps", "9"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = re.findall(
        r"(\d) processes: steps 0.0e\+00, weights (\S+), .*; between them 0.0e\+00", result.stdout
    )
    assert [count for count, _ in lines] == ["2", "3"] and all(
        float(apart) < 1e-5 for _, apart in lines
    )


def test_the_benchmark_sees_a_difference():
    benchmark = _load(ROOT / "benchmarks" / "processes.py")
    bias, rest = torch.zeros(6), torch.ones(2)
    end = {
        "step": 3,
        "student": {"a.qkv.bias": bias},
        "teacher": {"w": rest},
        "center": rest,
        "losses": rest,
        "features": rest,
    }
    other = {
        **end,
        "student": {"a.qkv.bias": torch.tensor([0.0, 0, 5, 0, 0, 0.25])},
        "losses": rest * 3,
    }
    found = benchmark.differences(end, other)
    assert (found["weights"], found["key biases"], found["losses"], found["center"]) == (
        0.25,
        5,
        2,
        0,
    )


def uneven_rows(rank, folder):
    rows = torch.load(f"{folder}/rows.pt")
    loss = DINOLoss(6, center_momentum=0.5)
    loss.update_center(rows[:1] if rank == 0 else rows[1:])
    torch.save(loss.center, f"{folder}/center{rank}.pt")


def test_the_center_counts_rows_not_processes(tmp_path):
    rows = torch.randn(8, 6)
    torch.save(rows, tmp_path / "rows.pt")
    forked(uneven_rows, 2, tmp_path)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"center{rank}.pt"), 0.5 * rows.mean(0))


def balance(rank, folder):
    """Sinkhorn-Knopp over the pictures of both, of which each process has every other one."""
    rows = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    whole = torch.load(f"{folder}/whole.pt")
    mine = SinkhornLoss(4).teacher_probs(rows[:, rank::2], 0.1)
    torch.testing.assert_close(mine, whole[:, rank::2])


def test_two_processes_balance_a_batch_as_one(tmp_path):
    rows = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    torch.save(SinkhornLoss(4).teacher_probs(rows, 0.1), tmp_path / "whole.pt")
    forked(balance, 2, tmp_path)


def talk(rank, folder):
    ranks = Ranks()
    assert (ranks.rank, ranks.world) == (rank, 2)
    assert ranks.mean(torch.tensor([1.0 + rank, 4.0])).tolist() == [1.5, 4.0]
    assert ranks.any(torch.arange(3) == rank).tolist() == [True, True, False]
    assert ranks.gather(torch.full((2, 1), rank)).tolist() == [[0], [0], [1], [1]]
    ranks.must_agree("the step", 7)
    with pytest.raises(ValueError, match=r"differ in the number of images, by rank: \[30, 31\]"):
        ranks.must_agree("the number of images", 30 + rank)


def test_processes_talk_and_are_told_where_they_differ(tmp_path):
    forked(talk, 2, tmp_path)


def wait_in_vain(rank, folder):
    """One that waits for a batch leaves GRACE seconds after the signal, and not at once."""
    processes.GRACE = 0.2
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher hands on what the terminal sent
        assert interrupts.asked
        time.sleep(60)
    assert time.monotonic() < interrupts.patient_until + 30


def test_processes_are_silent_about_the_strides_of_gradients_and_nothing_else(monkeypatch):
    """PyTorch warns each of them of the stem's 1x1 convolution."""
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *args, **kwargs: None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with processes.process_group(replace(PRESETS["smoke"], device="cpu"), 0):
            warnings.warn("Grad strides do not match bucket view strides. This may", stacklevel=1)
            warnings.warn("another", stacklevel=1)
    assert [str(one.message) for one in said] == ["another"]


def test_a_process_that_waits_in_vain_leaves_alone(tmp_path):
    forked(wait_in_vain, 2, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_only_where_something_is_half_done(number):
    before = signal.getsignal(number)
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.at_once():
        os.kill(os.getpid(), number)
        pytest.fail("went on waiting")
    with Interrupts() as interrupts:
        os.kill(os.getpid(), number)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            pytest.fail("began to wait")
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


# --- how a job ends, and goes on ------------------------------------------------------------------

HANGS = 900  # seconds: a busy machine needs minutes, and gloo waits half an hour for who is gone
SCRIPT = """
import os, signal, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from dino_lib import cli
from dino_lib.run.trainer import Trainer
inside = Trainer.train_step

def train_step(self, views):
    what, step = os.environ["AT"].split()
    rank = int(os.environ["RANK"])
    if self.step == int(step):
        if what == "raise" and rank == 1:
            raise KeyError("a mistake")
        if what == "kill" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stop" and rank == 0:
            os.kill(os.getppid(), signal.SIGTERM)
            signal.sigtimedwait([signal.SIGTERM], 0)
    return inside(self, views)

Trainer.train_step = train_step
if __name__ == "__main__":
    if "RANK" in os.environ:
        cli.main()
    else:
        elastic_launch(LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                                    max_restarts=0, start_method="fork"), cli.main)(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The function that starts a script with two processes, under torchrun or as torchrun does it,
    but forked, which saves their imports: its exit status, output and errors.
    """
    folder = tmp_path_factory.mktemp("job")
    (folder / "script.py").write_text(SCRIPT)

    def run(arguments, at, torchrun=False):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if torchrun else []
        done = subprocess.run(
            [sys.executable, *launcher, str(folder / "script.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=HANGS,
            env={**os.environ, "AT": at, "OMP_NUM_THREADS": "1"},
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_job_that_dies_says_why_and_goes_on_to_the_same_end(
    settings, labelled_folder, tmp_path, as_arguments, job, assert_same
):
    config = replace(
        settings(tmp_path / "run"),
        dataset=str(labelled_folder),
        save_every=0.5,
        epochs=3,
        resume="auto",
        accumulate=2,
    )
    arguments = as_arguments(config)

    # one process raises: its error is among the first lines, and in torchrun's last words; the
    # other does not hang
    status, printed, errors = job(arguments, "raise 3", torchrun=True)
    assert status != 0
    assert "rank 1: error: 'a mistake'" in errors[:5000]
    assert "KeyError" in errors.split("Root Cause")[1]
    assert "rank 0: error" not in errors
    assert printed.count("cpu in float32, 32 images, 12 updates of 8 images") == 1  # one speaks
    assert load_newest(tmp_path / "run" / "checkpoints")["step"] == 2

    # one is killed
    status, _, errors = job(arguments, "kill 5")
    assert status != 0
    assert "Signal 9 (SIGKILL)" in errors  # on a busy machine torchrun may see the other end first
    assert load_newest(tmp_path / "run" / "checkpoints")["step"] == 4

    # the launcher is told to stop: saved once, after an update that both have taken
    status, printed, errors = job(arguments, "stop 7")
    assert status != 0 and printed.count("interrupted after update") == 1, errors
    saved = load_newest(tmp_path / "run" / "checkpoints")["step"]
    assert saved in range(8, 12) and f"interrupted after update {saved} and saved" in printed

    # the rest of it from a notebook's kernel, and all of it is one process's run
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                textwrap.dedent(f"""
        from dino_lib.run.config import Config
        from dino_lib.run.train import launch
        lines = []
        teacher, history = launch(Config.from_json({config.to_json()!r}), 2, on_log=lines.append)
        print(teacher.about["step"], len(history), history[-1]["step"])
        print("the last lines:", lines == history[-len(lines):] and len(lines) > 0)""")
            )
        ]
    )
    NotebookClient(notebook, timeout=HANGS, startup_timeout=HANGS, kernel_name="python3").execute()
    said = "".join(
        output.text for output in notebook.cells[0].outputs if output.get("name") == "stdout"
    )
    history = read_history(tmp_path / "run")
    assert f"12 {len(history)} 12" in said and "the last lines: True" in said
    _, alone = train(replace(config, output_dir=str(tmp_path / "alone")))
    assert [record["step"] for record in history] == [
        record["step"] for record in alone
    ]  # each written once
    for mine, other in zip(history, alone, strict=True):
        for name in mine.keys() - {"seconds", "images_per_second", "input_share"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4), name
    two, one = (load_newest(tmp_path / name / "checkpoints") for name in ("run", "alone"))
    assert torch.equal(two["used"], one["used"]) and two["step"] == one["step"] == 12
    assert (two["loss"]["center"] - one["loss"]["center"]).abs().max() < 1e-5


def test_a_wrong_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="processes=0 must be at least 1"):
        launch(PRESETS["smoke"], 0)


def test_launched_processes_take_a_dataset_and_stop_where_the_callback_says(
    tiny, pictures, tmp_path
):
    """An error of the callback, as an interrupt, ends the processes: they have saved by then."""
    config, lines = replace(tiny, epochs=500, warmup_epochs=0.5), []

    def on_log(record):
        lines.append(record)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(config, 2, pictures, on_log=on_log)
    assert not torch.multiprocessing.active_children()
    saved = load_newest(tmp_path / "run" / "checkpoints")
    assert saved["step"] == len(read_history(tmp_path / "run")) >= len(lines) == 1
    assert saved["n_images"] == len(pictures)


def test_a_launched_process_takes_its_share_of_the_workers(tiny, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(train_module, "process_group", lambda *args, **options: nullcontext())
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")  # put back afterwards

    def stop(*args, **options):
        taken.append(share_of_workers(8))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "build_trainer", stop)
    with pytest.raises(KeyboardInterrupt):
        train_module._one_of(0, 2, "", tiny, None, SimpleNamespace(put=None))
    assert taken == [4]
