import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dino_lib.backbone import create_backbone
from dino_lib.head import DINOHead, MultiCropModel, OriginalHead


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_head(**options):
    torch.manual_seed(0)
    return DINOHead(10, 7, hidden_dim=12, bottleneck_dim=5, **options)


def linears(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def with_random_parameters(module, seed=0):
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(randn(*p.shape, seed=100 * seed + i))
    return module


# --- the paper's head ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("use_bn", [False, True])
def test_head_is_its_closed_form(n_layers, use_bn):
    """Matrix products with the module's own numbers, all of them random (biases, gain and batch
    norm's too).
    """
    head = with_random_parameters(
        small_head(n_layers=n_layers, use_bn=use_bn, norm_last_layer=False)
    ).eval()
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm1d)]
    for i, norm in enumerate(norms):
        norm.running_mean.copy_(randn(12, seed=50 + i))
        norm.running_var.copy_(randn(12, seed=60 + i).exp())
    assert len(norms) == (n_layers - 1 if use_bn else 0)

    x = z = randn(6, 10, seed=1)
    for i, linear in enumerate(linears(head)):
        z = z @ linear.weight.T + linear.bias
        if i < n_layers - 1:
            if use_bn:
                n = norms[i]
                z = (z - n.running_mean) / (n.running_var + n.eps).sqrt() * n.weight + n.bias
            z = gelu(z)
    z = z / z.norm(dim=1, keepdim=True)
    w = head.directions / head.directions.norm(dim=1, keepdim=True)
    assert len(linears(head)) == n_layers
    torch.testing.assert_close(head(x), z @ (head.gain[:, None] * w).T, rtol=1e-4, atol=1e-5)


def test_batch_norm_uses_the_rows_at_hand():
    head, x = small_head(use_bn=True), 100 * randn(8, 10)
    torch.testing.assert_close(
        head(x), head(5 * x), rtol=1e-3, atol=1e-3
    )  # it takes the scale away, biases being 0
    assert not torch.allclose(head(x)[:4], head(x[:4]), atol=1e-3)


def test_logits_are_cosines_and_reach_their_bounds():
    head = with_random_parameters(small_head())
    head.gain.data.fill_(1)
    x = randn(50, 10, seed=3)
    logits = head(x)
    assert logits.shape == (50, 7) and logits.abs().max() <= 1 + 1e-6
    z = F.normalize(head.mlp(x), dim=1)
    head.directions.data[0], head.directions.data[1] = 3 * z[0].detach(), -0.2 * z[0].detach()
    torch.testing.assert_close(head(x)[0, :2], torch.tensor([1.0, -1.0]))


def test_initialisation():
    torch.manual_seed(0)
    head = DINOHead(384, 4096, hidden_dim=512, use_bn=True)
    weights = linears(head)
    for linear in weights:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert linear.weight.mean().abs() < 5e-4
        assert linear.weight.abs().max() > 0.06  # a normal distribution, not a uniform one
        assert torch.equal(linear.bias, torch.zeros_like(linear.bias))
    # Linear(256, K)'s default: uniform within 1 / sqrt(256)
    bound = 1 / 16
    assert 0.999 * bound < head.directions.abs().max() <= bound
    assert head.directions.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert torch.equal(head.gain, torch.ones(4096))
    assert not torch.equal(weights[0].weight[:, :256], weights[1].weight[:, :256])


def test_default_sizes_and_order_of_the_modules():
    with torch.device("meta"):
        head = DINOHead(384)
    assert [tuple(m.weight.shape) for m in linears(head)] == [
        (2048, 384),
        (2048, 2048),
        (256, 2048),
    ]
    assert [tuple(p.shape) for p in head.parameters() if p.shape[0] == 65536] == [
        (65536, 256),
        (65536,),
    ]
    assert [type(m) for m in small_head(use_bn=True).mlp] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.GELU,
        nn.Linear,
        nn.BatchNorm1d,
        nn.GELU,
        nn.Linear,
    ]
    assert [type(m) for m in small_head().mlp] == [
        nn.Linear,
        nn.GELU,
        nn.Linear,
        nn.GELU,
        nn.Linear,
    ]


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_gain_is_frozen_where_the_last_layer_is_normalised(norm_last_layer):
    head = small_head(norm_last_layer=norm_last_layer)
    head(randn(6, 10)).square().sum().backward()
    for name, p in head.named_parameters():
        if name == "gain" and norm_last_layer:
            assert not p.requires_grad and p.grad is None
        else:
            assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "head", [small_head(norm_last_layer=False), OriginalHead(10, 7, hidden_dim=12)]
)
def test_the_last_layer_is_what_makes_the_logits_and_nothing_before(head):
    """With the last layer's parameters changed, only the prototypes differ: the bottleneck is the
    same.
    """
    x, last = randn(6, 10), {id(p) for p in head.last_layer_parameters()}
    inside = [p for p in head.parameters() if id(p) not in last]
    assert sum(p.numel() for p in head.last_layer_parameters()) in (7 * 5 + 7, 7 * 12 + 7)
    before = head(x)
    with torch.no_grad():
        for p in head.last_layer_parameters():
            p.add_(randn(*p.shape, seed=9))
    assert not torch.allclose(head(x), before, atol=1e-3) and len(inside) + 2 == len(
        list(head.parameters())
    )


@pytest.mark.parametrize("head", [small_head(), OriginalHead(10, 7, hidden_dim=12)])
def test_normalisation_stays_in_float32_under_autocast(head):
    x = randn(6, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, z = head(x), head.mlp(x)
    assert z.dtype == torch.bfloat16 and y.dtype == torch.float32
    z = F.normalize(z.float(), dim=1)
    if isinstance(head, DINOHead):
        z = z @ F.normalize(head.directions, dim=1).T  # in bfloat16 this would be off by 1e-3
    torch.testing.assert_close(y, z, rtol=1e-6, atol=1e-6)


def test_zero_bottleneck_gives_zero_logits():
    x = torch.zeros(3, 10, requires_grad=True)  # biases start at 0
    logits = small_head()(x)
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros(3, 7)) and x.grad.isfinite().all()


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="n_layers=0"):
        small_head(n_layers=0)


# --- the head this course starts from ------------------------------------------------------------


def test_original_head_is_its_closed_form():
    head = with_random_parameters(OriginalHead(6, 9, hidden_dim=8))
    norms = [m for m in head.modules() if isinstance(m, nn.LayerNorm)]
    assert len(linears(head)) == 5 and len(norms) == 4
    assert (
        len({p.data_ptr() for p in head.parameters()}) == 2 * 9
    )  # nothing is shared, the LayerNorms neither
    x = z = randn(4, 6, seed=1)
    for linear, norm in zip(linears(head), norms, strict=False):  # the last Linear has none
        z = gelu(z @ linear.weight.T + linear.bias)
        centred = z - z.mean(1, keepdim=True)
        z = (
            centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight
            + norm.bias
        )
    last = linears(head)[-1]
    z = z @ last.weight.T + last.bias
    torch.testing.assert_close(head(x), z / z.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_original_head_defaults_and_unit_rows():
    head = OriginalHead(32)
    assert [tuple(m.weight.shape) for m in linears(head)] == [
        (2048, 32),
        *[(2048, 2048)] * 3,
        (1000, 2048),
    ]
    y = head(randn(3, 32))
    assert y.shape == (3, 1000)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(3))


# --- many views ----------------------------------------------------------------------------------


def tiny_model():
    torch.manual_seed(0)
    backbone = create_backbone(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=16, num_heads=2
    )
    return with_random_parameters(MultiCropModel(backbone, small_head_of(16))).eval()


def small_head_of(in_dim):
    return DINOHead(in_dim, 7, hidden_dim=12, bottleneck_dim=5)


def test_views_of_two_sizes_in_one_call_equal_each_view_alone():
    model = tiny_model()
    views = [randn(3, 3, size, size, seed=size + i) for i, size in enumerate([32, 32, 16, 16, 16])]
    with torch.no_grad():
        together, features = model(views), model.features(views)
        assert together.shape == (5, 3, 7) and features.shape == (15, 16)
        for v, view in enumerate(views):
            torch.testing.assert_close(
                together[v], model.head(model.backbone(view)), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                features.unflatten(0, (5, 3))[v], model.backbone(view), rtol=1e-4, atol=1e-5
            )
        for b in range(3):
            torch.testing.assert_close(
                together[:, b : b + 1], model([x[b : b + 1] for x in views]), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([(32, 32)] * 2 + [(16, 16)] * 3, [4, 6]),
        ([(32, 32), (16, 16), (32, 32)], [2, 2, 2]),  # only neighbours are joined
        ([(16, 32), (32, 32), (32, 16)], [2, 2, 2]),
        ([(16, 16)], [2]),
    ],
)
def test_backbone_runs_once_a_run_of_equal_sizes_and_the_head_once(sizes, batches):
    model, seen, head_seen = tiny_model(), [], []
    model.backbone.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    model.head.register_forward_hook(lambda module, args, out: head_seen.append(len(args[0])))
    with torch.no_grad():
        out = model([randn(2, 3, *size) for size in sizes])
    assert out.shape == (len(sizes), 2, 7)
    assert seen == batches and head_seen == [sum(batches)]


def test_row_b_of_view_v_belongs_to_image_b():
    class MeanColour(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    views = [
        torch.full((4, 3, size, size), 10.0 * v) + torch.arange(4.0)[:, None, None, None]
        for v, size in enumerate([8, 8, 4, 4, 4])
    ]
    out = MultiCropModel(MeanColour(), nn.Identity())(views)
    expected = 10.0 * torch.arange(5)[:, None, None] + torch.arange(4)[:, None]  # (5, 4, 1)
    torch.testing.assert_close(out, expected.expand(5, 4, 3))
