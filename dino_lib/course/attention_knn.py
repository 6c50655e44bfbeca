"""The self-check of notebook 06's k-NN classifier."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course.check import Case, check, on
from dino_lib.measure.knn import knn_predict


def knn(yours: Callable) -> Callable:
    """`yours(gallery, labels, queries, k=20, temperature=0.07)`: a class for each query."""

    def finished(gallery, labels, queries, k=20, temperature=0.07):
        return knn_predict(gallery, labels, queries, k=k, temperature=temperature)

    def votes(gallery, labels, queries, k=20, temperature=0.07,
              unit=lambda x: F.normalize(x, dim=-1),
              weight=lambda cosine, t: (cosine / t).exp(), largest=True, choose=Tensor.argmax):
        similar = unit(queries) @ unit(gallery).T
        cosine, index = similar.topk(k, largest=largest)
        count = weight(cosine, temperature)[..., None] * F.one_hot(labels[index])
        return choose(count.sum(1), -1)

    def wrong(**changed):
        return lambda *a, **k: votes(*a, **k, **changed)

    cases = [_labelled(60, 400, 5), _labelled(30, 80, 3, k=5, temperature=1.0),
             _labelled(60, 300, 4, temperature=1.0), _labelled(50, 80, 6, k=1),
             _labelled(25, 40, 3, k=25, temperature=0.02)]
    return check("knn", yours, finished, cases, {
        "every neighbour has one vote; the nearer ones should count for more: exp(cosine / t)":
            wrong(weight=lambda cosine, t: torch.ones_like(cosine)),
        "the weight is exp(cosine / t), not the cosine": wrong(weight=lambda cosine, t: cosine),
        "the weight is exp(cosine / t), not cosine / t": wrong(
            weight=lambda cosine, t: cosine / t + 0 * t),
        "divide the cosine by the temperature, don't multiply":
            wrong(weight=lambda cosine, t: (cosine * t).exp()),
        "the temperature is missing": wrong(weight=lambda cosine, t: cosine.exp()),
        "`temperature` is an argument: 0.07 is only its default":
            wrong(weight=lambda cosine, t: (cosine / 0.07).exp()),
        "near neighbours should count for more, not for less":
            wrong(weight=lambda cosine, t: (-cosine / t).exp()),
        "both have to be normalised: these are products, not cosines": wrong(unit=lambda x: x),
        "the gallery has to be normalised: a long feature is not a near one":
            lambda g, labels, q, k=20, temperature=0.07: votes(
                g, labels, F.normalize(q, dim=-1), k, temperature, unit=lambda x: x),
        "the queries have to be normalised: their length changes the weights":
            lambda g, labels, q, k=20, temperature=0.07: votes(
                F.normalize(g, dim=-1), labels, q, k, temperature, unit=lambda x: x),
        "normalise along the features, the last axis": wrong(unit=lambda x: F.normalize(x, dim=0)),
        "these are the least similar ones": wrong(largest=False),
        "that is the class of the nearest alone": lambda g, labels, q, k=20, temperature=0.07:
            finished(g, labels, q, k=1),
        "`k` is an argument: 20 is only its default": lambda g, labels, q, k=20, temperature=0.07:
            finished(g, labels, q, k=min(20, len(g)), temperature=temperature),
        "all of the gallery votes; only the k nearest should":
            lambda g, labels, q, k=20, temperature=0.07:
                finished(g, labels, q, k=len(g), temperature=temperature),
        "that is the class with the fewest votes": wrong(choose=Tensor.argmin),
        "that is the number of the nearest, not its class":
            lambda g, labels, q, k=20, temperature=0.07:
                (F.normalize(q, dim=-1) @ F.normalize(g, dim=-1).T).argmax(-1),
        "one neighbour too many: k, and the query is not in the gallery":
            lambda g, labels, q, k=20, temperature=0.07:
                finished(g, labels, q, k=min(k + 1, len(g)), temperature=temperature),
        "these are twice the neighbours": lambda g, labels, q, k=20, temperature=0.07:
            finished(g, labels, q, k=min(2 * k, len(g)), temperature=temperature),
        "the nearest is left out; a query is not in the gallery":
            lambda g, labels, q, k=20, temperature=0.07: votes(
                g, labels, q, min(k + 1, len(g)), temperature,
                weight=lambda c, t: (c / t).exp() * (torch.arange(c.shape[1]) > 0)),
        "the sum of the votes goes over the neighbours": wrong(
            choose=lambda count, dim: torch.zeros(len(count), dtype=torch.long)),
        "the votes of a class are added up, not averaged": lambda g, labels, q, k=20,
            temperature=0.07: _mean_votes(g, labels, q, k, temperature),
        "the weight is exp(cosine / t), not its logarithm": wrong(
            weight=lambda cosine, t: (cosine / t).log()),
        "normalise the gallery along the features, the last axis":
            lambda g, labels, q, k=20, temperature=0.07: votes(
                F.normalize(g, dim=0), labels, F.normalize(q, dim=-1), k, temperature, lambda x: x),
        "normalise the queries along the features, the last axis":
            lambda g, labels, q, k=20, temperature=0.07: votes(
                F.normalize(g, dim=-1), labels, F.normalize(q, dim=0), k, temperature, lambda x: x),
        "the exponent is doubled": wrong(weight=lambda cosine, t: (2 * cosine / t).exp()),
    } | _unnormalised(votes), counted="queries get another class")


def _unnormalised(votes: Callable) -> dict[str, Callable]:
    """Hints for features as they are, or distances, in the forms that votes take."""

    def softmax(cosine, t):
        return (cosine / t).softmax(-1)

    def scattered(g, labels, q, k, t):
        product, index = (q @ g.T).topk(k)
        count = torch.zeros(len(q), int(labels.max()) + 1)
        return count.scatter_add(1, labels[index], (product / t).exp()).argmax(1)

    def near(g, labels, q, k, weight):
        distance, index = torch.cdist(q, g).topk(k, largest=False)
        return (weight(distance)[..., None] * F.one_hot(labels[index])).sum(1).argmax(-1)

    def unit(x):
        return F.normalize(x, dim=-1)

    found = {}
    for what, of_gallery, of_queries in [
            ("neither is: the products are no cosines", Tensor.clone, Tensor.clone),
            ("the gallery is not: a long feature is not a near one", Tensor.clone, unit),
            ("the queries are not: their length changes the weights", unit, Tensor.clone)]:
        def exp_(g, labels, q, k=20, temperature=0.07, a=of_gallery, b=of_queries):
            return scattered(a(g), labels, b(q), k, temperature)

        def soft(g, labels, q, k=20, temperature=0.07, a=of_gallery, b=of_queries):
            return votes(a(g), labels, b(q), k, temperature, unit=Tensor.clone, weight=softmax)

        found |= {f"normalise both; here {what}": exp_, f"both have to be normalised; {what}": soft}
    return found | {
        "the nearest in angle vote (cosines), not the nearest in distance":
            lambda g, labels, q, k=20, temperature=0.07: near(g, labels, q, k, torch.ones_like),
        "the nearest in angle vote (cosines), not the nearest in distance; the weight is "
        "exp(cosine / t)": lambda g, labels, q, k=20, temperature=0.07: near(
            g, labels, q, k, lambda d: (-d / temperature).softmax(-1)),
        "the weight is exp(cosine / t), not exp(-distance / t)":
            lambda g, labels, q, k=20, temperature=0.07: near(
                unit(g), labels, unit(q), k, lambda d: (-d / temperature).softmax(-1)),
    }


def _mean_votes(gallery, labels, queries, k, temperature):
    cosine, index = (F.normalize(queries, dim=-1) @ F.normalize(gallery, dim=-1).T).topk(k)
    one_hot = F.one_hot(labels[index]).float()
    count = ((cosine / temperature).exp()[..., None] * one_hot).sum(1)
    return (count / one_hot.sum(1).clamp(min=1)).argmax(-1)


def _labelled(n: int, m: int, classes: int, **options: float) -> Case:
    """A gallery of n features of any length around the classes' directions, and m queries."""
    generator = torch.Generator().manual_seed(n + classes)
    centers = torch.randn(classes, 6, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    gallery = centers[labels] + 2 * torch.randn(n, 6, generator=generator)
    gallery = gallery * (3 * torch.rand(n, 1, generator=generator)).exp()
    queries = torch.randn(m, 6, generator=generator)
    queries = queries * (3 * torch.rand(m, 1, generator=generator)).exp() / 4
    return on(gallery, 2 * labels + 1, queries, **options)
