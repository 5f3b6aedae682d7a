"""The hourglasses of pytorch-pose and pytorch_stacked_hourglass in PyTorch, written from their published architecture.

Only what tests of the import need: networks whose arrays have the published names.
"""

from typing import Any

import pytest

nn: Any = pytest.importorskip("torch.nn", reason="PyTorch is not installed")
F: Any = pytest.importorskip("torch.nn.functional", reason="PyTorch is not installed")


class BearpawBlock(nn.Module):
    """Norm, relu, convolution, three times; planes in the middle and twice as many out."""

    def __init__(self, inputs, planes):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, planes, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), nn.Conv2d(planes, planes, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), nn.Conv2d(planes, 2 * planes, 1)
        if inputs != 2 * planes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 2 * planes, 1))

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class BearpawHourglass(nn.Module):
    """Levels from the innermost, each a list of places, each a sequence of blocks."""

    def __init__(self, depth, planes, blocks):
        super().__init__()

        def place():
            return nn.Sequential(*(BearpawBlock(2 * planes, planes) for _ in range(blocks)))

        self.hg = nn.ModuleList(nn.ModuleList(place() for _ in range(4 if level == 0 else 3)) for level in range(depth))

    def run(self, level, x):
        places = self.hg[level]
        low = places[1](F.max_pool2d(x, 2, 2))
        low = places[3](low) if level == 0 else self.run(level - 1, low)
        return places[0](x) + F.interpolate(places[2](low), scale_factor=2)

    def forward(self, x):
        return self.run(len(self.hg) - 1, x)


class Bearpaw(nn.Module):
    """All stacks' maps, (b, s, k, h, w)."""

    def __init__(self, stacks, features, depth, blocks, joints):
        super().__init__()
        half = features // 2
        self.conv1, self.bn1 = nn.Conv2d(3, features // 4, 7, 2, 3), nn.BatchNorm2d(features // 4)
        self.layer1 = nn.Sequential(BearpawBlock(features // 4, features // 4))
        self.layer2 = nn.Sequential(BearpawBlock(half, half))
        self.layer3 = nn.Sequential(BearpawBlock(features, half))
        self.hg = nn.ModuleList(BearpawHourglass(depth, half, blocks) for _ in range(stacks))
        self.res = nn.ModuleList(
            nn.Sequential(*(BearpawBlock(features, half) for _ in range(blocks))) for _ in range(stacks)
        )
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Conv2d(features, features, 1), nn.BatchNorm2d(features), nn.ReLU()) for _ in range(stacks)
        )
        self.score = nn.ModuleList(nn.Conv2d(features, joints, 1) for _ in range(stacks))
        self.fc_ = nn.ModuleList(nn.Conv2d(features, features, 1) for _ in range(stacks - 1))
        self.score_ = nn.ModuleList(nn.Conv2d(joints, features, 1) for _ in range(stacks - 1))

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(F.max_pool2d(self.layer1(x), 2, 2)))
        maps = []
        for number, hourglass in enumerate(self.hg):
            y = self.fc[number](self.res[number](hourglass(x)))
            maps.append(self.score[number](y))
            if number < len(self.hg) - 1:
                x = x + self.fc_[number](y) + self.score_[number](maps[-1])
        return maps


class Conv(nn.Module):
    """Princeton's convolution, with batch norm and relu where asked for."""

    def __init__(self, inputs, outputs, kernel, stride=1, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = self.conv(x)
        return F.relu(self.bn(x)) if hasattr(self, "bn") else x


class PrincetonBlock(nn.Module):
    """The same block, with a shortcut layer that is there even where it is not used."""

    def __init__(self, inputs, outputs):
        super().__init__()
        half = outputs // 2
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), Conv(inputs, half, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(half), Conv(half, half, 3)
        self.bn3, self.conv3 = nn.BatchNorm2d(half), Conv(half, outputs, 1)
        self.skip_layer, self.used = Conv(inputs, outputs, 1), inputs != outputs

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + (self.skip_layer(x) if self.used else x)


class PrincetonHourglass(nn.Module):
    """One level, with the next in its middle."""

    def __init__(self, depth, features):
        super().__init__()
        self.up1, self.low1 = PrincetonBlock(features, features), PrincetonBlock(features, features)
        inner = PrincetonHourglass(depth - 1, features) if depth > 1 else PrincetonBlock(features, features)
        self.low2, self.low3 = inner, PrincetonBlock(features, features)

    def forward(self, x):
        low = self.low3(self.low2(self.low1(F.max_pool2d(x, 2, 2))))
        return self.up1(x) + F.interpolate(low, scale_factor=2)


class Merge(nn.Module):
    """A 1x1 convolution in a module of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = Conv(inputs, outputs, 1)

    def forward(self, x):
        return self.conv(x)


class Princeton(nn.Module):
    """All stacks' maps."""

    def __init__(self, stacks, features, depth, joints):
        super().__init__()
        quarter, half = features // 4, features // 2
        self.pre = nn.Sequential(
            Conv(3, quarter, 7, 2, norm=True),
            PrincetonBlock(quarter, half),
            nn.MaxPool2d(2, 2),
            PrincetonBlock(half, half),
            PrincetonBlock(half, features),
        )
        self.hgs = nn.ModuleList(nn.Sequential(PrincetonHourglass(depth, features)) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(PrincetonBlock(features, features), Conv(features, features, 1, norm=True))
            for _ in range(stacks)
        )
        self.outs = nn.ModuleList(Conv(features, joints, 1) for _ in range(stacks))
        self.merge_features = nn.ModuleList(Merge(features, features) for _ in range(stacks - 1))
        self.merge_preds = nn.ModuleList(Merge(joints, features) for _ in range(stacks - 1))

    def forward(self, images):
        x, maps = self.pre(images), []
        for number, hourglass in enumerate(self.hgs):
            y = self.features[number](hourglass(x))
            maps.append(self.outs[number](y))
            if number < len(self.hgs) - 1:
                x = x + self.merge_preds[number](maps[-1]) + self.merge_features[number](y)
        return maps


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions, with torchvision's names."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet18(nn.Module):
    """torchvision's names; pictures come with the three pixels of padding around them that its first layer adds."""

    def __init__(self, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for number in range(1, 5):
            inputs, width = widths[number - 1], widths[number]
            blocks = (BasicBlock(inputs, width, 1 if number == 1 else 2), BasicBlock(width, width, 1))
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, outputs)

    def features(self, padded):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(padded))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))

    def forward(self, padded):
        return self.fc(self.features(padded))
