"""The checks of notebook 05 about reading a run: what its loss is made of, and its health."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dino_lib.course.check import Case, Mistake, check, on

WORDS = ("uniform", "one prototype", "same for all", "healthy")
WITHOUT = ("the last line may be an evaluation, without entropies: take the last one that has a "
           "\"teacher_entropy\"")
History = list[dict]


def split_loss(yours: Callable) -> Callable:
    """`yours(student, teacher, center, student_temp, teacher_temp)` -> (entropy, divergence)."""
    cases = []
    for seed, (batch, k, hot, cold) in enumerate([(6, 9, 0.7, 0.4), (4, 5, 0.1, 0.07),
                                                  (3, 8, 1.5, 0.9)]):
        generator = torch.Generator().manual_seed(seed)
        student, teacher = (torch.randn(batch, k, generator=generator) for _ in range(2))
        scale = 0.2 if hot < 0.5 else 1.0  # no probability is 0: p ln p stays a number
        center = torch.randn(k, generator=generator)
        cases.append(on(scale * student, scale * teacher, scale * center, hot, cold))

    def of(*, center: float = 1.0, over: tuple[int, int] = (-1, -1), hot: float | None = None,
           cold: float | None = None, swap: bool = False,
           result: Callable = lambda h, d, *_: (h, d)) -> Callable:
        def piece(student, teacher, offset, student_temp, teacher_temp):
            if swap:
                student_temp, teacher_temp = teacher_temp, student_temp
            log_p = (student / (hot or student_temp)).log_softmax(over[0])
            log_q = ((teacher - center * offset) / (cold or teacher_temp)).log_softmax(over[1])
            h, d = _entropy(log_q), (log_q.exp() * (log_q - log_p)).sum(-1)
            return result(h.mean(), d.mean(), log_p, log_q)
        return piece

    return check("split_loss", yours, of(), cases, {
        "the center is not subtracted from the teacher's logits": of(center=0.0),
        "the center is added, not subtracted": of(center=-1.0),
        "the center is subtracted from the student's logits, not from the teacher's":
            lambda s, t, c, *temps: of(center=0.0)(s - c, t, c, *temps),
        "the center belongs to the teacher alone": lambda s, *rest: of()(s - rest[1], *rest),
        "the two temperatures are swapped": of(swap=True),
        "student and teacher are swapped": lambda s, t, *rest: of()(t, s, *rest),
        "the student's logits lack their temperature": of(hot=1.0),
        "the teacher's logits lack their temperature": of(cold=1.0),
        "logits are divided by the temperature, not multiplied": _multiplied(of()),
        "the center comes before the temperature: (logits - center) / temperature":
            lambda s, t, c, hot, cold: of()(s, t, c * cold, hot, cold),
        "the divergence goes the wrong way: the teacher's probabilities are the weights":
            of(result=lambda h, d, p, q: (h, (p.exp() * (p - q)).sum(-1).mean())),
        "the second is the whole loss; the divergence is what the entropy leaves of it":
            of(result=lambda h, d, *_: (h, h + d)),
        "the first is the whole loss, not the teacher's entropy":
            of(result=lambda h, d, *_: (h + d, d)),
        "the first is the student's entropy, not the teacher's":
            of(result=lambda h, d, p, q: (_entropy(p).mean(), d)),
        "take the entropy of each row and then the mean, not the entropy of the mean row":
            of(result=lambda h, d, p, q: (torch.special.entr(q.exp().mean(0)).sum(), d)),
        "each picture has a target of its own, and this compares all with their mean":
            of(result=lambda h, d, p, q: _against_the_mean(p, q)),
        "an entropy has a minus sign in front": of(result=lambda h, d, *_: (-h, d)),
        "the divergence has the wrong sign: it is never negative":
            of(result=lambda h, d, *_: (h, -d)),
        "both are means over the batch, not sums":
            of(result=lambda h, d, p, q: (len(p) * h, len(p) * d)),
        "the second is a mean over the batch, not a sum":
            of(result=lambda h, d, p, q: (h, len(p) * d)),
        "the first is a mean over the batch, not a sum":
            of(result=lambda h, d, p, q: (len(p) * h, d)),
        "sum over the prototypes: the mean is over the batch alone":
            of(result=lambda h, d, p, q: (h / p.shape[1], d / p.shape[1])),
        "in the first, sum over the prototypes; the mean is over the batch alone":
            of(result=lambda h, d, p, q: (h / p.shape[1], d)),
        "in the second, sum over the prototypes; the mean is over the batch alone":
            of(result=lambda h, d, p, q: (h, d / p.shape[1])),
        "one number each is asked for: take the mean over the batch":
            of(result=lambda h, d, p, q: (_entropy(q), (q.exp() * (q - p)).sum(-1))),
        "the order is (entropy, divergence)": of(result=lambda h, d, *_: (d, h)),
        "these are bits: take the natural logarithm":
            of(result=lambda h, d, *_: (h / math.log(2), d / math.log(2))),
        "a difference of logarithms is asked for, and this adds them":
            of(result=lambda h, d, p, q: (h, (q.exp() * (q + p)).sum(-1).mean())),
        "the divergence lacks its weights, the teacher's probabilities":
            of(result=lambda h, d, p, q: (h, (q - p).sum(-1).mean())),
        "the student's softmax goes over the batch; it belongs to the prototypes": of(over=(0, -1)),
        "the teacher's softmax goes over the batch; it belongs to the prototypes": of(over=(-1, 0)),
        "both softmaxes go over the batch; they belong to the prototypes": of(over=(0, 0)),
        "the center is subtracted the wrong way round: logits - center":
            lambda s, t, c, *temps: of()(s, -t, -c, *temps),
        "the weights are probabilities, and these are logarithms":
            of(result=lambda h, d, p, q: (-(q * q).sum(-1).mean(), (q * (q - p)).sum(-1).mean())),
    }, tolerance=1e-4, parts=("the entropy", "the divergence"))


def _entropy(log_q: Tensor) -> Tensor:
    return -(log_q.exp() * log_q).sum(-1)


def _against_the_mean(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    log_mean = log_q.exp().mean(0).log()
    return _entropy(log_mean), (log_mean.exp() * (log_mean - log_p)).sum(-1).mean()


def _multiplied(right: Callable) -> Callable:
    return lambda s, t, c, hot, cold: right(s, t, c, 1 / hot, 1 / cold)


def diagnose(yours: Callable) -> Callable:
    """`yours(history, out_dim)` -> one of the four WORDS."""
    cases = [_said(*case) for case in HISTORIES]
    mistakes = {
        WITHOUT:
            lambda history, k: _verdict(history, k, lines=lambda h: h[-1:]),
        "it is the last line that counts, and this looks at the first":
            lambda history, k: _verdict(history, k, which=0),
        "confident rows are no collapse while they differ: whether all pictures get one prototype, "
        "ask the batch's mean": lambda h, k: _verdict(h, k, batch="teacher_entropy"),
        "a batch that uses all prototypes alike is no collapse: ask single images whether they are "
        "undecided": lambda h, k: _verdict(h, k, row="mean_entropy"),
        "the two entropies look exchanged":
            lambda h, k: _verdict(h, k, row="mean_entropy", batch="teacher_entropy"),
        "the loss does not tell: it may be low or high in a healthy run":
            lambda h, k: _verdict(h, k, row="loss", batch="loss"),
        "the bounds are shares of ln K, not of K": lambda h, k: _verdict(h, k, log=float),
        "the bounds are shares of ln K, and not nats: ln K is missing":
            lambda h, k: _verdict(h, k, log=lambda _: 1.0),
        "the bounds are shares of the natural logarithm of K, and these look like bits":
            lambda h, k: _verdict(h, k, log=math.log2),
        "the bounds are shares of the natural logarithm of K, and this is base 10":
            lambda h, k: _verdict(h, k, log=math.log10),
        "the gap is the batch's mean minus one image's, and this is the other way round":
            lambda h, k: _verdict(h, k, sign=-1),
        "the gap's bound is 5% of ln K, not 0.05 nats":
            lambda h, k: _verdict(h, k, gap_in_nats=True),
        "\"uniform\" asks single images, and this asks the batch's mean":
            lambda h, k: _verdict(h, k, asked=("mean_entropy", "mean_entropy")),
        "\"one prototype\" asks the batch's mean, and this asks single images":
            lambda h, k: _verdict(h, k, asked=("teacher_entropy", "teacher_entropy")),
        "\"uniform\" and \"one prototype\" ask the wrong entropies, each that of the other":
            lambda h, k: _verdict(h, k, asked=("mean_entropy", "teacher_entropy")),
        "the gap is the difference of both entropies, and this is their sum":
            lambda h, k: _verdict(h, k, summed=True),
        "the bound of \"uniform\" is 95% of ln K": lambda h, k: _verdict(h, k, uniform=0.9),
        "the bound of \"one prototype\" is 20% of ln K": lambda h, k: _verdict(h, k, one=0.1),
        "the bound of \"same for all\" is 5% of ln K": lambda h, k: _verdict(h, k, gap=0.1),
        "it does not find \"uniform\": it is asked first, and its bound is 95% of ln K":
            lambda h, k: _verdict(h, k, uniform=0.98),
        "the bound of \"one prototype\" is 20% of ln K, and this one is higher":
            lambda h, k: _verdict(h, k, one=0.3),
        "the bound of \"same for all\" is 5% of ln K, and this one is lower":
            lambda h, k: _verdict(h, k, gap=0.02),
        "the bound of \"same for all\" is 5% of ln K, and this one is far higher":
            lambda h, k: _verdict(h, k, gap=0.15),
        "\"same for all\" is asked first, and it is the last question":
            lambda h, k: _verdict(h, k, uniform=9.0, one=-1.0, otherwise=_verdict),
        "\"same for all\" is asked before \"one prototype\"":
            lambda h, k: _verdict(h, k, one=-1.0, otherwise=_verdict),
        "an ill run has one of three names, and this has another word for them":
            lambda h, k: "healthy" if _verdict(h, k) == "healthy" else "?",
        "more than one bound is off: they are 95%, 20% and 5% of ln K":
            lambda h, k: _verdict(h, k, uniform=0.9, one=0.3, gap=0.1),
        "a target that is the same for all pictures says nothing of any of them: compare the two "
        "entropies": lambda h, k: _verdict(h, k, gap=-9.0),
        "it never finds \"one prototype\", or asks too late: it comes before \"same for all\"":
            lambda h, k: _verdict(h, k, one=-1.0),
        "\"uniform\" is asked in the wrong direction: it is for an entropy above the bound":
            lambda h, k: _verdict(h, k, above=False),
        "\"one prototype\" is asked in the wrong direction: it is for an entropy below the bound":
            lambda h, k: _verdict(h, k, below=False),
    }
    for number, word in enumerate(WORDS):
        mistakes[f"every run is {word!r} for it"] = lambda h, k, word=word: word
        mistakes[f"it never says {word!r}, spelled exactly so"] = (
            lambda h, k, word=word: _verdict(h, k).replace(word, "?"))
        for other in WORDS[:number]:
            mistakes[f"{word!r} and {other!r} are exchanged"] = (
                lambda h, k, a=word, b=other: {a: b, b: a}.get(_verdict(h, k), _verdict(h, k)))
    mistakes["the words are " + ", ".join(map(repr, WORDS))] = lambda h, k: "?"
    return check("diagnose", yours, _verdict, cases, mistakes)


def _verdict(history: History, k: int, *, row: str = "teacher_entropy", batch: str = "mean_entropy",
             which: int = -1, log: Callable = math.log, uniform: float = 0.95, one: float = 0.2,
             gap: float = 0.05, sign: int = 1, summed: bool = False, above: bool = True,
             below: bool = True, gap_in_nats: bool = False,
             asked: tuple[str, str] | None = None, lines: Callable = lambda h: h,
             otherwise: Callable | None = None) -> str:
    """The finished piece, and with other arguments its mistakes."""
    last = [r for r in lines(history) if "teacher_entropy" in r][which]
    top = log(k)
    first, second = asked or (row, batch)
    if (last[first] > uniform * top) == above:
        return WORDS[0]
    if (last[second] < one * top) == below:
        return WORDS[1]
    apart = last[batch] + last[row] if summed else sign * (last[batch] - last[row])
    if apart < gap * (1.0 if gap_in_nats else top):
        return WORDS[2]
    return otherwise(history, k) if otherwise else WORDS[3]


# (K, of the lines (entropy of one image, of the batch's mean, loss) as shares of ln K; whether an
# evaluation follows). On both sides of each bound, for several K.
HISTORIES = [
    (64, [(0.30, 0.60, 0.9)], False),
    (64, [(0.96, 0.97, 0.99)], True),
    (1024, [(0.945, 1.0, 0.97)], True),
    (1024, [(0.955, 1.0, 0.97)], False),
    (64, [(0.02, 0.19, 0.1)], True),
    (64, [(0.02, 0.21, 0.1)], False),
    (4096, [(0.10, 0.195, 1.3)], False),
    (4096, [(0.10, 0.205, 0.1)], True),
    (64, [(0.50, 0.545, 0.6)], False),
    (64, [(0.50, 0.555, 0.6)], True),
    (64, [(0.50, 0.505, 0.6)], False),
    (1024, [(0.80, 0.845, 0.99)], True),
    (1024, [(0.80, 0.855, 1.02)], False),
    (32, [(0.15, 0.16, 0.1)], True),  # one prototype, and the same for all
    (32, [(0.01, 0.98, 0.05)], False),  # sure, and all different
    (256, [(0.01, 0.02, 0.01), (0.5, 0.8, 0.8)], True),
    (256, [(0.5, 0.8, 0.8), (0.97, 0.99, 1.0)], True),
    (256, [(0.97, 0.99, 1.0), (0.5, 0.51, 0.6)], False),
    (256, [(0.5, 0.8, 0.8), (0.01, 0.02, 0.02)], False),
]


def _said(k: int, shares: list, evaluated: bool) -> Case:
    """The number of the word that a piece says of a history, -1 for any other word."""
    top = math.log(k)
    history = [{"step": 0, "knn": 0.4}]
    history += [{"step": 10 * i, "loss": loss * top, "teacher_entropy": one * top,
                 "mean_entropy": mean * top} for i, (one, mean, loss) in enumerate(shares, 1)]
    history += [{"step": 10 * len(shares), "knn": 0.5}] * evaluated

    def case(piece: Callable) -> int | None:
        try:
            said = piece([dict(line) for line in history], k)
        except KeyError as error:
            if "_entropy" in str(error):
                raise Mistake(WITHOUT) from error
            raise
        if said is None:
            return None
        return WORDS.index(said) if said in WORDS else -1

    return case
