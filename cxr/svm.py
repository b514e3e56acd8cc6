"""A support vector machine as the last layer of a network: plain tensors, so it is saved and served like any other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class SvmHead(nn.Module):
    """A fitted support vector machine that scores features (N, D) and can be differentiated.

    Buffers (P pairs of classes, S support vectors):
        mean, scale       (D,) of the training features
        vectors           (S, D) support vectors in standard units; for a linear kernel one weight vector a pair
        coefficients      (S, P) of each vector in each pair's decision
        intercept         (P,)
        gamma             of exp(-gamma |x - v|^2); 0 means a linear kernel

    Args:
        n_classes: a state of another number of classes does not load.
    """

    mean: Tensor
    scale: Tensor
    vectors: Tensor
    coefficients: Tensor
    intercept: Tensor
    gamma: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.pairs = tuple((first, second) for second in range(n_classes) for first in range(second))
        for name, shape in (
            ("mean", (0,)),
            ("scale", (0,)),
            ("vectors", (0, 0)),
            ("coefficients", (0, len(self.pairs))),
            ("intercept", (len(self.pairs),)),
            ("gamma", ()),
        ):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return one score a class (N, C); the largest is the answer."""
        raise NotImplementedError

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        # How many support vectors there are is known from the state alone.
        for name, buffer in self.named_buffers():
            value = state.get(prefix + name)
            if value is not None and name not in ("intercept", "gamma"):
                self.register_buffer(name, buffer.new_zeros(value.shape))
        super()._load_from_state_dict(state, prefix, *arguments)
