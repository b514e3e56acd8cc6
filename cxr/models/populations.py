"""Populations: images of one class that differ from its others, and have an output of their own.

The labels of a class can come from two worlds, such as two devices or two ways of reading. A network that has to give
both one output learns a compromise, and what one of them teaches may be wrong elsewhere. Here each population has an
output beside those of the classes; the probability of a class is the sum over its outputs, in which a population
counts with its weight: 1 as any other image of the class, 0 not at all.
"""

from dataclasses import dataclass

SMALLEST_WEIGHT = 1e-6  # in place of 0, whose logarithm not every engine computes with


@dataclass(frozen=True)
class Population:
    """Images of the class `label` that have an output of their own; `weight`, 0 to 1, is its part in the class."""

    name: str
    label: str
    weight: float
