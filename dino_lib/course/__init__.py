"""The checks of the exercises, one module a notebook. Only notebooks import them.

A new exercise's check belongs in its notebook's module; `check` is how all of them speak.
"""
