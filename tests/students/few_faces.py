"""A few made faces to train on, and a short recipe."""

import numpy as np
import torch

from students import create_student
from students.batches import Examples, Recipe

PEOPLE, EACH = 6, 8


def few_crops(seed=0):
    """(48, 32, 32, 3): a coarse pattern a person, with noise on it."""
    rng = np.random.default_rng(seed)
    base = rng.integers(40, 216, (PEOPLE, 4, 4, 3)).repeat(8, 1).repeat(8, 2).repeat(EACH, 0)
    return (base + rng.normal(0, 12, base.shape)).clip(0, 255).astype(np.uint8)


def few_examples(width=128, labels=True, seed=0):
    people = np.arange(PEOPLE).repeat(EACH)
    targets = np.random.default_rng(seed + 1).normal(size=(PEOPLE, width)).astype(np.float32)[people] if width else None
    return Examples(few_crops(seed), 0.1, targets, people.astype(np.int64) if labels else None)


def fresh_student(seed=0):
    torch.manual_seed(seed)
    return create_student("tiny16")


SHORT = Recipe(samples=12 * 20, batch=20)
"""Twelve steps; 20 does not divide 48, so batches reach over the ends of epochs."""
