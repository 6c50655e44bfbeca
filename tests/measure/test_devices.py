"""On devices without float64, as Apple's GPUs are: all measures on such a tensor."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from dino_lib.measure.clusters import cluster_scores
from dino_lib.measure.heads import choose_head, head_table, variety
from dino_lib.measure.knn import accuracy, color_histogram, knn_predict, linear_probe, retrieval_map
from dino_lib.measure.masks import (
    above_blind,
    auc,
    jaccard,
    mass_mask,
    patch_masks,
    upsample,
)


class OnDevice(torch.Tensor):
    """A tensor on a device that has no float64 and that NumPy can't read."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert device tensor to numpy")
        if any(isinstance(leaf, cls) and leaf.dtype == torch.float64 for leaf in tree_leaves(out)):
            raise TypeError("this device has no float64")
        return out


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


FEATURES, LABELS = rand(12, 5), torch.arange(12) % 3
MAPS, OBJECTS = rand(6, 3, 4, 4), rand(6, 4, 4) > 0.6
CALLS = {
    "knn_predict": (knn_predict, FEATURES, LABELS, FEATURES, {"k": 3}),
    "accuracy": (accuracy, LABELS, LABELS.flip(0), {}),
    "retrieval_map": (retrieval_map, FEATURES, LABELS, FEATURES, LABELS, {}),
    "linear_probe": (linear_probe, FEATURES, LABELS, FEATURES, {}),
    "cluster_scores": (lambda *args: cluster_scores(*args)["nmi"], FEATURES, LABELS, {}),
    "color_histogram": (color_histogram, (255 * rand(2, 3, 4, 4)).byte(), {}),
    "mass_mask": (mass_mask, MAPS, {}),
    "upsample": (upsample, MAPS, {"size": (9, 6)}),
    "jaccard": (jaccard, MAPS > 0.5, OBJECTS, {}),
    "patch_masks": (patch_masks, OBJECTS, {"grid": (2, 2)}),
    "auc": (auc, MAPS, OBJECTS, {}),
    "above_blind": (above_blind, MAPS, OBJECTS, {}),
    "choose_head": (choose_head, MAPS, {}),
    "variety": (variety, MAPS, {}),
    "head_table": (lambda *args: head_table(*args)["object"], MAPS, OBJECTS, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_measures_need_no_float64_on_the_device(name):
    function, *tensors, options = CALLS[name]
    found = function(*(tensor.as_subclass(OnDevice) for tensor in tensors), **options)
    expected = function(*tensors, **options)
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(torch.as_tensor(one).cpu(), torch.as_tensor(other))


def test_such_a_device_refuses_float64_and_numpy():
    tensor = FEATURES.as_subclass(OnDevice)
    for refused in (tensor.double, tensor.numpy, (tensor + 1).double):
        with pytest.raises(TypeError, match="device"):
            refused()
    assert tensor.cpu().double().dtype == torch.float64
