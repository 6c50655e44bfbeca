import pytest
import torch
import torch.nn.functional as F

from dino_lib.patches import patch_pca


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
    assert (middle.diff()[1:-1] < 0).all() and colours[0, 10, 0, 0] == 1 and colours[0, 10, -1, 0] == 0
    assert (colours[0, 1:-1, 15, 1].diff() > 0).all()
    torch.testing.assert_close(patch_pca(3 * tokens), colours, atol=1e-4, rtol=0)


def test_components_are_those_of_the_svd():
    tokens = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    x = tokens.reshape(60, 8)
    scores = (x - x.mean(0)) @ torch.linalg.svd(x - x.mean(0)).Vh[:3].T
    correlation = torch.corrcoef(torch.cat([scores.T, patch_pca(tokens).reshape(60, 3).T]))[:3, 3:].abs()
    assert (correlation.diagonal() > 0.98).all() and (correlation - torch.diag(correlation.diagonal())).max() < 0.2


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
    tokens = torch.randn(1, 20, 20, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 3, 2, 1])
    tokens[0, 0, 0, 0] = 100
    assert patch_pca(tokens)[..., 0].std() > 0.15


@pytest.mark.parametrize("tokens, foreground", [
    (torch.zeros(2, 4, 4, 2), None), (torch.zeros(4, 4, 8), None), (torch.zeros(1, 1, 3, 8), None),
    (torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 4).bool()), (torch.zeros(1, 4, 4, 8), torch.ones(1, 4, 2).bool())])
def test_unfit_tokens_are_refused(tokens, foreground):
    with pytest.raises(ValueError, match="at least 4 patches"):
        patch_pca(tokens, foreground)
