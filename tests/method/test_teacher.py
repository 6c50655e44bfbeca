import pytest
import torch
from torch import nn

from dino_lib.backbone import create_backbone
from dino_lib.head import DINOHead, MultiCropModel
from dino_lib.teacher import ema_update, make_teacher


def tiny_student(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    if name.startswith("vit"):
        options = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, **options}
    backbone = create_backbone(name, **options)
    return MultiCropModel(
        backbone, DINOHead(backbone.num_features, 16, hidden_dim=24, bottleneck_dim=8, use_bn=True)
    )


def with_random_parameters(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def small_net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def copies(model):
    return [p.detach().clone() for p in model.parameters()]


def test_teacher_starts_as_a_copy_with_storage_of_its_own():
    student = tiny_student()
    teacher = make_teacher(student)
    s, t = student.state_dict(), teacher.state_dict()
    assert list(s) == list(t) and all(torch.equal(s[key], t[key]) for key in s)
    assert not {v.data_ptr() for v in s.values()} & {v.data_ptr() for v in t.values()}
    before = copies(teacher)
    with_random_parameters(student, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_teacher_has_no_gradient_and_the_student_keeps_its_own():
    student = tiny_student()
    expected = [p.requires_grad for p in student.parameters()]
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [p.requires_grad for p in student.parameters()] == expected and sum(expected) > 10
    assert not teacher([torch.randn(4, 3, 32, 32)]).requires_grad


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"drop_path_rate": 0.5}),
        ("vit_tiny_patch16_224", {"proj_drop_rate": 0.5}),
        ("vit_tiny_patch16_224", {"attn_drop_rate": 0.5}),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}),
        ("resnet10t", {"drop_rate": 0.5}),
        ("resnet10t", {"drop_block_rate": 0.5, "zero_init_last": False}),
    ],
)
def test_noise_is_off_in_the_teacher_and_on_in_the_student(name, options):
    student = tiny_student(name, **options)
    teacher = make_teacher(student)
    assert teacher.training and student.training and all(m.training for m in teacher.modules())
    views = [torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(teacher(views), teacher(views))
        assert not torch.allclose(student(views), student(views), atol=1e-3)
        # in train mode, batch norm's own statistics included, the teacher is the student without
        # noise
        quiet = tiny_student(name)
        quiet.load_state_dict(teacher.state_dict())
        torch.testing.assert_close(teacher(views), quiet(views))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_patch_dropout_is_off_in_the_teacher_of_every_family(name):
    torch.manual_seed(0)
    side = 64 if "dinov3" in name else 56
    options = {"img_size": side, "depth": 1, "embed_dim": 48, "num_heads": 2}
    student = create_backbone(name, patch_drop_rate=0.5, **options)
    teacher, x = make_teacher(student), torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(teacher(x), teacher(x)) and not torch.equal(student(x), student(x))


def test_ema_closed_form_over_a_momentum_schedule():
    """t_n = m_1 .. m_n t_0 + sum_k (1 - m_k) m_(k+1) .. m_n s_k."""
    momenta = [0.5, 0.9, 0.996, 0.7, 0.99]
    student, teacher = (
        with_random_parameters(small_net(), 0),
        with_random_parameters(small_net(), 99),
    )
    expected = [p.double() for p in copies(teacher)]
    expected = [p * torch.tensor(momenta, dtype=torch.float64).prod() for p in expected]
    for step, momentum in enumerate(momenta):
        with_random_parameters(student, step)
        ema_update(teacher, student, momentum)
        weight = (1 - momentum) * torch.tensor(momenta[step + 1 :], dtype=torch.float64).prod()
        expected = [
            e + weight * p.double() for e, p in zip(expected, student.parameters(), strict=True)
        ]
    for p, e in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach().double(), e, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0, 0.0, 1, 1.0])
def test_momentum_at_the_ends_is_exact(momentum):
    student, teacher = (
        with_random_parameters(small_net(), 0),
        with_random_parameters(small_net(), 1),
    )
    expected = copies(student if momentum == 0 else teacher)
    ema_update(teacher, student, momentum)
    assert all(torch.equal(p, e) for p, e in zip(teacher.parameters(), expected, strict=True))


def test_update_is_in_place_and_leaves_student_and_buffers_alone():
    student = with_random_parameters(small_net(), 0)
    teacher = make_teacher(with_random_parameters(small_net(), 1))
    with torch.no_grad():
        student(torch.randn(8, 3))
        teacher(3 + torch.randn(8, 3))
    places, weights = [p.data_ptr() for p in teacher.parameters()], copies(student)
    buffers = [[b.clone() for b in model.buffers()] for model in (student, teacher)]
    assert not torch.equal(
        buffers[0][0], buffers[1][0]
    )  # the running means differ, or the test says nothing

    ema_update(teacher, student, 0.5)
    assert places == [p.data_ptr() for p in teacher.parameters()]
    assert all(torch.equal(p, w) for p, w in zip(student.parameters(), weights, strict=True))
    assert all(p.requires_grad for p in student.parameters())
    for model, before in zip((student, teacher), buffers, strict=True):
        assert all(torch.equal(b, old) for b, old in zip(model.buffers(), before, strict=True))


@pytest.mark.parametrize("momentum", [-0.01, 1.01, float("nan")])
def test_wrong_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum={momentum} must lie in"):
        ema_update(small_net(), small_net(), momentum)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    ],
)
def test_mismatched_models_are_refused(other):
    before = copies(other)
    for teacher, student in [(other, small_net()), (small_net(), other)]:
        with pytest.raises(ValueError, match="build the teacher with make_teacher"):
            ema_update(teacher, student, 0.5)
    assert all(torch.equal(p, b) for p, b in zip(other.parameters(), before, strict=True))
