"""Networks of our own: a small one to measure the large ones against, and several networks that answer as one."""

from collections.abc import Iterable, Sequence
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANNELS = (32, 64, 128, 256, 256)


class SmallCnn(nn.Module):
    """Five blocks of convolution, batch norm, ReLU and pooling, then global pooling, dropout and a linear layer.

    In the spirit of the small networks that are trained from scratch on chest films (Nguyen et al. 2020): 1 million
    weights where a ResNet-50 has 24.
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
        """Return logits (N, C) of films (N, 3, H, W)."""
        maps = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        logits: Tensor = self.fc(self.dropout(self.pool(maps).flatten(1)))
        return logits


def _block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    )


class Committee(nn.Module):
    """Networks whose probabilities are averaged, each over several magnifications of the film.

    The last view is the film as it is: Grad-CAM shows the last pass of the last member.
    """

    def __init__(self, members: Iterable[nn.Module], views: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.views = tuple(views)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the mean probability (N, C), a logit like any other, of films (N, 3, H, W)."""
        shares = [
            functional.log_softmax(member(magnified(x, view)).float(), dim=1)
            for member in self.members
            for view in self.views
        ]
        return torch.stack(shares).logsumexp(dim=0) - log(len(shares))


def magnified(films: Tensor, times: float) -> Tensor:
    """Return films (N, C, H, W) magnified about their middle; below 1 the border is repeated outwards."""
    if times == 1:
        return films
    theta = films.new_tensor([[1 / times, 0, 0], [0, 1 / times, 0]], dtype=torch.float32).expand(len(films), 2, 3)
    grid = functional.affine_grid(theta, list(films.shape), align_corners=False)
    return functional.grid_sample(films, grid.to(films.dtype), padding_mode="border", align_corners=False)
