"""Networks for images: a multilayer perceptron, stacks of convolutions, and residual networks with and without skips.

All read images of 8 by 8 pixels and more.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


def mlp(image_shape: Shape, n_classes: int) -> nn.Module:
    """Build two hidden layers of 64 with ReLU and one linear layer, with torch's default initialisation."""
    width = 64
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, n_in in enumerate((math.prod(image_shape), width), start=1):
        layers[f"linear{number}"] = nn.Linear(n_in, width)
        layers[f"relu{number}"] = nn.ReLU()
    layers["linear"] = nn.Linear(width, n_classes)
    return nn.Sequential(layers)


def small_cnn(image_shape: Shape, n_classes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Build three 3 by 3 convolutions of stride 2, an activation after each, and one linear layer; no normalisation.

    The initialisation is torch's default.

    Args:
        image_shape: (channels, height, width).
        n_classes: outputs of the linear layer.
        activation: made without arguments.
    """
    channels, height, width = image_shape
    widths = (8, 16, 16)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (n_in, n_out) in enumerate(pairwise((channels, *widths)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1)
        layers[f"activation{number}"] = activation()
        height, width = -(-height // 2), -(-width // 2)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(widths[-1] * height * width, n_classes)
    return nn.Sequential(layers)


def vgg(
    image_shape: Shape,
    n_classes: int,
    *,
    stages: Sequence[Sequence[int]] = ((8, 8), (16, 16), (16, 16)),
    halve: bool = True,
) -> nn.Module:
    """Build stages of 3 by 3 convolutions with ReLU, 2 by 2 max pooling after each, and one linear layer.

    Simonyan & Zisserman 2015, with one linear layer in place of three and the initialisation of He et al. 2015. Pooling
    rounds up, so that an image of any size leaves something.

    Args:
        image_shape: (channels, height, width).
        n_classes: outputs of the linear layer.
        stages: output channels of each convolution of each stage.
        halve: whether the first convolution has stride 2 on images larger than 16 pixels.
    """
    channels, height, width = image_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number, stride = 0, _stem_stride(image_shape, halve)
    height, width = -(-height // stride), -(-width // stride)
    for stage, widths in enumerate(stages, start=1):
        for n_out in widths:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(
                channels, n_out, kernel_size=3, stride=stride if number == 1 else 1, padding=1
            )
            layers[f"relu{number}"] = nn.ReLU()
            channels = n_out
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
        height, width = -(-height // 2), -(-width // 2)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(channels * height * width, n_classes)
    return _he_initialised(nn.Sequential(layers))


def vgg11(image_shape: Shape, n_classes: int) -> nn.Module:
    """Build configuration A of Simonyan & Zisserman 2015 with one linear layer, usual for CIFAR; 9.2 M weights."""
    stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    return vgg(image_shape, n_classes, stages=stages, halve=False)


class Block(nn.Module):
    """Two 3 by 3 convolutions, beside a skip where there is one: the basic block of He et al. 2016.

    Args:
        n_in: channels of the input.
        n_out: channels of the output.
        stride: of the first convolution.
        skip: ``"none"``; ``"pad"``: the input, and where the shape changes every second pixel of it and zeros for new
            channels (no weights: option A); ``"project"``: there a 1 by 1 convolution instead (option B).
        normalise: batch norm after each convolution.
        scale: of the convolutions' result in the sum.
    """

    def __init__(self, n_in: int, n_out: int, *, stride: int, skip: str, normalise: bool, scale: float) -> None:
        super().__init__()
        self.skip_kind, self.stride, self.scale, self.n_new = skip, stride, scale, n_out - n_in
        self.conv1 = nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=not normalise)
        self.norm1 = nn.BatchNorm2d(n_out) if normalise else nn.Identity()
        self.conv2 = nn.Conv2d(n_out, n_out, kernel_size=3, padding=1, bias=not normalise)
        self.norm2 = nn.BatchNorm2d(n_out) if normalise else nn.Identity()
        if skip == "project" and (stride > 1 or self.n_new):
            self.skip = nn.Conv2d(n_in, n_out, kernel_size=1, stride=stride, bias=not normalise)
            self.skip_norm = nn.BatchNorm2d(n_out) if normalise else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, n_in, height, width) to (n, n_out, height / stride, width / stride)."""
        branch = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(images)))))
        if self.skip_kind == "none":
            return functional.relu(branch)
        if hasattr(self, "skip"):
            return functional.relu(self.skip_norm(self.skip(images)) + branch * self.scale)
        if self.stride > 1:
            images = images[:, :, :: self.stride, :: self.stride]
        if self.n_new:
            images = functional.pad(images, (0, 0, 0, 0, 0, self.n_new))
        return functional.relu(images + branch * self.scale)


class ResidualNetwork(nn.Module):
    """A stem, stages of basic blocks, the mean over pixels, one linear layer; the initialisation of He et al. 2015.

    Without batch norm each branch is scaled by 1 / sqrt(blocks), so that the sum over all of them has the variance of
    one. The network without skips has the same weights, seed by seed, and no scale.

    Args:
        image_shape: (channels, height, width); the stem halves images larger than 16 pixels where ``halve`` says so.
        n_classes: outputs of the linear layer.
        widths: channels of each stage; all stages but the first halve the image.
        blocks_a_stage: blocks in each stage.
        skips: whether blocks have skips.
        normalise: whether batch norm follows each convolution.
        project: whether skips that change the shape have weights (option B), or none (option A).
        halve: whether the stem has stride 2 on images larger than 16 pixels.
    """

    def __init__(
        self,
        image_shape: Shape,
        n_classes: int,
        *,
        widths: Sequence[int] = (8, 16, 16),
        blocks_a_stage: int = 1,
        skips: bool = True,
        normalise: bool = False,
        project: bool = False,
        halve: bool = True,
    ) -> None:
        super().__init__()
        stride = _stem_stride(image_shape, halve)
        self.conv1 = nn.Conv2d(image_shape[0], widths[0], 3, stride=stride, padding=1, bias=not normalise)
        self.norm1 = nn.BatchNorm2d(widths[0]) if normalise else nn.Identity()
        skip = ("project" if project else "pad") if skips else "none"
        scale = 1.0 if normalise else 1 / math.sqrt(len(widths) * blocks_a_stage)
        self.blocks = [f"block{number}" for number in range(1, len(widths) * blocks_a_stage + 1)]
        n_in = widths[0]
        for index, name in enumerate(self.blocks):
            stage, first = index // blocks_a_stage, index % blocks_a_stage == 0
            stride = 2 if stage > 0 and first else 1
            block = Block(n_in, widths[stage], stride=stride, skip=skip, normalise=normalise, scale=scale)
            self.add_module(name, block)
            n_in = widths[stage]
        self.linear = nn.Linear(n_in, n_classes)
        _he_initialised(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, height, width) to logits (n, n_classes)."""
        images = functional.relu(self.norm1(self.conv1(images)))
        for name in self.blocks:
            images = self.get_submodule(name)(images)
        return self.linear(images.mean((2, 3)))


def resnet18(image_shape: Shape, n_classes: int) -> nn.Module:
    """Build ResNet-18 as is usual for CIFAR: a 3 by 3 stem of stride 1, no max pooling; 11.2 M weights."""
    widths = (64, 128, 256, 512)
    return ResidualNetwork(
        image_shape, n_classes, widths=widths, blocks_a_stage=2, normalise=True, project=True, halve=False
    )


def _stem_stride(image_shape: Shape, halve: bool) -> int:
    return 2 if halve and min(image_shape[1:]) > 16 else 1


@torch.no_grad()
def _he_initialised(model: nn.Module) -> nn.Module:
    """Draw the convolutions' weights from a normal distribution of variance 2 / fan-in, and set their biases to 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model
