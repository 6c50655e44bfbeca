"""Networks to look at: `load_teacher`, and the teachers that ship with the package.

Another project's layout of weights or another trained teacher belongs here; how the tensors of a
file get timm's names is in `run/weights.py`, since a run may start from them too.
"""
