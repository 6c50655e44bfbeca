"""The short run of notebook 02: a look at its teacher changes nothing."""

from dino_lib import DINOHead, Shapes
from dino_lib.course.short_run import short_run


def head(width):
    return DINOHead(width, 16, hidden_dim=32, bottleneck_dim=16, use_bn=True)


def test_a_run_that_is_looked_at_more_often_ends_where_the_other_does():
    pictures, queries = Shapes(64), Shapes(40, seed=1)
    rare, often = (
        short_run(head, pictures, queries, updates=6, every=every) for every in (6, 2)
    )
    assert [line["update"] for line in often] == [0, 2, 4, 6]
    assert rare == [often[0], often[-1]]
