"""Building blocks: backbones, feature pyramid and context modules. Attribute names are checkpoint names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, leaky: float | None = 0.0, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and, unless ``leaky`` is None, leaky ReLU of that slope."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if leaky is not None:
        layers.append(nn.LeakyReLU(leaky, inplace=True))
    return nn.Sequential(*layers)


def conv_dw(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 then pointwise convolution, each with batch norm and leaky ReLU (MobileNetV1)."""
    depthwise = conv_bn(inputs, inputs, 3, stride, leaky=0.1, groups=inputs)
    return nn.Sequential(*depthwise, *conv_bn(inputs, outputs, 1, leaky=0.1))


class MobileNetV1(nn.Module):
    """MobileNetV1 of a quarter of the width, without classifier: maps of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            conv_bn(3, 8, stride=2, leaky=0.1),
            conv_dw(8, 16, 1),
            conv_dw(16, 32, 2),
            conv_dw(32, 32, 1),
            conv_dw(32, 64, 2),
            conv_dw(64, 64, 1),
        )
        self.stage2 = nn.Sequential(conv_dw(64, 128, 2), *(conv_dw(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(conv_dw(128, 256, 2), conv_dw(256, 256, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        c3 = self.stage1(images)
        c4 = self.stage2(c3)
        return [c3, c4, self.stage3(c4)]


class ResNet50(nn.Module):
    """torchvision's ResNet50 without classifier: maps of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


def context_slope(channels: int) -> float:
    """Leaky slope of pyramid and context modules: 0.1 for the narrow network, plain ReLU for the wide one."""
    return 0.1 if channels <= 64 else 0.0


class FPN(nn.Module):
    """Feature pyramid: every level has ``channels`` and sees the coarser ones."""

    def __init__(self, inputs: tuple[int, ...], channels: int) -> None:
        super().__init__()
        slope = context_slope(channels)
        self.output1 = conv_bn(inputs[0], channels, 1, leaky=slope)
        self.output2 = conv_bn(inputs[1], channels, 1, leaky=slope)
        self.output3 = conv_bn(inputs[2], channels, 1, leaky=slope)
        self.merge1 = conv_bn(channels, channels, leaky=slope)
        self.merge2 = conv_bn(channels, channels, leaky=slope)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = self.output1(maps[0]), self.output2(maps[1]), self.output3(maps[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return [fine, middle, coarse]


class SSH(nn.Module):
    """Context module: 3x3, 5x5 and 7x7 views, the larger ones as stacks of 3x3 (SSH, Najibi et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        slope = context_slope(channels)
        half, quarter = channels // 2, channels // 4
        self.conv3X3 = conv_bn(channels, half, leaky=None)
        self.conv5X5_1 = conv_bn(channels, quarter, leaky=slope)
        self.conv5X5_2 = conv_bn(quarter, quarter, leaky=None)
        self.conv7X7_2 = conv_bn(quarter, quarter, leaky=slope)
        self.conv7x7_3 = conv_bn(quarter, quarter, leaky=None)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.conv5X5_1(x)
        views = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return F.relu(torch.cat(views, 1))
