"""Answers to the pieces of notebook 04: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import torch


def ema_in_place_of_data(teacher, student, momentum):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.data = momentum * t.data + (1 - momentum) * s.data


@torch.no_grad()
def ema_lerp(teacher, student, momentum):
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def ema_names_only(teacher, student, momentum):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t = momentum * t + (1 - momentum) * s


def ema_state_dict(teacher, student, momentum):
    mixed = {
        k: momentum * v + (1 - momentum) * student.state_dict()[k]
        for k, v in teacher.state_dict().items()
    }
    teacher.load_state_dict(mixed)


STYLES = {"ema_update": [ema_in_place_of_data, ema_lerp]}
WRONG = {"ema_update": {"names only": ema_names_only, "buffers too": ema_state_dict}}
EQUIVALENT = {"ema_update": []}
