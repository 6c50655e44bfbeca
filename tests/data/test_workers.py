"""Worker processes: the same run however they are started, and what happens when one dies or the
dataset fails.
"""

import os
import resource
import signal
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from dino_lib.augment import MultiCrop
from dino_lib.data import loaders
from dino_lib.data.images import InputError
from dino_lib.data.loaders import WorkerViews, epoch_order
from dino_lib.data.shapes import Shapes
from dino_lib.run.checkpoint import load_newest
from dino_lib.run.train import train
from dino_lib.run.trainer import Trainer

CPU = torch.device("cpu")


class Failing(torch.utils.data.Dataset):
    """32 pictures; one of them kills the worker that reads it, or raises, as long as the file is
    there.
    """

    def __init__(self, flag, kind, index=13):
        self.pictures, self.flag, self.kind, self.index = Shapes(32, size=24), flag, kind, index

    def __len__(self):
        return 32

    def __getitem__(self, i):
        if i == self.index and self.flag.exists():
            if self.kind == "kill":
                assert torch.utils.data.get_worker_info() is not None
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("no such picture")
        return self.pictures[i]


@pytest.fixture
def workers(tiny):
    return replace(tiny, store_size=None, num_workers=2, eval_every=0)


@pytest.fixture
def start_method():
    """The function that sets how processes are started, until the test is over."""
    before = torch.multiprocessing.get_start_method(allow_none=True)
    yield lambda name: torch.multiprocessing.set_start_method(name, force=True)
    torch.multiprocessing.set_start_method(before, force=True)


def end(config):
    return {
        k: v
        for k, v in load_newest(f"{config.output_dir}/checkpoints").items()
        if k in ("student", "teacher", "loss", "optimizer", "losses")
    }


def test_spawned_forked_and_no_workers_train_the_same_run(
    workers, pictures, tmp_path, start_method, assert_same
):
    ends = []
    for method, count in [(None, 0), ("fork", 2), ("spawn", 1)]:  # a spawned one imports anew
        if method:
            start_method(method)
        config = replace(
            workers, num_workers=count, epochs=1, output_dir=str(tmp_path / f"{method}")
        )
        train(config, [pictures[i] for i in range(32)])
        ends.append(end(config))
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [
        (
            "kill",
            2,
            r"exited unexpectedly: mostly for lack of memory or files; take num_workers=0, or "
            r"fewer than num_workers=2",
        ),
        ("raise", 2, r"^item 13 of the dataset raised KeyError: 'no such picture'; mend"),
        ("raise", 0, r"^item 13 of the dataset raised KeyError: 'no such picture'; mend"),
    ],
)
def test_a_run_whose_input_fails_is_saved_and_goes_on(
    workers, tmp_path, assert_same, capsys, kind, count, message
):
    flag, config = tmp_path / "flag", replace(workers, num_workers=count, save_every=100)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, Failing(flag, kind))
    flag.touch()
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(InputError, match=message) as error:
        train(config, Failing(flag, kind))
    assert signal.getsignal(signal.SIGCHLD) in (handler, signal.SIG_DFL)
    saved = load_newest(f"{config.output_dir}/checkpoints")["step"]
    said = capsys.readouterr().out
    assert f"interrupted after update {saved} and saved: go on with --resume auto" in said
    assert str(error.value).count("\n") == 0
    flag.unlink()
    train(replace(config, resume="auto"), Failing(flag, kind))
    assert_same(end(config), end(whole))


def test_a_death_during_an_update_waits_for_its_end(workers, tmp_path, monkeypatch):
    """torch would raise in the middle of it, and what is saved would be a half-done update."""
    inside, steps = Trainer.train_step, []

    def train_step(self, views):
        if self.step == 1:
            for child in torch.multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()
        result = inside(self, views)
        steps.append(self.step)
        return result

    monkeypatch.setattr(Trainer, "train_step", train_step)
    config = replace(workers, batch_size=2, epochs=1)  # more batches than workers fetch ahead
    with pytest.raises(InputError, match="worker"):
        train(config, Failing(tmp_path / "no flag", "kill"))
    assert load_newest(f"{config.output_dir}/checkpoints")["step"] == steps[-1] >= 2


def test_what_cannot_be_handed_to_a_spawned_worker_is_told(workers, start_method):
    class Local(list):
        pass

    start_method("spawn")
    with pytest.raises(
        InputError,
        match=r"the dataset cannot be handed to worker processes .*Local.* num_workers=0",
    ):
        train(workers, Local(Failing(None, "", index=-1).pictures[i] for i in range(32)))


# --- workers that hang, and machines that are full ---


class Hanging(torch.utils.data.Dataset):
    """32 pictures; reading those at fault never ends, as long as the file is there."""

    def __init__(self, flag, at_fault):
        self.pictures = Shapes(32, size=24)
        self.flag, self.at_fault = flag, at_fault

    def __len__(self):
        return 32

    def __getitem__(self, i):
        while i in self.at_fault and self.flag.exists():
            signal.pause()  # SIGTERM and SIGINT are not heard in a worker
        return self.pictures[i]


BATCHES = list(np.arange(32).reshape(4, 8))


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "PATIENCE", 0.2)
    flag = tmp_path / "hang"
    flag.touch()
    yield WorkerViews(
        Hanging(flag, range(8, 32)),
        MultiCrop(24, 12, 2),
        seed=0,
        device=torch.device("cpu"),
        num_workers=2,
    )
    assert not torch.multiprocessing.active_children()  # no orphans, whatever happened


def alarm(*args):
    raise KeyboardInterrupt


@pytest.fixture
def interrupted():
    """Raises KeyboardInterrupt in half a second, as the handler of Ctrl-C does."""
    before = signal.signal(signal.SIGALRM, alarm)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.5)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("how", ["raised", "closed", "thrown away"])
def test_waiting_for_a_hanging_worker_can_be_ended(hanging, interrupted, how):
    found = hanging.batches(0, BATCHES)
    assert len(next(found)[0]) == 8
    workers = torch.multiprocessing.active_children()
    assert len(workers) == 2
    if how == "raised":
        interrupted()
        with pytest.raises(KeyboardInterrupt):
            next(found)
    elif how == "closed":
        found.close()
    else:
        hanging.close()
    assert not any(worker.is_alive() for worker in workers)


def test_after_a_hang_the_same_views_come(hanging, interrupted):
    found = hanging.batches(0, BATCHES)
    before = [next(found)]
    interrupted()
    with pytest.raises(KeyboardInterrupt):
        next(found)
    hanging.images.dataset.flag.unlink()
    again = list(hanging.batches(0, BATCHES))
    assert [torch.equal(a, b) for a, b in zip(before[0], again[0], strict=True)] == [True] * 4
    assert len(again) == 4
    hanging.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_a_worker_hangs_saves_the_run_and_ends_the_workers(
    workers, tmp_path, monkeypatch, assert_same, number
):
    """The second update is made; of the third batch a picture never comes."""
    monkeypatch.setattr(loaders, "PATIENCE", 0.2)
    flag = tmp_path / "hang"
    config = replace(workers, save_every=100, log_every=1)
    third = epoch_order(config.seed, 0, 32)[16:24]
    dataset = Hanging(flag, set(third.tolist()))
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, dataset)
    flag.touch()

    def press(line):
        if line["step"] == 2:
            pids.extend(child.pid for child in torch.multiprocessing.active_children())
            threading.Timer(0.5, os.kill, (os.getpid(), number)).start()

    pids = []
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, on_log=press)
    assert load_newest(f"{config.output_dir}/checkpoints")["step"] == 2
    assert len(pids) == 2 and not torch.multiprocessing.active_children()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    flag.unlink()
    train(replace(config, resume="auto"), dataset)
    assert_same(end(config), end(whole))


class Leaking(torch.utils.data.Dataset):
    """32 pictures; each leaves files open, and a worker may have few more than it began with."""

    def __init__(self):
        self.pictures = Shapes(32, size=24)
        self.open = []

    def __len__(self):
        return 32

    def __getitem__(self, i):
        if torch.utils.data.get_worker_info():
            if not self.open:
                free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + 60, free + 60))
            self.open += [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        return self.pictures[i]


def test_too_many_open_files_in_a_worker_name_the_remedy(workers, tmp_path):
    with pytest.raises(
        InputError, match=r"(Too many open files|exited unexpectedly).*take num_workers=0"
    ):
        train(workers, Leaking())
    assert not torch.multiprocessing.active_children()


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_is_named(pictures, error):
    views = WorkerViews(pictures, MultiCrop(16, 8, n_local=0), seed=0, device="cpu", num_workers=1)
    with pytest.raises(InputError, match=r"worker exited unexpectedly \(.+\).*take num_workers=0"):
        views._explain(error)
    views.num_workers = 0
    views._explain(error)  # then it is the dataset's own, and goes on as it is


class Full:
    """A multi-crop in a worker that has no room to hand over its views."""

    mean = (0.5, 0.5, 0.5)

    def __init__(self, error):
        self.error = error

    def __call__(self, image):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device "
            "(28)"
        ),
        RuntimeError("unable to write to file </torch_1>: No space left on device (28)"),
        OSError(24, "Too many open files"),
        RuntimeError("received 0 items of ancdata"),
        OSError(12, "Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize("count", [0, 1])
def test_a_machine_that_is_full_is_told_with_the_remedy(pictures, error, count):
    views = WorkerViews(
        pictures, Full(error), seed=0, device=torch.device("cpu"), num_workers=count
    )
    with pytest.raises(InputError, match=r"take num_workers=0.*--shm-size=8g") as found:
        next(views.batches(0, BATCHES))
    assert error.args[-1] in str(found.value) and "\n" not in str(found.value)


def test_another_error_of_a_worker_stays_what_it_is(pictures):
    views = WorkerViews(
        pictures, Full(ZeroDivisionError("mine")), seed=0, device=torch.device("cpu"), num_workers=1
    )
    with pytest.raises(ZeroDivisionError, match="mine"):
        next(views.batches(0, BATCHES))
    assert not torch.multiprocessing.active_children()


def test_a_large_batch_takes_no_more_shared_memory_than_what_is_under_way(pictures, monkeypatch):
    """Each piece is let go before the next one is asked for: `original` has 256 an update."""
    views = WorkerViews(pictures, MultiCrop(16, 8, 1), seed=0, device=CPU, num_workers=0)
    monkeypatch.setattr(loaders, "PIECE", 2)
    alive, start = [], views._start

    def watched():
        start()
        pieces = views._loaded

        def one_by_one():
            for made, used in pieces:
                assert not any(piece() is not None for piece in alive)
                alive[:] = [weakref.ref(tensor) for tensor in (*made, used)]
                yield made, used
                del made, used

        views._loaded = one_by_one()

    monkeypatch.setattr(views, "_start", watched)
    found = next(views.batches(0, [np.arange(8)]))
    plain = WorkerViews(pictures, MultiCrop(16, 8, 1), seed=0, device=CPU, num_workers=0)
    for a, b in zip(found, next(plain.batches(0, [np.arange(8)])), strict=True):
        assert torch.equal(a, b)
