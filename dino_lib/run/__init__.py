"""A training run: its settings, its parts, the loop, and its folder.

A setting, preset, precision, optimizer, line of the history or kind of checkpoint belongs here, and
what a Config is turned into.
"""
