"""The self-checks of notebook 03: the loss."""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dino_lib.course.check import Case, Mistake, check, on
from dino_lib.course.loss_hints import CENTER_AFTER, GRADIENT, GROUPS, TWO_ENTROPIES
from dino_lib.course.loss_mistakes import CROSS_ENTROPY, ENTROPY, LOSS, PAIRS, UPDATE_CENTER
from dino_lib.loss import DINOLoss


def _shares(*shape: int, seed: int = 0) -> Tensor:
    """Rows that sum to one, the first of them sure: 0 ln 0 counts 0."""
    generator = torch.Generator().manual_seed(seed)
    shares = (3 * torch.randn(*shape, generator=generator)).softmax(-1)
    first = shares.view(-1, shape[-1])[0]
    first.zero_()[shape[-1] // 2] = 1.0
    return shares


def _normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def entropy(yours: Callable) -> Callable:
    """`yours(p)`: the entropies in nats of distributions (..., K)."""
    cases = [_without_k(_shares(5, 4)), _without_k(_shares(2, 3, 6, seed=1)),
             _without_k(torch.full((7,), 1 / 7))]
    return check("entropy", yours, _entropy, cases, ENTROPY)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def cross_entropy(yours: Callable) -> Callable:
    """`yours(q, log_p)`: -sum_k q_k ln p_k along the last dimension."""
    cases = [_without_k(_shares(*shape), _normal(*shape).log_softmax(-1))
             for shape in [(5, 4), (2, 3, 6), (7,)]]
    return check("cross_entropy", yours, _cross_entropy, cases, CROSS_ENTROPY, rule=_with_gradient)


def _without_k(*inputs: Tensor) -> Case:
    """One number a row: (..., K) -> (...), as the notebook prints them."""

    def case(piece: Callable) -> object:
        found = on(*inputs)(piece)
        if torch.is_tensor(found) and found.shape == (*inputs[0].shape[:-1], 1):
            raise Mistake("the last dimension is still there, with length 1: sum it away, without "
                          "keepdim")
        return found

    return case


def _cross_entropy(q: Tensor, log_p: Tensor) -> Tensor:
    return -(q * log_p).sum(dim=-1)


def _with_gradient(yours: Callable) -> str | None:
    """Whether a gradient gets through to the student: the loss is trained with it."""
    log_p = torch.zeros(2, 3, requires_grad=True)
    try:
        yours(torch.ones(2, 3) / 3, log_p).sum().backward()
    except (RuntimeError, AttributeError) as error:
        if "in-place" in str(error):
            return "the numbers are right, but log_p is changed in place: make a new tensor"
        log_p.grad = None
    if log_p.grad is None:
        return "the numbers are right, but no gradient reaches log_p: stay in torch, no detach"
    return None


def update_center(yours: Callable) -> Callable:
    """`yours(center, teacher, momentum=0.9)`: the new center (K,), without a gradient."""
    cases = [_moved(), _moved(0.75), _moved(0.0), _moved(1.0), _moved(rows=(2, 1, 3))]
    return check("update_center", yours, finished_center, cases, UPDATE_CENTER)


def finished_center(center: Tensor, teacher: Tensor, momentum: float = 0.9) -> Tensor:
    """center (K,), teacher (2, B, K) logits -> the new center (K,)."""
    loss = DINOLoss(len(center), center_momentum=momentum)
    loss.center += center
    loss.update_center(teacher)
    return loss.center.clone()


def _moved(*momentum: float, rows: Sequence[int] = (2, 5, 4)) -> Case:
    """The center after one batch and after another, whether it hangs on a graph, and the teacher's
    rows afterwards. The notebook goes on with a tensor of shape (K,).
    """

    def case(piece: Callable) -> tuple | None:
        first, second = (_normal(*rows, seed=s).requires_grad_() * 2 + 1 for s in (2, 3))
        center = piece(_normal(rows[-1], seed=4), first, *momentum)
        if center is None:
            return None
        if not torch.is_tensor(center):
            raise Mistake(f"return the center as a tensor, not as a {type(center).__name__}")
        if center.shape != rows[-1:]:
            raise Mistake(f"the center has shape {tuple(center.shape)}, not (K,) = {rows[-1:]}: "
                          "take the mean over both views and images, dim=(0, 1)")
        again = piece(center.detach().clone(), second, *momentum)
        return center, again, float(center.requires_grad), first.detach()

    return case


def view_pairs(yours: Callable) -> Callable:
    """`yours(n_views)`: the pairs (teacher's view, student's view), in any order."""
    return check("view_pairs", yours, _view_pairs, [_sorted(n) for n in (6, 2, 3, 10)], PAIRS)


def _view_pairs(n_views: int) -> list[tuple[int, int]]:
    return [(i, v) for i in range(2) for v in range(n_views) if v != i]


def _sorted(n_views: int) -> Case:
    """The pairs in order: the loss takes their mean."""

    def case(piece: Callable) -> list | None:
        found = piece(n_views)
        if found is None or isinstance(found, int | float):
            return found
        if not hasattr(found, "__len__"):
            raise Mistake("return a list: a generator is used up after one reading")
        return torch.tensor(sorted(tuple(int(x) for x in pair) for pair in found))

    return case


def dino_loss(yours: Callable) -> Callable:
    """`yours(student, teacher, center, student_temp=0.1, teacher_temp=0.04)`: the mean over the
    pairs; its gradients are compared too.
    """
    return check("dino_loss", yours, finished_loss, LOSS_CASES, LOSS)


def finished_loss(student: Tensor, teacher: Tensor, center: Tensor,
                  student_temp: float = 0.1, teacher_temp: float = 0.04) -> Tensor:
    """student (V, B, K), teacher (2, B, K), center (K,) -> the mean over the pairs of views."""
    loss = DINOLoss(len(center), student_temp=student_temp).eval()
    loss.center += center
    return loss(student, teacher, teacher_temp)


def _valued(n_views: int, batch: int, k: int, *temperatures: float, scale: float = 1.0) -> Case:
    """The loss, the gradients of the student's and the teacher's logits, and whether the teacher's
    logits or the center have changed: the center's update needs both.
    """

    def case(piece: Callable) -> tuple | None:
        leaves = [(scale * _normal(v, batch, k, seed=v)).requires_grad_() for v in (n_views, 2)]
        leaves[1] = (0.9 * leaves[1].detach().flip(1)).requires_grad_()
        student, teacher = (leaf * 1 for leaf in leaves)
        before = scale * _normal(k, seed=9)
        center = before.clone()
        value = piece(student, teacher, center, *temperatures)
        if value is None or (torch.is_tensor(value) and value.numel() != 1):
            return value
        if torch.is_tensor(value) and value.ndim:
            raise Mistake(f"the loss is one number, of shape (), not {tuple(value.shape)}")
        if not torch.as_tensor(value).detach().isfinite().all():
            raise Mistake("the loss is not finite where logits are large: a share can be too small "
                          "for a float; log_softmax and logsumexp are exact there")
        if torch.is_tensor(value) and value.requires_grad:
            value.sum().backward()
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        ruined = not torch.equal(teacher, leaves[1]), not torch.equal(center, before)
        return value, *gradients, *ruined

    return case


LOSS_CASES = [_valued(5, 3, 8, 0.5, 0.3), _valued(2, 4, 6, 0.4, 0.7), _valued(6, 3, 8, scale=0.25),
              _valued(4, 1, 5, 1.0, 0.5), _valued(3, 4, 6, 0.5, 0.4, scale=60.0)]


def two_entropies(yours: Callable) -> Callable:
    """`yours(probs)`: (mean entropy of the rows, entropy of the mean row) of probs (2, B, K)."""
    cases = [on(_shares(2, 6, 8)), on(_shares(2, 3, 5, seed=5)), on(_shares(2, 1, 4, seed=6))]
    return check("two_entropies", yours, _two_entropies, cases, TWO_ENTROPIES)


def _two_entropies(probs: Tensor) -> tuple[Tensor, Tensor]:
    rows = probs.flatten(0, 1)
    return _entropy(rows).mean(), _entropy(rows.mean(dim=0))


def groups_told_apart(yours: Callable) -> Callable:
    """`yours(of_one_image, of_the_mean)`: e to the power of the gap, of two numbers in nats."""
    cases = [on(0.5, 2.0), on(0.0, math.log(8)), on(1.3, 1.3)]
    return check("groups_told_apart", yours, lambda one, mean: math.exp(mean - one), cases, GROUPS)


def center_after(yours: Callable) -> Callable:
    """`yours(batch_mean, momentum, n_steps)`: where the center stands after n equal batches."""
    mean = torch.tensor([2.0, -1.0, 0.5, 4.0])
    cases = [on(mean, 0.8, 3), on(mean, 0.9, 1), on(-mean[:3], 0.5, 6), on(mean, 0.0, 2)]
    return check("center_after", yours, _center_after, cases, CENTER_AFTER, rule=_without_loop,
                 used=False)


def _center_after(batch_mean: Tensor, momentum: float, n_steps: int) -> Tensor:
    return (1 - momentum**n_steps) * batch_mean


def student_gradient(yours: Callable) -> Callable:
    """`yours(s, q, student_temp)`: d/ds of the batch mean of -sum q log softmax(s / student_temp);
    s, q (B, K).
    """
    cases = [on(2 * _normal(b, k, seed=b), (2 * _normal(b, k)).softmax(-1), temp)
             for b, k, temp in [(5, 6, 0.4), (3, 4, 0.1), (1, 7, 2.0)]]
    return check("student_gradient", yours, _gradient, cases, GRADIENT, tolerance=1e-4,
                 rule=_without_autograd, used=False)


def _gradient(s: Tensor, q: Tensor, student_temp: float) -> Tensor:
    return ((s / student_temp).softmax(-1) - q) / student_temp / len(s)


def _without_autograd(yours: Callable) -> str | None:
    """Whether it still works where autograd is switched off for good."""
    with torch.inference_mode():
        try:
            yours(torch.ones(2, 3), torch.ones(2, 3) / 3, 0.5)
        except RuntimeError:
            return "the numbers are right, but autograd found them: this one is for pen and paper"
    return None


def fast_loss(yours: Callable) -> Callable:
    """`yours(student, teacher, center, student_temp, teacher_temp)`: dino_loss with no loop over
    views or pairs, and without log_softmax.
    """
    cases = [*LOSS_CASES[:2], *LOSS_CASES[3:]]  # all with temperatures: no defaults
    return check("fast_loss", yours, finished_loss, cases, LOSS, rule=_without_loop, used=False)


def _without_loop(yours: Callable) -> str | None:
    """Whether the source has a loop, or what the exercise does without."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(yours)))
    except (OSError, SyntaxError):
        return None
    loops = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)
    for node in ast.walk(tree):
        name = getattr(node, "attr", getattr(node, "id", ""))
        if isinstance(node, loops) or name in ("log_softmax", "cross_entropy", "dino_loss"):
            return f"the numbers are right, but {name or 'a loop'} is in it; here you do without"
    return None
