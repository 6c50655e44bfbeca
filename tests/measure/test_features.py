import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dino_lib.backbone import create_backbone
from dino_lib.head import DINOHead, MultiCropModel
from dino_lib.measure.features import eval_mode, extract_features, patch_features


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_net():
    """Dropout and batch norm tell train mode from eval mode; the batch norm's own mode differs from
    the root's.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    net.train()
    net[1].eval()
    return net


def modes(net):
    return [module.training for module in net.modules()]


def test_features_are_unit_rows_in_eval_mode_whatever_the_batch():
    net, images = small_net(), randn(10, 3, 8, 8)
    features = extract_features(net, images, batch_size=4)
    with torch.no_grad():
        expected = F.normalize(net.eval()(images), dim=1)
    assert (
        features.shape == (10, 4)
        and features.dtype == torch.float32
        and features.device.type == "cpu"
    )
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("with_labels", [False, True])
def test_features_of_a_loader(with_labels):
    net, images = small_net(), randn(7, 3, 8, 8)
    data = TensorDataset(images, torch.arange(7)) if with_labels else images
    features = extract_features(net, DataLoader(data, batch_size=3))
    torch.testing.assert_close(features, extract_features(net, images))


def test_images_go_through_in_batches():
    sizes = []

    class Recorder(nn.Flatten):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    extract_features(Recorder(), randn(10, 3, 2, 2), batch_size=4)
    assert sizes == [4, 4, 2]


def test_every_mode_comes_back_and_statistics_stay():
    net = small_net()
    net[1].train()
    before, mean = modes(net), net[1].running_mean.clone()
    extract_features(net, randn(4, 3, 8, 8))
    assert modes(net) == before and torch.equal(net[1].running_mean, mean)
    net = small_net()
    before = modes(net)
    assert len(set(before)) == 2
    with pytest.raises(RuntimeError):
        extract_features(net, randn(4, 5, 8, 8))  # five channels
    assert modes(net) == before


def test_eval_mode_holds_inside():
    net = small_net()
    with eval_mode(net):
        assert not any(modes(net))


def test_features_can_be_trained_on():
    features = extract_features(small_net(), randn(4, 3, 8, 8))
    assert not features.requires_grad
    weight = torch.zeros(4, requires_grad=True)
    (features @ weight).sum().backward()  # refused by tensors of inference mode
    torch.testing.assert_close(weight.grad, features.sum(0))


def test_half_precision_models_give_float32():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).bfloat16()
    images = randn(5, 3, 2, 2)
    features = extract_features(net, images)  # a bf16 model takes float32 images
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    assert torch.equal(features, extract_features(net, images.bfloat16()))
    double = extract_features(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double(), images)
    assert double.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_in_reduced_precision_give_nearly_the_same_features_in_float32(dtype):
    net, images, seen = small_net(), randn(64, 3, 8, 8), []
    hook = net[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    features = extract_features(net, images, dtype=dtype)
    hook.remove()
    assert set(seen) == {dtype} and features.dtype == torch.float32
    apart = (features - extract_features(net, images)).norm(dim=1)
    assert apart.max() < 0.03 and (apart.max() > 0) == (dtype != torch.float32)
    assert net[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    "images, error",
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError),
        (torch.zeros(0, 3, 8, 8), ValueError),
        ([], ValueError),
    ],
)
def test_unfit_images_are_refused(images, error):
    with pytest.raises(error, match="images"):
        extract_features(small_net(), images)


def test_a_model_must_give_rows():
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        extract_features(nn.Conv2d(3, 4, 3), randn(2, 3, 8, 8))


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    "output, words",
    [
        ({"last": torch.zeros(2, 5, 4), "pooled": torch.zeros(2, 4)}, "dict"),
        ((torch.zeros(2, 4), torch.zeros(2, 8)), "tuple"),
        (None, "NoneType"),
    ],
)
def test_what_a_model_gives_instead_of_rows_is_named_with_the_remedy(output, words):
    with pytest.raises(
        ValueError, match=f"Gives gave {words}; .*wrap it in a module whose forward"
    ):
        extract_features(Gives(output), randn(2, 3, 8, 8))


def test_batches_that_are_dicts_are_refused_with_the_remedy():
    with pytest.raises(
        TypeError, match=r'dicts with image, label: .*batch\["image"\] for batch in loader'
    ):
        extract_features(small_net(), [{"image": randn(2, 3, 8, 8), "label": torch.zeros(2)}])


def test_features_are_the_backbones_whatever_holds_it():
    backbone, images = create_backbone("resnet10t").eval(), randn(2, 3, 32, 32)
    expected = extract_features(backbone, images)
    student = MultiCropModel(backbone, DINOHead(512, 8, hidden_dim=8, bottleneck_dim=4))

    class Teacher:  # not a module, as what `load_teacher` gives
        model = backbone

    for model in (student, Teacher(), backbone.model):
        assert torch.equal(extract_features(model, images), expected)

    class Wrapped(nn.Module):
        """One's own module, which holds a model and gives something else of it."""

        def __init__(self):
            super().__init__()
            self.model = backbone

        def forward(self, x):
            return self.model(x)[:, :5]

    assert extract_features(Wrapped(), images).shape == (2, 5)


def test_patch_features_are_the_tokens():
    options = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "reg_tokens": 2}
    model = create_backbone("vit_tiny_patch16_224", img_size=32, **options).train()
    images = randn(2, 3, 24, 40)
    features = patch_features(model, images)
    assert model.training  # left as it was
    torch.testing.assert_close(features, model.eval().patch_tokens(images))
