"""Worker processes: the same run however they are started, and what happens when one dies or the dataset fails."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from dino_lib.data.images import InputError
from dino_lib.data.shapes import Shapes
from dino_lib.run.checkpoint import load_newest
from dino_lib.run.train import train
from dino_lib.run.trainer import Trainer


class Failing(torch.utils.data.Dataset):
    """32 pictures; one of them kills the worker that reads it, or raises, as long as the file is there."""

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
    return {k: v for k, v in load_newest(f"{config.output_dir}/checkpoints").items()
            if k in ("student", "teacher", "loss", "optimizer", "losses")}


def test_spawned_forked_and_no_workers_train_the_same_run(workers, pictures, tmp_path, start_method, assert_same):
    ends = []
    for method, count in [(None, 0), ("fork", 2), ("spawn", 2)]:
        if method:
            start_method(method)
        config = replace(workers, num_workers=count, epochs=1, output_dir=str(tmp_path / f"{method}"))
        train(config, [pictures[i] for i in range(32)])
        ends.append(end(config))
    assert_same(ends[0], ends[1])
    assert_same(ends[0], ends[2])


@pytest.mark.parametrize(("kind", "count", "message"), [
    ("kill", 2, r"exited unexpectedly: mostly for lack of memory; take fewer than num_workers=2"),
    ("raise", 2, r"^item 13 of the dataset raised KeyError: 'no such picture'; mend"),
    ("raise", 0, r"^item 13 of the dataset raised KeyError: 'no such picture'; mend")])
def test_a_run_whose_input_fails_is_saved_and_goes_on(workers, tmp_path, monkeypatch, assert_same, kind, count,
                                                      message):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds; 5 otherwise
    flag, config = tmp_path / "flag", replace(workers, num_workers=count, save_every=100)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, Failing(flag, kind))
    flag.touch()
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(InputError, match=message) as error:
        train(config, Failing(flag, kind))
    assert signal.getsignal(signal.SIGCHLD) in (handler, signal.SIG_DFL)
    saved = load_newest(f"{config.output_dir}/checkpoints")["step"]
    assert f"Update {saved} is saved: go on with --resume auto" in str(error.value)
    assert str(error.value).count("\n") == 0
    flag.unlink()
    train(replace(config, resume="auto"), Failing(flag, kind))
    assert_same(end(config), end(whole))


def test_a_death_during_an_update_waits_for_its_end(workers, tmp_path, monkeypatch):
    """torch would raise in the middle of it, and what is saved would be a half-done update."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
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
    with pytest.raises(InputError, match=r"the dataset cannot be handed to worker processes .*Local.* num_workers=0"):
        train(workers, Local(Failing(None, "", index=-1).pictures[i] for i in range(32)))
