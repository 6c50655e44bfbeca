"""The self-checks of notebook 05: training."""

import math
from collections.abc import Callable

import numpy as np
import torch

from dino_lib.course.verdict import verdict
from dino_lib.loss import DINOLoss, teacher_entropies
from dino_lib.schedules import cosine_schedule, half_life
from dino_lib.teacher import ema_update


def check_plan_run(your_function: Callable) -> None:
    """your_function(n_images, batch_size, epochs, momentum) -> (updates, half-life, half-lives in
    the run).
    """
    n, batch, epochs, m = 1000, 300, 7, 0.97
    updates, life = n // batch * epochs, half_life(m)

    def plan(updates, life=life):
        return updates, life, updates / life

    verdict(
        "plan_run",
        your_function(n, batch, epochs, m),
        plan(updates),
        {
            "the incomplete batch is dropped in every epoch, not once at the end of the run": plan(
                n * epochs // batch
            ),
            "the incomplete batch counts as an update; it is dropped": plan(
                math.ceil(n / batch) * epochs
            ),
            "a fraction of a batch counts as a fraction of an update; it is dropped": plan(
                n / batch * epochs
            ),
            "these are the updates of one epoch, not of the run": plan(n // batch),
            "these are images, not updates: each update uses a whole batch": plan(n * epochs),
            "the number of half-lives is a fraction: do not round it": (
                updates,
                life,
                round(updates / life),
            ),
            "the number of half-lives is a fraction: do not cut it off": (
                updates,
                life,
                updates // life,
            ),
            "1 / (1 - m) is the mean age of what the teacher holds, not the half-life": plan(
                updates, 1 / (1 - m)
            ),
            "that is the time until a weight counts 1/e, not one half": plan(
                updates, -1 / math.log(m)
            ),
            "the half-life has the wrong sign: both logarithms are negative": plan(updates, -life),
            "the last one is turned round: updates of the run by updates of a half-life": (
                updates,
                life,
                life / updates,
            ),
            "the order is (updates, half-life, half-lives in the run)": (
                life,
                updates,
                updates / life,
            ),
        },
    )


def check_initial_share(your_function: Callable) -> None:
    """your_function(momenta), an array with the momentum of each update -> the weight of the
    teacher's start.
    """
    momenta = cosine_schedule(0.5, 1.0, 12)
    teacher, student = (torch.nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2))
    torch.nn.init.ones_(teacher.weight)
    torch.nn.init.zeros_(student.weight)
    for m in momenta:
        ema_update(teacher, student, float(m))
    right = teacher.weight.item()
    verdict(
        "initial_share",
        your_function(momenta.copy()),
        right,
        {
            "that is the share of what has been learned since; the start has the rest": 1 - right,
            "1 - m is the student's share at each update": np.prod(1 - momenta),
            "the momentum changes: its first value does not hold for all updates": momenta[0]
            ** len(momenta),
            "the momentum changes: its last value does not hold for all updates": momenta[-1]
            ** len(momenta),
            "the mean momentum is not enough: the product of different numbers is less than "
            "that": momenta.mean() ** 12,
            "the shares of the updates multiply; that is their mean": momenta.mean(),
            "the last update is missing": np.prod(momenta[:-1]),
            "that is the logarithm of the share": math.log(right),
        },
    )


def check_split_loss(your_function: Callable) -> None:
    """your_function(student, teacher, center, student_temp, teacher_temp) -> (entropy,
    divergence), batch means.
    """
    generator, hot, cold = torch.Generator().manual_seed(5), 0.7, 0.4
    student, teacher = (torch.randn(6, 9, generator=generator) for _ in range(2))
    center = torch.randn(9, generator=generator)

    def split(hot=hot, cold=cold, center=center):
        loss = DINOLoss(9, student_temp=hot).eval()
        loss.center += center
        both = teacher.expand(2, 6, 9)
        entropy = teacher_entropies(loss.teacher_probs(both, cold))[0]
        return entropy, loss(student.expand(2, 6, 9), both, cold).item() - entropy

    entropy, divergence = split()
    p, q = torch.softmax(student / hot, dim=-1), torch.softmax((teacher - center) / cold, dim=-1)
    backward = (p * (p / q).log()).sum(-1).mean().item()
    of_student = torch.special.entr(p).sum(-1).mean().item()
    verdict(
        "split_loss",
        your_function(student.clone(), teacher.clone(), center.clone(), hot, cold),
        (entropy, divergence),
        {
            "the center is not subtracted from the teacher's logits": split(center=0.0),
            "the center is added, not subtracted": split(center=-center),
            "the two temperatures are swapped": split(cold, hot),
            "the student's logits lack their temperature": split(hot=1.0),
            "the teacher's logits lack their temperature": split(cold=1.0),
            "the divergence goes the wrong way: the teacher's probabilities are the weights": (
                entropy,
                backward,
            ),
            "the second is the whole loss; the divergence is what the entropy leaves of it": (
                entropy,
                entropy + divergence,
            ),
            "the first is the whole loss, not the teacher's entropy": (
                entropy + divergence,
                divergence,
            ),
            "the first is the student's entropy, not the teacher's": (of_student, divergence),
            "take the entropy of each row and then the mean, not the entropy of the mean row": (
                torch.special.entr(q.mean(0)).sum().item(),
                divergence,
            ),
            "an entropy has a minus sign in front": (-entropy, divergence),
            "the divergence has the wrong sign: it is never negative": (entropy, -divergence),
            "both are means over the batch, not sums": (6 * entropy, 6 * divergence),
            "sum over the prototypes: the mean is over the batch alone": (
                entropy / 9,
                divergence / 9,
            ),
            "the order is (entropy, divergence)": (divergence, entropy),
            "these are bits: take the natural logarithm": (
                entropy / math.log(2),
                divergence / math.log(2),
            ),
        },
        tolerance=1e-4,
    )


def check_diagnose(your_function: Callable) -> None:
    """your_function(history, out_dim) -> "uniform", "one prototype", "same for all" or
    "healthy".
    """
    words, k = ("uniform", "one prototype", "same for all", "healthy"), 64
    noise, same = (
        torch.randn(2, 16, k, generator=torch.Generator().manual_seed(6)),
        torch.zeros(2, 16, k),
    )
    same[..., 3] = 30
    apart = 30 * torch.eye(k)[:32].view(2, 16, k)  # each row sure of a prototype of its own
    shared = 0.1 * noise + 30 * (torch.arange(k) < 8)  # every row the same eight prototypes

    def line(step, logits, loss):
        rows, mean = teacher_entropies(torch.softmax(logits, dim=-1))
        return {"step": step, "loss": loss, "teacher_entropy": rows, "mean_entropy": mean}

    evaluation = {"step": 20, "knn": 0.5}
    histories = [
        [line(10, noise, 3.0), line(20, last, loss), evaluation]
        for last, loss in [
            (0.01 * noise, 4.15),
            (same, 0.01),
            (2 * noise, 3.5),
            (apart, 0.2),
            (2 * noise, 4.1),
            (noise, 3.9),
            (shared, 2.1),
        ]
    ]
    histories.append([line(10, same, 0.01), line(20, 2 * noise, 3.5), evaluation])
    histories.append([line(10, 0.01 * noise, 4.15), line(20, same, 0.01), evaluation])

    def verdicts(
        row="teacher_entropy", batch="mean_entropy", which=-1, log=math.log, names=words, gap=0.05
    ):
        found, top = [], log(k)
        for history in histories:
            last = [r for r in history if "loss" in r][which]
            if last[row] > 0.95 * top:
                found.append(names[0])
            elif last[batch] < 0.2 * top:
                found.append(names[1])
            elif last[batch] - last[row] < gap * top:
                found.append(names[2])
            else:
                found.append(names[3])
        return [words.index(word) for word in found]

    no_entropies = (
        "the last line may be an evaluation, which has no entropies: take the last one that has "
        "them"
    )
    try:
        given = [your_function([dict(r) for r in history], k) for history in histories]
    except KeyError as error:
        return print(f"wrong: a line has no {error}; {no_entropies}")
    odd = [word for word in given if word is not None and word not in words]
    if odd:
        return print(
            f"wrong: diagnose gives {odd[0]!r}; the words are {', '.join(map(repr, words))}"
        )
    yours = None if None in given else [words.index(word) for word in given]
    return verdict(
        "diagnose",
        yours,
        verdicts(),
        {
            "confident rows are no collapse while they differ: ask the entropy of the batch's "
            "mean whether all "
            "pictures get one prototype": verdicts(batch="teacher_entropy"),
            "a batch that uses all prototypes alike is no collapse: ask the rows whether each of "
            "them is undecided": verdicts(row="mean_entropy"),
            "the two entropies look exchanged": verdicts("mean_entropy", "teacher_entropy"),
            "the loss does not tell: it may be low or high in a healthy run": verdicts(
                "loss", "loss"
            ),
            "it is the last line that counts, and this looks at the first": verdicts(which=0),
            "every run is one prototype for it: the bounds are shares of ln K, not of K, and "
            + no_entropies: verdicts(log=float),
            "the bounds are shares of ln K, and not nats: ln K is missing": verdicts(
                log=lambda _: 1.0
            ),
            "a target that is the same for all pictures says nothing of any of them: compare the "
            "two entropies": verdicts(gap=-1.0),
            "the bounds are shares of the natural logarithm of K, and these look like "
            "bits": verdicts(log=math.log2),
            "the two kinds of collapse look exchanged": verdicts(
                names=("one prototype", "uniform", *words[2:])
            ),
            "it calls every run the same": [3] * len(histories),
        },
    )
