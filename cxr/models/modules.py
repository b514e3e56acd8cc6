"""Custom modules: a small network, heads (a support vector machine, populations) and an ensemble."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cxr.models.populations import SMALLEST_WEIGHT, Population

_CHANNELS = (32, 64, 128, 256, 256)


class SmallCnn(nn.Module):
    """Five blocks of convolution, batch norm, ReLU and pooling, then global pooling, dropout and a linear layer.

    It follows the small networks that are trained from scratch on chest X-rays (Nguyen et al. 2020): 1 million
    parameters, against 24 million of a ResNet-50.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = _block(3, _CHANNELS[0])
        self.layer1 = _block(_CHANNELS[0], _CHANNELS[1])
        self.layer2 = _block(_CHANNELS[1], _CHANNELS[2])
        self.layer3 = _block(_CHANNELS[2], _CHANNELS[3])
        self.layer4 = _block(_CHANNELS[3], _CHANNELS[4])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(_CHANNELS[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C) of images (N, 3, H, W)."""
        maps = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        logits: Tensor = self.fc(self.dropout(self.pool(maps).flatten(1)))
        return logits


def _block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    )


class SvmHead(nn.Module):
    """A fitted support vector machine as the last layer: features (N, D) in, one score a class (N, C) out.

    It holds plain tensors, so it is saved and served like any other layer, and it is differentiable for Grad-CAM.
    Scores equal scikit-learn's `SVC.decision_function` with the shape "ovr". With two classes, the score of the
    second is that of the first with the opposite sign.

    Buffers for P pairs of classes and S support vectors, empty until a state is loaded:
        mean, scale     (D,) of the training features
        vectors         (S, D) standardised support vectors; with a linear kernel one weight vector per pair
        coefficients    (S, P) of each vector in each pair's decision, positive for the pair's first class
        intercept       (P,)
        gamma           of the kernel exp(-gamma |x - v|^2); 0 means the linear kernel
    """

    mean: Tensor
    scale: Tensor
    vectors: Tensor
    coefficients: Tensor
    intercept: Tensor
    gamma: Tensor
    signs: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        pairs = list(combinations(range(n_classes), 2))
        for name in ("mean", "scale"):
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("vectors", torch.zeros(0, 0))
        self.register_buffer("coefficients", torch.zeros(0, len(pairs)))
        self.register_buffer("intercept", torch.zeros(len(pairs)))
        self.register_buffer("gamma", torch.zeros(()))
        signs = torch.zeros(len(pairs), n_classes)
        for row, (first, second) in enumerate(pairs):
            signs[row, first], signs[row, second] = 1, -1
        self.register_buffer("signs", signs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (N, C) in fp32; the predicted class has the largest."""
        with torch.autocast(x.device.type, enabled=False):
            decisions = self._kernel((x.float() - self.mean) / self.scale) @ self.coefficients + self.intercept
            confidence = decisions @ self.signs
            if len(self.signs) == 1:
                return confidence
            votes = torch.where(decisions >= 0, 1.0, 0.0) @ self.signs.clamp(min=0)
            votes = votes + torch.where(decisions < 0, 1.0, 0.0) @ (-self.signs).clamp(min=0)
            # Votes decide; the confidence, scaled to less than 1/3, breaks ties.
            return votes + confidence / (3 * (confidence.abs() + 1))

    def _kernel(self, x: Tensor) -> Tensor:
        products = x @ self.vectors.T
        if not self.gamma:
            return products
        distances = x.square().sum(1, keepdim=True) - 2 * products + self.vectors.square().sum(1)
        return torch.exp(-self.gamma * distances.clamp(min=0))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        # Only the state knows the number of features and of support vectors.
        for name in ("mean", "scale", "vectors", "coefficients"):
            loaded, own = state_dict.get(prefix + name), self.get_buffer(name)
            if isinstance(loaded, Tensor) and (name != "coefficients" or loaded.shape[1:] == own.shape[1:]):
                self.register_buffer(name, own.new_zeros(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class MergedLinear(nn.Linear):
    """A linear layer with an output per class and per population; features (N, D) in, one logit per class (N, C) out.

    Its state is that of the plain linear layer that was trained with all outputs.
    """

    def __init__(self, n_features: int, classes: Sequence[str], populations: Sequence[Population]) -> None:
        super().__init__(n_features, len(classes) + len(populations))
        self._classes, self._populations = tuple(classes), tuple(populations)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes."""
        return merge_outputs(super().forward(x), self._classes, self._populations)


def merge_outputs(outputs: Tensor, classes: Sequence[str], populations: Sequence[Population]) -> Tensor:
    """Return logits (N, C) of the classes from `outputs` (N, C + P), those of the classes before the populations'."""
    if not populations:
        return outputs
    values = outputs.float()
    merged = []
    for column, label in enumerate(classes):
        terms = [values[:, column]] + [
            values[:, len(classes) + number] + log(max(population.weight, SMALLEST_WEIGHT))
            for number, population in enumerate(populations)
            if population.label == label
        ]
        merged.append(torch.stack(terms).logsumexp(dim=0) if len(terms) > 1 else terms[0])
    return torch.stack(merged, dim=1)


class Ensemble(nn.Module):
    """Networks whose probabilities are averaged, and whose heat maps are. Features are those of the last member."""

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, C), the logarithm of the mean probability, of images (N, 3, H, W)."""
        logs = [functional.log_softmax(member(x).float(), dim=1) for member in self.members]
        return torch.stack(logs).logsumexp(dim=0) - log(len(logs))
