"""The table of backbones: constructor, parts by depth, published weights and smallest image."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cxr.models.modules import SmallCnn
from cxr.models.torchvision_networks import models

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's three channels, on the scale 0 to 1; all networks here use them."""


@dataclass(frozen=True)
class Published:
    """Publicly available ImageNet weights."""

    url: str

    @property
    def digest(self) -> str:
        """The first digits of the file's SHA-256, which cxr.models.factory checks."""
        return self.url.rsplit("-", 1)[-1].removesuffix(".pth")


@dataclass(frozen=True)
class Architecture:
    """One backbone.

    make            number of classes -> network with random weights
    stages          names of the modules of the stem and of layers 1 to 4; the head is the rest
    saliency_layer  name of the module whose feature maps Grad-CAM uses: the last before global pooling
    published       published weights; None if there are none
    smallest_px     smallest accepted side of an image
    half_range      whether the published weights expect grey levels from -1 to 1
    """

    make: Callable[[int], nn.Module]
    stages: tuple[tuple[str, ...], ...]
    saliency_layer: str
    published: Published | None
    smallest_px: int
    half_range: bool = False


def _torchvision(make: Callable[..., nn.Module], **settings: Any) -> Callable[[int], nn.Module]:
    return lambda n_classes: make(weights=None, num_classes=n_classes, **settings)


def _xception(n_classes: int) -> nn.Module:
    from timm.models.xception import Xception  # torchvision lacks it; importing timm takes seconds, so only on use

    network: nn.Module = Xception(num_classes=n_classes)
    return network


def _features(*indices: int) -> tuple[str, ...]:
    return tuple(f"features.{index}" for index in indices)


def _inside(parent: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for name in names)


_HIDDEN_IN_ALEXNET, _HIDDEN_IN_VGG = ("classifier.1", "classifier.4"), ("classifier.0", "classifier.3")

ARCHITECTURES: dict[str, Architecture] = {
    "alexnet": Architecture(
        make=_torchvision(models.alexnet),
        stages=(_features(0), _features(3), _features(6), _features(8), _features(10) + _HIDDEN_IN_ALEXNET),
        saliency_layer="features.11",
        published=Published(models.AlexNet_Weights.IMAGENET1K_V1.url),
        smallest_px=63,
    ),
    "densenet121": Architecture(
        make=_torchvision(models.densenet121),
        stages=(
            _inside("features", ("conv0", "norm0")),
            _inside("features", ("denseblock1", "transition1")),
            _inside("features", ("denseblock2", "transition2")),
            _inside("features", ("denseblock3", "transition3")),
            _inside("features", ("denseblock4", "norm5")),
        ),
        saliency_layer="features",
        published=Published(models.DenseNet121_Weights.IMAGENET1K_V1.url),
        smallest_px=32,
    ),
    "inception_v3": Architecture(
        make=_torchvision(models.inception_v3, aux_logits=False, transform_input=False, init_weights=True),
        stages=(
            ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
            ("Mixed_5b", "Mixed_5c", "Mixed_5d"),
            ("Mixed_6a", "Mixed_6b", "Mixed_6c"),
            ("Mixed_6d", "Mixed_6e"),
            ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
        ),
        saliency_layer="Mixed_7c",
        published=Published(models.Inception_V3_Weights.IMAGENET1K_V1.url),
        smallest_px=75,
        half_range=True,
    ),
    "mobilenet_v2": Architecture(
        make=_torchvision(models.mobilenet_v2),
        stages=(
            _features(0, 1),
            _features(2, 3),
            _features(4, 5, 6),
            _features(*range(7, 14)),
            _features(*range(14, 19)),
        ),
        saliency_layer="features",
        published=Published(models.MobileNet_V2_Weights.IMAGENET1K_V1.url),
        smallest_px=32,
    ),
    "resnet50": Architecture(
        # Residual branches that start at zero (Goyal et al. 2017, section 5.1) stabilise training from scratch;
        # loaded weights replace them.
        make=_torchvision(models.resnet50, zero_init_residual=True),
        stages=(("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
        saliency_layer="layer4",
        published=Published(models.ResNet50_Weights.IMAGENET1K_V2.url),
        smallest_px=32,
    ),
    "small_cnn": Architecture(
        make=SmallCnn,
        stages=(("stem",), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
        saliency_layer="layer4.2",
        published=None,
        smallest_px=32,
    ),
    "vgg16": Architecture(
        make=_torchvision(models.vgg16),
        stages=(
            _features(0, 2),
            _features(5, 7),
            _features(10, 12, 14),
            _features(17, 19, 21),
            _features(24, 26, 28) + _HIDDEN_IN_VGG,
        ),
        saliency_layer="features.29",
        published=Published(models.VGG16_Weights.IMAGENET1K_V1.url),
        smallest_px=32,
    ),
    "vgg19": Architecture(
        make=_torchvision(models.vgg19),
        stages=(
            _features(0, 2),
            _features(5, 7),
            _features(10, 12, 14, 16),
            _features(19, 21, 23, 25),
            _features(28, 30, 32, 34) + _HIDDEN_IN_VGG,
        ),
        saliency_layer="features.35",
        published=Published(models.VGG19_Weights.IMAGENET1K_V1.url),
        smallest_px=32,
    ),
    "xception": Architecture(
        make=_xception,
        stages=(
            ("conv1", "bn1", "conv2", "bn2"),
            ("block1", "block2", "block3"),
            ("block4", "block5", "block6", "block7"),
            ("block8", "block9", "block10", "block11"),
            ("block12", "conv3", "bn3", "conv4", "bn4"),
        ),
        saliency_layer="act4",
        # The address in timm's `legacy_xception`, repeated here because importing timm takes seconds.
        published=Published(
            "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/xception-43020ad28.pth"
        ),
        smallest_px=32,
        half_range=True,
    ),
}


def to_half_range(_network: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Convert images normalised by IMAGENET_MEAN and IMAGENET_STD to grey levels from -1 to 1; a forward pre-hook."""
    (images,) = arguments
    mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
    return (images * (2 * std).view(1, 3, 1, 1) + (2 * mean - 1).view(1, 3, 1, 1),)
