"""The self-checks of notebook 01, second part: which views there are, and which of them meet."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dino_lib.course import one_image as finished
from dino_lib.course.check import Case, Mistake, check


def views(yours: Callable) -> Callable:
    """`yours(image, first, second, local, n_local)` -> 2 + n_local views, the global ones first."""
    right = finished.views
    return check("views", yours, right, [_listed(4), _listed(0), _listed(1), _listed(7)], {
        "one local view is repeated: `local` has to be called anew for each, or all are alike":
            lambda x, a, b, c, n: [a(x), b(x)] + [c(x)] * n,
        "the local views come first: the teacher takes views 0 and 1, the global ones":
            lambda *z: (lambda v: v[2:] + v[:2])(right(*z)),
        "the two global views are exchanged: `first` makes view 0":
            lambda x, a, b, c, n: right(x, b, a, c, n),
        "both global views come from `first`": lambda x, a, b, c, n: right(x, a, a, c, n),
        "both global views come from `second`": lambda x, a, b, c, n: right(x, b, b, c, n),
        "the two global views are one and the same":
            lambda x, a, b, c, n: (lambda v: [v, v] + [c(x) for _ in range(n)])(a(x)),
        "n_local counts the local views alone; the two global ones come on top":
            lambda x, a, b, c, n: right(x, a, b, c, max(n - 2, 0)),
        "there is one local view too many: n_local of them":
            lambda x, a, b, c, n: right(x, a, b, c, n + 1),
        "there is one local view too few: n_local of them":
            lambda x, a, b, c, n: right(x, a, b, c, max(n - 1, 0)),
        "the local views come from `first`: they have a recipe of their own":
            lambda x, a, b, c, n: [a(x), b(x)] + [a(x) for _ in range(n)],
        "the local views come from `second`: they have a recipe of their own":
            lambda x, a, b, c, n: [a(x), b(x)] + [b(x) for _ in range(n)],
        "the local views are cut from a global view: every view starts from the whole image":
            lambda x, a, b, c, n: (lambda v: [v, b(x)] + [c(v) for _ in range(n)])(a(x)),
        "the second view is made of the first: every view starts from the whole image":
            lambda x, a, b, c, n: (lambda v: [v, b(v)] + [c(x) for _ in range(n)])(a(x)),
        "the global views are missing": lambda x, a, b, c, n: [c(x) for _ in range(n)],
        "the second global view is missing":
            lambda x, a, b, c, n: [a(x)] + [c(x) for _ in range(n)],
        "the local views are missing": lambda x, a, b, c, n: [a(x), b(x)],
        "`first` makes the local views, and `local` a global one":
            lambda x, a, b, c, n: right(x, c, b, a, n),
        "`second` makes the local views, and `local` a global one":
            lambda x, a, b, c, n: right(x, a, c, b, n),
    })


def _listed(n_local: int) -> Case:
    """What each view was made of and by which call of its recipe. A view of a view counts on from
    that view, so that one can tell it from a view of the image.
    """

    def case(piece: Callable) -> list[Tensor]:
        calls = []

        def recipe(name: str, code: float) -> Callable:
            def make(x: Tensor) -> Tensor:
                calls.append(name)
                view = torch.tensor([code, x.flatten()[0].item() + code, calls.count(name)])
                return view[:, None].expand(3, 2 if name == "local" else 4)  # locals are smaller

            return make

        makers = recipe("first", 1.0), recipe("second", 2.0), recipe("local", 3.0)
        found = piece(torch.full((3, 8, 8), 0.5), *makers, n_local)
        if isinstance(found, Iterator):
            raise Mistake("return a list: a generator makes its views only when they are looked at")
        if isinstance(found, tuple | list) and any(callable(view) for view in found):
            raise Mistake("these are the recipes, not views: call each of them on the image")
        if isinstance(found, tuple | list) and any(isinstance(v, tuple | list) for v in found):
            raise Mistake("one list of 2 + n_local views is asked for; here is a list in a list")
        order = ["first", "second", *["local"] * n_local]
        if sorted(calls) == sorted(order) and calls != order:
            raise Mistake("call `first`, then `second`, then `local`, and give their views in this "
                          "order: all draw from one generator")
        return found if found is None else list(found)

    return case


def pairs(yours: Callable) -> Callable:
    """`yours(n_views)` -> (teacher's view, student's view) of each term of the loss, any order."""

    def grid(teachers: Callable, students: Callable, keep: Callable = lambda i, v: i != v):
        return lambda n: [(i, v) for i in teachers(n) for v in students(n) if keep(i, v)]

    def two(n: int) -> range:
        return range(2)

    return check("pairs", yours, finished.pairs, [_table(n) for n in (8, 2, 3, 6)], {
        "a view is paired with itself: there is nothing to predict in it":
            grid(two, range, lambda i, v: True),
        "only the first view's pair with itself is left out; (1, 1) is one too":
            grid(two, range, lambda i, v: (i, v) != (0, 0)),
        "local views appear as the teacher's, and the teacher sees the two global views only":
            grid(range, range),
        "the teacher sees two views, 0 and 1": grid(lambda n: range(3), range),
        "the teacher sees two views, and here it sees four": grid(lambda n: range(4), range),
        "the teacher sees both global views, 0 and 1; one of them is missing":
            grid(lambda n: [0], range),
        "views are counted from 0: the teacher's are 0 and 1":
            grid(lambda n: [1, 2][: n - 1], range),
        "global views are missing on the student's side: it sees all views":
            grid(two, lambda n: range(2, n)),
        "teacher and student are exchanged: each pair is (teacher's view, student's view)":
            grid(range, two),
        "(0, 1) and (1, 0) are two pairs, and one of them is missing":
            grid(two, range, lambda i, v: i < v),
        "view 0 is never the student's: it sees all views": grid(two, lambda n: range(1, n)),
        "the last view is missing: range(n_views) already ends before n_views":
            grid(two, lambda n: range(n - 1)),
        "only the pairs of a view with itself are here; they are the ones to leave out":
            grid(two, range, lambda i, v: i == v),
        "some pairs are there twice": lambda n: finished.pairs(n) * 2,
        "a view has a number outside 0 ... n_views - 1": lambda n: [(-1, -1)],
    })


def _table(n: int) -> Case:
    """(n, n): how often teacher's view i meets student's view v; -1 if there is no such view."""

    def case(piece: Callable) -> Tensor | None:
        found = piece(n)
        if found is None:
            return None
        if isinstance(found, Iterator):
            raise Mistake("return a list: a generator has no length, and is used up after one look")
        table = torch.zeros(n, n)
        for i, v in found:
            if not (0 <= int(i) < n and 0 <= int(v) < n):
                return torch.zeros(n, n) - 1
            table[int(i), int(v)] += 1
        return table

    return case
