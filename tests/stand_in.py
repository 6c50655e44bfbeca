"""A card that isn't there: shapes, types and devices as on CUDA, and no numbers.

What the host would have to wait for (a number read, a copy back, a size that depends on numbers)
raises Waited. Tensors on the CPU stay real.
"""

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_flatten

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class Waited(AssertionError):
    """The host would wait for the card."""


class StandIn(FakeTensorMode):
    """Inside, `cuda` is a card without numbers.

    kernels: how many are sent to it, views of tensors aside. largest: bytes of the largest tensor
    that one of them makes.
    """

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.kernels, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        there = any(isinstance(x, FakeTensor) for x in tree_flatten((args, kwargs))[0])
        device = kwargs.get("device")
        to_card = device is not None and torch.device(device).type == "cuda"
        if func is aten.is_pinned.default:
            return False
        if func is aten._pin_memory.default:
            return args[0]
        if not there and not to_card:
            return func(*args, **kwargs)  # on the CPU, and real
        if there and device is not None and not to_card:
            raise Waited(f"{func} copies back to {device}")
        if func is aten._local_scalar_dense.default:
            raise Waited("a number is read")
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Waited(f"{func} depends on numbers") from error
        self.kernels += not func.is_view
        sizes = [x.nbytes for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out
