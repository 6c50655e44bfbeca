"""What a frozen feature is worth: k-NN, retrieval, linear probe, and masks against the object's own.

Features are float32 tensors (N, D), one row an image. Nothing here trains the network.
"""

import contextlib
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_lib.backbone import backbone_of


@contextlib.contextmanager
def eval_mode(model):
    """Eval mode inside the block; afterwards, also on an error, every submodule's own mode is back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:  # train(mode) would give the submodules their parent's mode
            module.training = training


def check_images(images):
    """TypeError or ValueError if these are not normalised images (B, C, H, W)."""
    if not torch.is_tensor(images):
        raise TypeError(f"images are {type(images).__name__}: expected a tensor (B, C, H, W), normalised")
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}: normalise them to floating point first")
    if images.ndim != 4:
        raise ValueError(f"images {tuple(images.shape)}: expected (B, C, H, W)")
    if images.numel() and not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values")
    if images.numel() and images.abs().max() > 100:  # normalised ones stay below 3, with small deviations below 20
        raise ValueError(f"images reach {images.abs().max():.0f}: normalise them first, as teacher.transform does")


# not torch.inference_mode: a buffer that a model caches in there (rotary positions) could not be trained with later
@torch.no_grad()
def extract_features(model, images_or_loader, *, batch_size=256, dtype=torch.float32):
    """Images -> their features, float32 (N, D) on the CPU, each row of length 1.

    `images_or_loader`: normalised float images (N, 3, H, W), taken `batch_size` at a time, or anything that yields
    batches x or (x, y, ...) of such images. They are moved to the model's device; the model is in eval mode
    meanwhile and every submodule's own mode is restored. `dtype` is what the products are computed in: torch.bfloat16
    or torch.float16 (on a GPU) where the hardware has it natively is faster, and moves a feature a little.
    Raises TypeError on images that are not floating point, ValueError on other shapes, NaN and values far from
    normalised, on no images at all, on another dtype and on a model that does not give (B, D).
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={dtype} must be torch.float32, torch.bfloat16 or torch.float16")
    model = model if isinstance(model, torch.nn.Module) else backbone_of(model)  # of a Teacher
    device = next(model.parameters(), torch.empty(0)).device
    is_tensor = isinstance(images_or_loader, torch.Tensor)
    features = []
    with eval_mode(model), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        if isinstance(images_or_loader, np.ndarray):
            check_images(images_or_loader)
        for batch in images_or_loader.split(batch_size) if is_tensor else images_or_loader:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            check_images(x)
            if len(x) == 0:
                continue
            y = model(x.to(device))
            if y.ndim != 2:
                raise ValueError(f"{type(model).__name__} gave {tuple(y.shape)} for a batch; expected (B, D)")
            features.append(F.normalize(y.float(), dim=1).cpu())
    if not features:
        raise ValueError("no images: expected at least one")
    return torch.cat(features)


@torch.no_grad()
def nearest(gallery, queries, k):
    """The k rows of `gallery` (N, D) with the largest cosine to each row of `queries` (M, D), nearest first.

    Returns (cosine float32 (M, k), index int64 (M, k)) on their device. Raises ValueError on a k outside 1..N and on
    widths that do not fit.
    """
    for features in (gallery, queries):
        if not torch.is_tensor(features):
            raise TypeError(f"features are {type(features).__name__}: expected a tensor (N, D)")
        if not features.isfinite().all():
            raise ValueError("features hold NaN or infinite values")
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1]:
        raise ValueError(f"features {tuple(gallery.shape)} and {tuple(queries.shape)} do not fit: expected (N, D) and "
                         "(M, D)")
    n = len(gallery)
    if not isinstance(k, Integral):
        raise ValueError(f"k={k} must be a whole number")
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must lie between 1 and the number of features to search, {n}")
    gallery = F.normalize(gallery.float(), dim=1)
    found = [(F.normalize(rows.float(), dim=1) @ gallery.T).topk(k)
             for rows in queries.split(max(1, 2**24 // n))]  # 64 MB of similarities at a time
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


@torch.no_grad()
def knn_predict(train_features, train_labels, test_features, *, k=20, temperature=0.07):
    """Weighted k-NN (Wu et al. 2018, arXiv 1805.01978, section 3.4; the paper's main measure): int64 (M,).

    train_features (N, D), train_labels (N,), test_features (M, D), all on one device; rows are L2-normalised here.
    The score of class c is the sum, over the k nearest training rows of class c, of exp(cosine / temperature).
    Equal scores go to the lower class id. Raises ValueError on a k outside 1..N, on widths or lengths that do not
    fit, on negative labels and on a temperature that is not positive.
    """
    if not torch.is_tensor(train_features):
        raise TypeError(f"features are {type(train_features).__name__}: expected a tensor (N, D)")
    train_labels = torch.as_tensor(train_labels, device=train_features.device)
    n = len(train_features)
    if train_labels.shape != (n,) or train_labels.is_floating_point():
        raise ValueError(f"train_labels are {train_labels.dtype} {tuple(train_labels.shape)}; expected {n} integers")
    if n and train_labels.min() < 0:
        raise ValueError(f"train_labels hold {train_labels.min().item()}: class ids start at 0")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")

    cosine, index = nearest(train_features, test_features, k)  # (M, k)
    classes, column = train_labels.unique(return_inverse=True)  # sorted, so the first maximum is the lowest id
    predicted, rows = [], max(1, 2**23 // len(classes))  # 64 MB of scores at a time
    for near, found in zip(cosine.split(rows), index.split(rows), strict=True):
        # measured from the nearest: the same argmax, and exp(1 / temperature) can't overflow
        weights = ((near - near[:, :1]).double() / temperature).exp()
        scores = weights.new_zeros(len(near), len(classes)).scatter_add_(1, column[found], weights)
        predicted.append(classes[scores.argmax(1)])
    return torch.cat(predicted).long()


@torch.no_grad()
def retrieval_map(gallery, gallery_labels, queries, query_labels):
    """Mean average precision of image retrieval, a float in [0, 1].

    Each query (M, D) ranks the whole gallery (N, D) by cosine; what has its label is relevant. Its average precision
    is the sum over the ranks n of (recall_n - recall_(n-1)) * precision_n (scikit-learn's, without interpolation);
    the mean is over the queries, so large classes count more. Queries without a relevant image are left out, as in
    the Oxford and Paris benchmarks; a query must not stand in the gallery. Raises ValueError on widths or lengths that
    do not fit and if no query has a relevant image.
    """
    gallery_labels, query_labels = np.asarray(gallery_labels), np.asarray(query_labels)
    if (len(gallery), len(queries)) != (len(gallery_labels), len(query_labels)):
        raise ValueError(f"{len(gallery)} and {len(queries)} features, {len(gallery_labels)} and {len(query_labels)} "
                         "labels: expected a label for each feature")
    precisions = []
    for part in torch.arange(len(queries)).split(256):  # a block of the M x N similarities at a time
        cosine, index = nearest(gallery, queries[part], len(gallery))  # (m, N), most similar first
        relevant = gallery_labels[index.cpu().numpy()] == query_labels[part, None]
        precisions += [average_precision_score(right, near)
                       for right, near in zip(relevant, cosine.cpu().numpy(), strict=True) if right.any()]
    if not precisions:
        raise ValueError("no query has an image of its class in the gallery")
    return float(np.mean(precisions))


def accuracy(predicted, labels):
    """(share of all that is right, mean over the classes that occur in `labels` of their share), two floats."""
    predicted, labels = torch.as_tensor(predicted), torch.as_tensor(labels)
    if predicted.shape != labels.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} must both be (N >= 1,)")
    right = (predicted == labels).double()
    per_class = torch.stack([right[labels == c].mean() for c in labels.unique()])
    return right.mean().item(), per_class.mean().item()


def color_histogram(images_uint8, bins=8):
    """Joint RGB histogram, the baseline that a learned feature must beat: float32 (N, bins ** 3), rows of length 1.

    uint8 (N, 3, H, W). The square root is taken before the L2 normalisation, so that a dot product is the
    Bhattacharyya coefficient (Hellinger kernel) of two colour distributions.
    """
    if images_uint8.dtype != torch.uint8 or images_uint8.ndim != 4 or images_uint8.shape[1] != 3:
        raise ValueError(f"images are {images_uint8.dtype} {tuple(images_uint8.shape)}; expected uint8 (N, 3, H, W)")
    if not 1 <= bins <= 256:
        raise ValueError(f"bins={bins} must lie between 1 and 256")
    counts = [torch.empty(0, bins**3)]
    for chunk in images_uint8.cpu().split(max(1, 2**22 // images_uint8[0:1].numel())):  # bounded memory
        r, g, b = (chunk.int() * bins // 256).flatten(2).unbind(1)  # (n, H * W)
        code = (r * bins + g) * bins + b + torch.arange(len(chunk))[:, None] * bins**3
        counts.append(code.flatten().bincount(minlength=len(chunk) * bins**3).view(len(chunk), -1).float())
    return F.normalize(torch.cat(counts).sqrt(), dim=1)


def linear_probe(train_features, train_labels, test_features, *, C=1.0, max_iter=1000):
    """Multinomial logistic regression on the features: predicted class ids, int64 (M,).

    scikit-learn's L-BFGS with its own defaults (L2 penalty, C = 1, intercept) on features standardised by the
    training set's mean and deviation. The paper trains a linear layer by SGD on augmented images instead.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
    probe.fit(np.asarray(train_features), np.asarray(train_labels))
    return torch.from_numpy(probe.predict(np.asarray(test_features))).long()


def _iou(masks, truth):
    """(N, heads, H, W) bool, (N, H, W) bool -> (N, heads) intersection over union; an empty union counts 0."""
    if masks.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"masks are {masks.dtype} and truth is {truth.dtype}; expected bool for both")
    if masks.ndim != 4 or len(masks) == 0 or truth.shape != (masks.shape[0], *masks.shape[2:]):
        raise ValueError(f"masks {tuple(masks.shape)} and truth {tuple(truth.shape)} do not fit: expected "
                         "(N, heads, H, W) and (N, H, W); attention.upsample brings masks to the truth's size")
    truth = truth[:, None]
    intersection, union = (masks & truth).sum((2, 3)), (masks | truth).sum((2, 3))
    return intersection.double() / union.clamp(min=1)


def jaccard(masks, truth):
    """Per image the best head's intersection over union with the object, averaged over images: a float in [0, 1].

    masks (N, heads, H, W) bool, truth (N, H, W) bool, True on the object. An empty union counts 0. The best head
    is chosen with the truth in hand, as in the paper (section 4.2.2): more heads, higher score.
    """
    return _iou(masks, truth).amax(1).mean().item()


def jaccard_by_head(masks, truth):
    """The mean intersection over union of each head, float32 (heads,); arguments as in `jaccard`."""
    return _iou(masks, truth).mean(0).float()
