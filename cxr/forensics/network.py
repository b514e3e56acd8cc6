"""Features of a frozen network with public weights."""

import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import WeightsError
from cxr.forensics.features import Network
from cxr.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from cxr.models.factory import PARTS, build, load_weights
from cxr.models.forward import BATCH_SIZE, choose_device, predict_with_features


def frozen_network(backbone: str, weights: str) -> tuple[Network, str]:
    """Return a function from pixels to features, and a name of the network for the cache.

    Raises:
        WeightsError: the weights cannot be loaded, or leave a part of the network random.
    """
    model = build(backbone, 2)
    report = load_weights(model, weights)
    lacking = [part for part in PARTS if part != "head" and part not in report.loaded]
    if lacking:
        raise WeightsError(
            f"{weights} lacks weights of {', '.join(lacking)} of {backbone}; forensics needs a complete backbone: name "
            "another file in forensics.weights, or set it to none to use grey thumbnails"
        )
    model = model.to(choose_device("auto")).eval()

    def features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
        return np.concatenate(
            [predict_with_features(model, part, mean=IMAGENET_MEAN, std=IMAGENET_STD)[1] for part in parts]
        )

    return features, f"{backbone}-{report.sha256}"
