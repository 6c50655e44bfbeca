import pytest
import torch
import torch.nn.functional as F

from dino_lib.backbone import create_backbone
from dino_lib.measure.patches import mutual_matches, patch_features, patch_pca, patch_similarity


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_principal_components_become_colours():
    rows, cols = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    tokens = torch.zeros(2, 20, 30, 5)
    tokens[..., 3] = -2 * cols  # most variance, along a negative direction: the sign is turned
    tokens[..., 1] = rows
    tokens[..., 0] = 0.1 * (rows + cols) % 2
    tokens += 100  # only differences matter
    colours = patch_pca(tokens)
    assert colours.shape == (2, 20, 30, 3) and colours.dtype == torch.float32
    assert colours.min() == 0 and colours.max() == 1
    middle = colours[0, 10, :, 0]
    assert (
        (middle.diff()[1:-1] < 0).all() and colours[0, 10, 0, 0] == 1 and colours[0, 10, -1, 0] == 0
    )
    assert (colours[0, 1:-1, 15, 1].diff() > 0).all()
    torch.testing.assert_close(patch_pca(3 * tokens), colours, atol=1e-4, rtol=0)


def test_components_are_those_of_the_svd():
    tokens = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(
        1, 9
    )
    x = tokens.reshape(60, 8)
    scores = (x - x.mean(0)) @ torch.linalg.svd(x - x.mean(0)).Vh[:3].T
    correlation = torch.corrcoef(torch.cat([scores.T, patch_pca(tokens).reshape(60, 3).T]))[
        :3, 3:
    ].abs()
    assert (correlation.diagonal() > 0.98).all() and (
        correlation - torch.diag(correlation.diagonal())
    ).max() < 0.2


def test_the_background_has_no_say():
    tokens = torch.randn(2, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    foreground = torch.zeros(2, 6, 6, dtype=torch.bool)
    foreground[:, 1:4, 2:5] = True
    colours = patch_pca(tokens, foreground)
    assert (colours[~foreground] == 0).all() and colours[foreground].max() == 1
    loud = torch.where(foreground[..., None], tokens, 1000 * tokens)
    torch.testing.assert_close(patch_pca(loud, foreground), colours)
    assert not torch.allclose(patch_pca(loud), patch_pca(tokens), atol=0.1)


def test_an_outlier_does_not_bleach_the_rest():
    tokens = torch.randn(1, 20, 20, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [5.0, 3, 2, 1]
    )
    tokens[0, 0, 0, 0] = 100
    assert patch_pca(tokens)[..., 0].std() > 0.15


# --- features and what resembles what ---


def test_features_are_the_tokens():
    options = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "reg_tokens": 2}
    model = create_backbone("vit_tiny_patch16_224", img_size=32, **options).train()
    images = randn(2, 3, 24, 40)
    features = patch_features(model, images)
    assert model.training  # left as it was
    torch.testing.assert_close(features, model.eval().patch_tokens(images))


def test_similarity_is_the_cosine_with_one_patch():
    tokens = randn(3, 4, 5, 6)
    alike = patch_similarity(tokens, 1, 3, 2)
    for place in [(0, 0, 0), (1, 3, 2), (2, 1, 4)]:
        a, b = tokens[place], tokens[1, 3, 2]
        assert alike[place].item() == pytest.approx(
            (a @ b / (a.norm() * b.norm())).item(), abs=1e-6
        )
    for place in [(3, 0, 0), (0, 4, 0), (0, 0, 5), (-1, 0, 0)]:
        with pytest.raises(ValueError, match="lies outside"):
            patch_similarity(tokens, *place)


def test_a_shuffled_image_is_matched_patch_by_patch():
    a, order = randn(3, 4, 16), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    b = 3 * a.flatten(0, 1)[order].view(2, 6, 16)  # another grid, and lengths that must not count
    where = order.argsort()  # patch i of a is at where[i] in b
    here, there, cosine = mutual_matches(a, b)
    assert len(here) == 12 and (cosine > 0.999).all()
    assert (there[:, 0] * 6 + there[:, 1]).tolist() == where[here[:, 0] * 4 + here[:, 1]].tolist()


def test_only_mutual_matches_count_and_the_most_similar_come_first():
    a = F.one_hot(torch.tensor([[0, 1, 2]]), 4).float()
    b = torch.tensor([[[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 0.8, 0.6]]])
    here, there, cosine = mutual_matches(
        a, b
    )  # a's second finds b's second, which prefers a's first
    assert here.tolist() == [[0, 0], [0, 2]] and there.tolist() == [[0, 0], [0, 2]]
    torch.testing.assert_close(cosine, torch.tensor([1.0, 0.8]))
