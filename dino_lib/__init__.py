"""DINO, self-distillation with no labels (Caron et al. 2021): the finished code of the course.

Read it in this order: augment, backbone, head, loss, teacher, schedules, train.
"""
