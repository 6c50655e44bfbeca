"""What a frozen feature is worth: k-NN, linear probe, clustering, and masks against the object's own.

Features are float32 tensors (N, D), one row an image. Nothing here trains the network.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


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


# not torch.inference_mode: a buffer that a model caches in there (rotary positions) could not be trained with later
@torch.no_grad()
def extract_features(model, images_or_loader, *, batch_size=256):
    """Images -> their features, float32 (N, D) on the CPU, each row of length 1.

    `images_or_loader`: normalised float images (N, 3, H, W), taken `batch_size` at a time, or anything that yields
    batches x or (x, y, ...) of such images. They are moved to the model's device; the model is in eval mode
    meanwhile and every submodule's own mode is restored. Raises TypeError on images that are not floating point,
    ValueError on no images at all and on a model that does not give (B, D).
    """
    device = next(model.parameters(), torch.empty(0)).device
    is_tensor = isinstance(images_or_loader, torch.Tensor)
    features = []
    with eval_mode(model):
        for batch in images_or_loader.split(batch_size) if is_tensor else images_or_loader:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            if not x.is_floating_point():
                raise TypeError(f"images are {x.dtype}: normalise them to floating point first")
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
def knn_predict(train_features, train_labels, test_features, *, k=20, temperature=0.07):
    """Weighted k-NN (Wu et al. 2018, arXiv 1805.01978, section 3.4; the paper's main measure): int64 (M,).

    train_features (N, D), train_labels (N,), test_features (M, D), all on one device; rows are L2-normalised here.
    The score of class c is the sum, over the k nearest training rows of class c, of exp(cosine / temperature).
    Equal scores go to the lower class id. Raises ValueError on a k outside 1..N, on widths or lengths that do not
    fit, on negative labels and on a temperature that is not positive.
    """
    train_labels = torch.as_tensor(train_labels, device=train_features.device)
    n = len(train_features)
    if train_features.ndim != 2 or test_features.ndim != 2 or train_features.shape[1] != test_features.shape[1]:
        raise ValueError(f"train_features {tuple(train_features.shape)} and test_features "
                         f"{tuple(test_features.shape)} do not fit: expected (N, D) and (M, D)")
    if train_labels.shape != (n,) or train_labels.is_floating_point():
        raise ValueError(f"train_labels are {train_labels.dtype} {tuple(train_labels.shape)}; expected {n} integers")
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must lie between 1 and the number of training features, {n}")
    if train_labels.min() < 0:
        raise ValueError(f"train_labels hold {train_labels.min().item()}: class ids start at 0")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive")

    train = F.normalize(train_features.float(), dim=1)
    classes, column = train_labels.unique(return_inverse=True)  # sorted, so the first maximum is the lowest id
    predicted = []
    for rows in test_features.split(max(1, 2**24 // n)):  # 64 MB of similarities at a time
        similarity, nearest = (F.normalize(rows.float(), dim=1) @ train.T).topk(k)  # (m, k)
        # measured from the nearest: the same argmax, and exp(1 / temperature) can't overflow
        weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
        scores = weights.new_zeros(len(rows), len(classes)).scatter_add_(1, column[nearest], weights)
        predicted.append(classes[scores.argmax(1)])
    return torch.cat(predicted).long()


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


def cluster_scores(features, labels, n_clusters=None, seed=0):
    """k-means against the classes. Returns a dict:

    `nmi`, `ari`: normalised mutual information and adjusted Rand index. `accuracy`: the share that is right when
    every cluster stands for one class, by the best one-to-one assignment (Hungarian). `clusters` int64 (N,): each
    row's cluster. `assignment` int64 (n_clusters,): each cluster's class, -1 if there are more clusters than classes.
    """
    labels = np.asarray(labels)
    classes, truth = np.unique(labels, return_inverse=True)
    n_clusters = len(classes) if n_clusters is None else n_clusters
    if not len(features) == len(labels) >= n_clusters:
        raise ValueError(f"{len(features)} features, {len(labels)} labels, {n_clusters} clusters: expected a label "
                         "for each feature and no more clusters than features")
    clusters = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(np.asarray(features))
    table = np.zeros((n_clusters, len(classes)), dtype=np.int64)
    np.add.at(table, (clusters, truth), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    assignment = np.full(n_clusters, -1)
    assignment[rows] = classes[columns]
    return {"nmi": float(normalized_mutual_info_score(truth, clusters)),
            "ari": float(adjusted_rand_score(truth, clusters)),
            "accuracy": float(table[rows, columns].sum() / len(labels)),
            "clusters": torch.from_numpy(clusters).long(),
            "assignment": torch.from_numpy(assignment).long()}


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


def embed_2d(features, seed=0):
    """t-SNE for the eye (van der Maaten & Hinton 2008): float32 (N, 2). Distances between clusters mean nothing.

    Starts from the first two principal components; perplexity min(30, (N - 1) / 3). Raises ValueError if N < 4.
    """
    if len(features) < 4:
        raise ValueError(f"{len(features)} features: t-SNE needs at least 4")
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(np.asarray(features))
    return torch.from_numpy(points).float()


def rank_me(features):
    """RankMe (Garrido et al. 2023, arXiv 2210.02885): how many dimensions features (N, D) really use, a float.

    exp of the entropy of the singular values divided by their sum: from 1 (all on a line through 0) to min(N, D).
    """
    singular = torch.linalg.svdvals(features.double())
    return torch.special.entr(singular / singular.sum()).sum().exp().item()
