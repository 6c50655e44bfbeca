"""Answers to the pieces of notebook 06: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

# --- the attention row ---------------------------------------------------------------------------


def row_whole_matrix(q, k, grid):
    matrix = torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), dim=-1)
    h, w = grid
    n = matrix.shape[-1] - h * w
    return matrix[:, :, 0, n:].reshape(len(q), q.shape[1], h, w)


def row_einsum_in_place(q, k, grid):
    q *= q.shape[-1] ** -0.5
    scores = torch.einsum("bhd,bhtd->bht", q[:, :, 0], k)
    scores -= scores.max(-1, keepdim=True).values
    weights = scores.exp()
    weights /= weights.sum(-1, keepdim=True)
    return weights[..., -grid[0] * grid[1] :].view(*q.shape[:2], *grid).numpy()


def row_lists(q, k, grid):
    return row_whole_matrix(q, k, grid).tolist()


def row_no_root(q, k, grid):
    return row_whole_matrix(q * q.shape[-1] ** 0.5, k, grid)


def row_patches_only(q, k, grid):
    n = grid[0] * grid[1]
    return (
        (q[:, :, :1] @ k[:, :, -n:].mT / q.shape[-1] ** 0.5)
        .softmax(-1)[:, :, 0]
        .unflatten(-1, grid)
    )


def row_one_prefix(q, k, grid):
    row = (q[:, :, :1] @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0, 1:]
    return row.unflatten(-1, grid)  # stops where there are registers


def row_sum_to_one(q, k, grid):
    maps = row_whole_matrix(q, k, grid)
    return maps / maps.sum((-2, -1), keepdim=True)


def row_mean_of_heads(q, k, grid):
    return row_whole_matrix(q, k, grid).mean(1)


def row_sigmoid(q, k, grid):
    row = (q[:, :, :1] @ k.mT / q.shape[-1] ** 0.5).sigmoid()[:, :, 0]
    return row[..., -grid[0] * grid[1] :].unflatten(-1, grid)


def row_by_columns(q, k, grid):
    maps = row_whole_matrix(q, k, grid)
    return maps.reshape(*maps.shape[:2], grid[1], grid[0]).transpose(2, 3)


def row_returns_nothing(q, k, grid):
    row_whole_matrix(q, k, grid)


def row_of_model_width(q, k, grid):
    return row_whole_matrix(q * q.shape[1] ** -0.5, k, grid)


# --- the mass mask -------------------------------------------------------------------------------


def mask_loop(maps, keep=0.6):
    flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1])
    found = torch.zeros_like(flat, dtype=torch.bool)
    for i, values in enumerate(flat):
        held = 0.0
        for place in values.argsort(descending=True).tolist():
            if held >= keep * values.sum().item() - 1e-9:
                break
            found[i, place] = True
            held += values[place].item()
    return found.reshape(maps.shape)


def mask_normalised_in_place(maps, keep=0.6):
    maps /= maps.sum((-2, -1), keepdim=True)
    order = (-maps.flatten(-2)).argsort(-1)
    mass = maps.flatten(-2).gather(-1, order)
    inside = F.pad(mass.cumsum(-1)[..., :-1], (1, 0)) < keep - 1e-7
    return inside.gather(-1, order.argsort(-1)).reshape(maps.shape).numpy()


def mask_numbers(maps, keep=0.6):
    return mask_loop(maps, keep).int().tolist()


def mask_all_ties(maps, keep=0.6):
    flat = maps.flatten(-2)
    mass = flat.sort(dim=-1, descending=True).values
    inside = mass.cumsum(-1) - mass < keep * flat.sum(-1, keepdim=True)
    last = mass.where(inside, torch.inf).amin(-1)
    return maps >= last[..., None, None]


def mask_at_most(maps, keep=0.6):
    flat = maps.flatten(-2)
    mass, order = flat.sort(-1, descending=True)
    inside = mass.cumsum(-1) <= keep * flat.sum(-1, keepdim=True)
    return torch.zeros_like(inside).scatter(-1, order, inside).view(maps.shape)


def mask_threshold(maps, keep=0.6):
    return maps >= maps.flatten(-2).quantile(1 - keep, dim=-1)[..., None, None]


def mask_not_normalised(maps, keep=0.6):
    flat = maps.flatten(-2)
    mass, order = flat.sort(-1, descending=True)
    inside = mass.cumsum(-1) - mass < keep
    return torch.zeros_like(inside).scatter(-1, order, inside).view(maps.shape)


def mask_sorted_places(maps, keep=0.6):
    mass, _ = maps.flatten(-2).sort(-1, descending=True)
    return (mass.cumsum(-1) - mass < keep * mass.sum(-1, keepdim=True)).view(maps.shape)


def mask_of_the_max(maps, keep=0.6):
    return maps > keep * maps.amax((-2, -1), keepdim=True)


def mask_gathered_back_wrong(maps, keep=0.6):
    mass, order = maps.flatten(-2).sort(-1, descending=True)
    inside = mass.cumsum(-1) - mass < keep * mass.sum(-1, keepdim=True)
    return inside.gather(-1, order).view(maps.shape)


def mask_all_together(maps, keep=0.6):
    mass, order = maps.flatten().sort(descending=True)
    inside = mass.cumsum(0) - mass < keep * mass.sum()
    return torch.zeros_like(inside).scatter(0, order, inside).view(maps.shape)


def mask_flatten_one(maps, keep=0.6):
    mass, order = maps.flatten(1).sort(-1, descending=True)
    inside = mass.cumsum(-1) - mass < keep * mass.sum(-1, keepdim=True)
    return torch.zeros_like(inside).scatter(-1, order, inside).view(maps.shape)


def mask_values(maps, keep=0.6):
    return maps * mask_loop(maps, keep)


# --- k-NN ----------------------------------------------------------------------------------------


def knn_loop(gallery, labels, queries, k=20, temperature=0.07):
    found = []
    for query in queries:
        cosine = F.cosine_similarity(query[None], gallery)
        votes = {}
        for i in cosine.argsort(descending=True)[:k].tolist():
            c = labels[i].item()
            votes[c] = votes.get(c, 0.0) + math.exp(cosine[i].item() / temperature)
        found.append(max(votes, key=votes.get))
    return found


def knn_numpy(gallery, labels, queries, k=20, temperature=0.07):
    gallery, labels, queries = gallery.numpy(), labels.numpy(), queries.numpy()
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosine = queries @ gallery.T
    index = np.argsort(-cosine, axis=1)[:, :k]
    near = np.take_along_axis(cosine, index, axis=1)
    weights = np.exp((near - near[:, :1]) / temperature)
    votes = np.zeros((len(queries), labels.max() + 1))
    for row, column, weight in zip(votes, labels[index], weights, strict=True):
        np.add.at(row, column, weight)
    return votes.argmax(1)


def knn_scatter(gallery, labels, queries, k=20, temperature=0.07):
    cosine = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    near, index = cosine.topk(k)
    votes = torch.zeros(len(queries), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[index], torch.exp(near / temperature))
    return votes.argmax(1).tolist()


def knn_majority(gallery, labels, queries, k=20, temperature=0.07):
    index = (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).topk(k).indices
    return labels[index].mode(1).values


def knn_distance(gallery, labels, queries, k=20, temperature=0.07):
    index = torch.cdist(queries, gallery).topk(k, largest=False).indices
    return labels[index].mode(1).values


def knn_cosine_votes(gallery, labels, queries, k=20, temperature=0.07):
    near, index = (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).topk(k)
    return (near[..., None] * F.one_hot(labels[index])).sum(1).argmax(1)


def knn_products(gallery, labels, queries, k=20, temperature=0.07):
    near, index = (queries @ gallery.T).topk(k)
    return (near.softmax(-1)[..., None] * F.one_hot(labels[index])).sum(1).argmax(1)


def knn_scatter_of(cosine, labels, k, temperature):
    near, index = cosine.topk(k)
    votes = torch.zeros(len(cosine), int(labels.max()) + 1)
    return votes.scatter_add(1, labels[index], (near / temperature).exp()).argmax(1)


def knn_products_scattered(gallery, labels, queries, k=20, temperature=0.07):
    return knn_scatter_of(queries @ gallery.T, labels, k, temperature)


def knn_gallery_raw_scattered(gallery, labels, queries, k=20, temperature=0.07):
    return knn_scatter_of(F.normalize(queries, dim=1) @ gallery.T, labels, k, temperature)


def knn_products_softmax(gallery, labels, queries, k=20, temperature=0.07):
    near, index = (queries @ gallery.T / temperature).topk(k)
    return (near.softmax(-1)[..., None] * F.one_hot(labels[index])).sum(1).argmax(1)


def knn_distance_weights(gallery, labels, queries, k=20, temperature=0.07):
    gallery, queries = F.normalize(gallery, dim=1), F.normalize(queries, dim=1)
    near, index = torch.cdist(queries, gallery).topk(k, largest=False)
    return ((-near / temperature).exp()[..., None] * F.one_hot(labels[index])).sum(1).argmax(1)


def knn_first_alone(gallery, labels, queries, k=20, temperature=0.07):
    return labels[(F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).argmax(1)]


def knn_fixed_temperature(gallery, labels, queries, k=20, temperature=0.07):
    return knn_scatter(gallery, labels, queries, k)


def knn_fixed_k(gallery, labels, queries, k=20, temperature=0.07):
    return knn_scatter(gallery, labels, queries, 20, temperature)


def knn_index(gallery, labels, queries, k=20, temperature=0.07):
    return (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).topk(k).indices[:, 0]


def knn_normalised_over_pictures(gallery, labels, queries, k=20, temperature=0.07):
    cosine = F.normalize(queries, dim=0) @ F.normalize(gallery, dim=0).T
    near, index = cosine.topk(k)
    return (near.div(temperature).exp()[..., None] * F.one_hot(labels[index])).sum(1).argmax(1)


# --- the closing exercises -----------------------------------------------------------------------


def entropy_loop(maps):
    found = torch.zeros(maps.shape[1])
    for picture in maps:
        for head, of in enumerate(picture):
            p = of[of > 0] / of.sum()
            found[head] += -(p * p.log()).sum() / len(maps)
    return found


def entropy_numpy(maps):
    maps = maps.numpy()
    maps /= maps.sum((2, 3), keepdims=True)
    return list(-(maps * np.log(np.maximum(maps, 1e-30))).sum((2, 3)).mean(0))


def entropy_of_zero(maps):
    p = maps / maps.sum((-2, -1), keepdim=True)
    return -(p * p.log()).sum((-2, -1)).mean(0)


def entropy_not_normalised(maps):
    return torch.special.entr(maps).sum((-2, -1)).mean(0)


def entropy_bits(maps):
    return entropy_loop(maps) / math.log(2)


def entropy_of_mean(maps):
    p = maps / maps.sum((-2, -1), keepdim=True)
    return torch.special.entr(p.mean(0)).sum((-2, -1))


def box_loop(mask, patch_size):
    places = [(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1]) if mask[r, c]]
    rows, cols = [r for r, _ in places], [c for _, c in places]
    top, left = min(rows), min(cols)
    return [
        top * patch_size,
        left * patch_size,
        (max(rows) - top + 1) * patch_size,
        (max(cols) - left + 1) * patch_size,
    ]


def box_tensor(mask, patch_size):
    rows, cols = mask.nonzero(as_tuple=True)
    low = torch.stack([rows.min(), cols.min()])
    high = torch.stack([rows.max(), cols.max()])
    return torch.cat([low, high - low + 1]) * patch_size


def box_reading_order(mask, patch_size):
    places = mask.nonzero()
    top, left = places[0].tolist()
    high = places.max(0).values.tolist()
    return [patch_size * v for v in (top, left, high[0] - top + 1, high[1] - left + 1)]


def box_first_and_last(mask, patch_size):
    (top, left), (bottom, end) = mask.nonzero()[0].tolist(), mask.nonzero()[-1].tolist()
    return [patch_size * v for v in (top, left, bottom - top + 1, end - left + 1)]


def box_first_left_true_right(mask, patch_size):
    places = mask.nonzero()
    left, width = places[0, 1].item(), (places[:, 1].max() - places[:, 1].min() + 1).item()
    top, height = places[0, 0].item(), (places[-1, 0] - places[0, 0] + 1).item()
    return [patch_size * v for v in (top, left, height, width)]


def box_area(mask, patch_size):
    return int(mask.sum()) * patch_size**2


def patch_row_reshape(matrix, row, col, grid, n_prefix):
    h, w = grid
    return matrix[:, n_prefix:, n_prefix:].reshape(-1, h, w, h, w)[:, row, col].numpy()


def patch_row_list(matrix, row, col, grid, n_prefix):
    of = matrix[:, -grid[0] * grid[1] :, -grid[0] * grid[1] :]
    return [head[row * grid[1] + col].view(*grid).tolist() for head in of]


def patch_row_column(matrix, row, col, grid, n_prefix):
    return matrix[:, n_prefix:, n_prefix + row * grid[1] + col].unflatten(-1, grid)


def patch_row_no_prefix(matrix, row, col, grid, n_prefix):
    return matrix[:, row * grid[1] + col, n_prefix:].unflatten(-1, grid)


def patch_row_by_columns(matrix, row, col, grid, n_prefix):
    of = matrix[:, n_prefix + row * grid[1] + col, n_prefix:]
    return of.reshape(len(of), grid[1], grid[0]).transpose(1, 2)


def patch_row_height(matrix, row, col, grid, n_prefix):
    return matrix[:, n_prefix + row * grid[0] + col, n_prefix:].unflatten(-1, grid)


def rollout_from_the_left(matrices):
    eye = torch.eye(matrices[0].shape[-1])
    row = eye[0]
    for matrix in reversed(matrices):
        row = row @ (0.5 * matrix.mean(0) + 0.5 * eye)
    return row


def rollout_in_place(matrices):
    steps = []
    for matrix in matrices:
        step = matrix.mean(0)
        step.fill_diagonal_(0).add_(torch.diag(matrix.mean(0).diagonal() + 1)).div_(2)
        steps.append(step)
    total = steps[-1]
    for step in steps[-2::-1]:
        total = total @ step
    return total[0].tolist()


def rollout_identity_after(matrices):
    total = identity = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = (matrix.mean(0) @ total + identity) / 2
    return total[0]


def rollout_wrong_order(matrices):
    eye = torch.eye(matrices[0].shape[-1])
    total = eye
    for matrix in matrices:
        total = total @ (matrix.mean(0) + eye) / 2
    return total[0]


def rollout_no_residual(matrices):
    total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = matrix.mean(0) @ total
    return total[0]


def rollout_no_brackets(matrices):
    eye = total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = matrix.mean(0) + eye / 2 @ total
    return total[0]


def rollout_elementwise(matrices):
    eye = total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = (matrix.mean(0) + eye) / 2 * total
    return total[0]


def rollout_last_block(matrices):
    return matrices[-1].mean(0)[0]


def rollout_ones(matrices):
    total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = (matrix.mean(0) + 1) / 2 @ total
    return total[0]


def component_eigh(tokens):
    d = tokens.shape[-1]
    rows = tokens.reshape(-1, d).double()
    rows -= rows.mean(0, keepdim=True)
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    along = rows @ vectors[:, -1]
    return (along if along[-1] < 0 else -along).reshape(tokens.shape[:-1])


def component_sklearn(tokens):
    n, h, w, d = tokens.shape
    along = PCA(1).fit_transform(tokens.reshape(-1, d).numpy())[:, 0]
    if along[-1] > 0:
        along *= -1
    return along.reshape(n, h, w).tolist()


def component_of_tokens_as_they_are(tokens):
    rows = tokens.flatten(0, 2)
    along = rows @ torch.linalg.svd(rows, full_matrices=False)[2][0]
    return -along[-1].sign() * along.view(tokens.shape[:3])


def component_any_sign(tokens):
    rows = tokens.flatten(0, 2) - tokens.mean((0, 1, 2))
    return (rows @ torch.linalg.svd(rows)[2][0]).view(tokens.shape[:3])


def component_of_u(tokens):
    rows = tokens.flatten(0, 2) - tokens.mean((0, 1, 2))
    along = torch.linalg.svd(rows, full_matrices=False)[0][:, 0]
    return -along[-1].sign() * along.view(tokens.shape[:3])


def component_of_each_picture(tokens):
    found = []
    for one in tokens:
        rows = one.flatten(0, 1) - one.mean((0, 1))
        along = rows @ torch.linalg.svd(rows, full_matrices=False)[2][0]
        found.append(-along[-1].sign() * along.view(one.shape[:2]))
    return torch.stack(found)


def component_of_each_picture_one_sign(tokens):
    along = []
    for rows in tokens.flatten(1, 2):
        rows = rows - rows.mean(0)
        along.append(rows @ torch.linalg.svd(rows, full_matrices=False)[2][0])
    along = torch.stack(along)
    return (-along[-1, -1].sign() * along).view(tokens.shape[:3])


def component_column(tokens):
    rows = tokens.flatten(0, 2) - tokens.mean((0, 1, 2))
    along = rows @ torch.linalg.svd(rows, full_matrices=False)[2][:, 0]
    return -along[-1].sign() * along.view(tokens.shape[:3])


STYLES = {
    "attention_row": [row_whole_matrix, row_einsum_in_place, row_lists],
    "mass_mask": [mask_loop, mask_normalised_in_place, mask_numbers],
    "knn": [knn_loop, knn_numpy, knn_scatter],
    "head_entropy": [entropy_loop, entropy_numpy],
    "mask_to_box": [box_loop, box_tensor],
    "patch_row": [patch_row_reshape, patch_row_list],
    "rollout": [rollout_from_the_left, rollout_in_place],
    "first_component": [component_eigh, component_sklearn],
}
WRONG = {
    "attention_row": {
        "no root": row_no_root,
        "softmax of the patches": row_patches_only,
        "one prefix token": row_one_prefix,
        "summed to one": row_sum_to_one,
        "mean of the heads": row_mean_of_heads,
        "sigmoid": row_sigmoid,
        "nothing": row_returns_nothing,
        "by columns": row_by_columns,
        "the width of the model": row_of_model_width,
    },
    "mass_mask": {
        "at most": mask_at_most,
        "quantile": mask_threshold,
        "not normalised": mask_not_normalised,
        "in order of size": mask_sorted_places,
        "share of the maximum": mask_of_the_max,
        "gathered back": mask_gathered_back_wrong,
        "values": mask_values,
        "all together": mask_all_together,
        "flatten(1)": mask_flatten_one,
        "all equal patches": mask_all_ties,
    },
    "knn": {
        "majority": knn_majority,
        "distance": knn_distance,
        "cosines vote": knn_cosine_votes,
        "products": knn_products,
        "products, scattered": knn_products_scattered,
        "a raw gallery, scattered": knn_gallery_raw_scattered,
        "products, softmax": knn_products_softmax,
        "weights of distances": knn_distance_weights,
        "nearest alone": knn_first_alone,
        "temperature 0.07": knn_fixed_temperature,
        "k 20": knn_fixed_k,
        "index": knn_index,
        "over the pictures": knn_normalised_over_pictures,
    },
    "head_entropy": {
        "log of 0": entropy_of_zero,
        "not normalised": entropy_not_normalised,
        "bits": entropy_bits,
        "of the mean": entropy_of_mean,
    },
    "mask_to_box": {
        "first True in reading order": box_reading_order,
        "first and last True": box_first_and_last,
        "first True, right width": box_first_left_true_right,
        "area": box_area,
    },
    "patch_row": {
        "column": patch_row_column,
        "no prefix": patch_row_no_prefix,
        "height of the grid": patch_row_height,
        "by columns": patch_row_by_columns,
        "exchanged": lambda m, r, c, g, n: m[:, n + c * g[1] + r, n:].unflatten(-1, tuple(g)),
    },
    "rollout": {
        "wrong order": rollout_wrong_order,
        "no residual": rollout_no_residual,
        "ones for the identity": rollout_ones,
        "no brackets": rollout_no_brackets,
        "entry by entry": rollout_elementwise,
        "the last block's row": rollout_last_block,
        "identity after the product": rollout_identity_after,
    },
    "first_component": {
        "not centred": component_of_tokens_as_they_are,
        "any sign": component_any_sign,
        "U": component_of_u,
        "each picture": component_of_each_picture,
        "each picture, one sign": component_of_each_picture_one_sign,
        "column": component_column,
    },
}
EQUIVALENT = {
    "attention_row": [
        "k.transpose(-1, -2)",
        "k.transpose(2, -1)",
        "q[:, :, :2]",  # a row more, which nobody reads
        "softmax(-1)[:, :, -1]",  # there is one row
    ],
    "mass_mask": ["flat.sort(descending=True)"],  # the last axis is the default
    "head_entropy": ["maps.sum((2, -1)", "entr(p).sum((2, -1))"],
    "knn": [
        "F.normalize(gallery)",  # the last axis is its default for (N, D)
        "F.normalize(queries)",
        "normalize(gallery, dim=1)",
        "normalize(queries, dim=1)",
        "argmax(1)",
        "votes.mean(1)",  # the votes divided by k
    ],
    "mask_to_box": [".nonzero()[:, -1]"],  # of (n, 1) the same column
    "patch_row": ["unflatten(1,"],
    "first_component": ["svd(rows)[2]", "full_matrices=True"],  # the same rows, and more
    "rollout": [  # every matrix is a square of the same size
        "matrices[0].shape[-2]",
        "matrices[0].shape[1]",
        "matrices[-1].shape[-1]",
        "matrices[1].shape[-1]",
    ],
}
