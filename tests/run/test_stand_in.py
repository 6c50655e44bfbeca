"""A whole update as if on CUDA, on a card that isn't there: on one device, and never waited for.

The kernels compute nothing here: what they compute is tested on every device that is there.
autograd has no threads for a card that isn't there: `backward` only gives parameters a gradient.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from stand_in import CUDA, StandIn, Waited

from dino_lib.data import batch_views
from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.loaders import StoreViews
from dino_lib.loss import DINOLoss
from dino_lib.run.build import build_schedules, build_student, on_card, parameter_groups
from dino_lib.run.config import multicrop_settings
from dino_lib.run.folder import RunFolder
from dino_lib.run.presets import PRESETS
from dino_lib.run.step import momentum_if, step_if
from dino_lib.run.train import build_trainer
from dino_lib.run.trainer import Trainer
from dino_lib.teacher import make_teacher

stand_in = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="torch 2.6 and 2.8 ask even FakeTensors for a driver"
)


@stand_in
def test_the_stand_in_notices_what_a_host_would_wait_for():
    with StandIn():
        x = torch.zeros(3, device="cuda")
        for wait in (lambda: x.sum().item(), x.cpu, x.nonzero, lambda: bool(x[0] > 0), x.tolist):
            with pytest.raises(Waited):
                wait()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.zeros(3)


def trainer_on(tmp_path, monkeypatch, precision, **changes):
    """A Trainer of the preset smoke on the stand-in's card; to be called inside it."""
    # what is patched here would else say that nothing can be in bf16 where no card is
    config = dataclasses.replace(
        PRESETS["smoke"], output_dir=str(tmp_path), precision=precision, log_every=10**6, **changes
    )
    student = build_student(dataclasses.replace(config, device="cpu")).to(CUDA)
    store = torch.zeros(64, 3, 48, 48, dtype=torch.uint8, device=CUDA)
    multicrop = BatchMultiCrop(**multicrop_settings(config))
    views = StoreViews(store, multicrop, seed=0, device=CUDA)
    optimizer = torch.optim.AdamW(parameter_groups(student), lr=1e-3, fused=True)

    def backward(loss):
        assert loss.requires_grad and loss.device == CUDA
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    loss = DINOLoss(config.out_dim).to(CUDA)
    return Trainer(config, views, student, make_teacher(student), loss,
                   build_schedules(config, 4), optimizer, RunFolder(config))  # fmt: skip


@stand_in
@pytest.mark.parametrize(
    ("precision", "accumulate"), [("fp32", 1), ("bf16", 2), ("fp16", 1), ("fp16", 2)]
)
def test_an_update_stays_on_the_card_and_is_not_waited_for(
    tmp_path, monkeypatch, precision, accumulate
):
    with StandIn() as card:
        trainer = trainer_on(tmp_path, monkeypatch, precision, accumulate=accumulate)
        batches = trainer.views.batches(0, np.arange(32).reshape(2, 16))
        for views in batches:
            before = card.kernels
            update = trainer.train_step(views)
            print(f"{precision}, {accumulate} parts: {card.kernels - before} kernels an update")
    for name in ("loss", "grad_norm", "finite", "asked"):
        assert update[name].device == CUDA and update[name].ndim == 0
    state = [*trainer.student.parameters(), *trainer.teacher.parameters(), trainer.loss.center]
    assert {tensor.device for tensor in state} == {CUDA}


@stand_in
def test_the_host_reads_an_update_when_the_next_one_is_sent(tmp_path, monkeypatch):
    with StandIn():
        trainer = trainer_on(tmp_path, monkeypatch, "bf16", eval_every=0)
        read = []
        trainer._read = lambda update: read.append(update["step"])
        for views in trainer.views.batches(0, np.arange(48).reshape(3, 16)):
            trainer._after_update(trainer.train_step(views))
    assert read == [1, 2]


@stand_in
@pytest.mark.parametrize(("free", "where"), [(3 * 48, "cuda"), (3 * 48 - 1, "cpu")])
def test_a_store_is_on_the_card_where_it_takes_a_third_of_what_is_free(monkeypatch, free, where):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)  # 48 bytes
    with StandIn():
        assert on_card(images, CUDA).device.type == where
    assert on_card(images, torch.device("cpu")) is images


COMPILE = torch.nn.Module.compile
OPTIMIZERS = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "plain": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_steps_where_an_update_is_finite_and_else_does_not(name):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = OPTIMIZERS[name]([weight]), torch.amp.GradScaler("cpu", enabled=False)
    for finite in (False, True):
        weight.grad = torch.ones(3)
        step_if(torch.tensor(finite), optimizer, scaler)
        assert torch.equal(weight, torch.ones(3)) is not finite
    assert momentum_if(torch.tensor(True), 0.998).item() == pytest.approx(0.998, rel=1e-12)
    assert momentum_if(torch.tensor(False), 0.998).item() == 1


@stand_in
def test_views_of_a_batch_take_few_kernels_and_bounded_memory():
    config = PRESETS["gpu"]
    multicrop = BatchMultiCrop(**multicrop_settings(config))
    for n, side, most in [(512, 96, 2500), (64, 512, 4000)]:
        uniforms = torch.rand(n, multicrop.n_uniforms, generator=torch.Generator().manual_seed(0))
        with StandIn() as card:
            images = torch.zeros(n, 3, side, side, dtype=torch.uint8, device="cuda")
            views = multicrop(images, uniforms=uniforms)
        print(f"{n} images of {side} px: {card.kernels} kernels, the largest tensor "
              f"{card.largest / 2**20:.0f} MiB")  # fmt: skip
        assert [tuple(view.shape) for view in views] == [(n, 3, 96, 96)] * 2 + [(n, 3, 48, 48)] * 6
        assert card.kernels < most
        assert card.largest <= 4 * batch_views.GPU_CHUNK


@pytest.mark.parametrize(
    ("name", "precision"),
    [("colab", "bf16"), ("gpu", "bf16"), ("imagenette", "bf16"), ("demo", "bf16"),
     ("demo", "fp32")],
)  # fmt: skip
def test_with_compile_an_update_has_no_graph_break_and_nothing_is_compiled_twice(
    tiny, pictures, monkeypatch, name, precision
):
    """The presets' kinds of network, small; the graphs are traced and run as they are."""
    preset, graphs = PRESETS[name], []

    def traced(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", functools.partialmethod(COMPILE, backend=traced, fullgraph=True)
    )
    own = {key: preset.backbone_options[key] for key in ("reg_tokens", "qk_norm")
           if key in preset.backbone_options}  # fmt: skip
    options = {**tiny.backbone_options, **own}
    config = dataclasses.replace(
        tiny, backbone_options=options, conv_stem=preset.conv_stem, drop_path=preset.drop_path,
        precision=precision, use_bn=preset.use_bn, compile=True, eval_every=0)  # fmt: skip
    trainer = build_trainer(config, pictures)
    for views in trainer.views.batches(0, np.arange(24).reshape(3, 8)):
        trainer.train_step(views)
    assert len(graphs) == 3  # the student on views of two sizes, the teacher on large ones


def test_on_a_mac_a_skipped_update_is_not_left_to_the_fused_kernel():
    """Its kernels ignored found_inf (pytorch #186360)."""

    class OnMac:
        device = torch.device("mps")

        def __init__(self, value):
            self.value = value

        def __bool__(self):
            return self.value

        def float(self):
            return torch.tensor(float(self.value))

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = OPTIMIZERS["fused"]([weight]), torch.amp.GradScaler("cpu", enabled=False)
    for finite in (False, True):
        weight.grad = torch.full((3,), 1.0 if finite else math.nan)
        step_if(OnMac(finite), optimizer, scaler)
        assert getattr(optimizer, "found_inf", None) is None  # no kernel was asked to look
        assert torch.equal(weight, torch.ones(3)) is not finite
        assert weight.isfinite().all()
