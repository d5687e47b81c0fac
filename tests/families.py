"""Public U-Nets restated from the tables of their weights' names, as independent judges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
UPCONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def crop(skip: Tensor, like: Tensor) -> Tensor:
    """The centre of `skip`, of the size of `like`."""
    for axis in range(2, skip.ndim):
        extra = skip.shape[axis] - like.shape[axis]
        skip = skip.narrow(axis, extra // 2, like.shape[axis])
    return skip


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and batch-norm statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif key.endswith(("running_var", "weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.uniform_(-0.3, 0.3, generator=generator)
    return network.eval()


class JvBlock(nn.Module):
    def __init__(self, inputs: int, width: int, batch_norm: bool, padding: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, width):
            layers += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU()]
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class JvUp(nn.Module):
    def __init__(
        self, inputs: int, width: int, up_mode: str, batch_norm: bool, padding: int
    ) -> None:
        super().__init__()
        self.up: nn.Module = (
            nn.ConvTranspose2d(inputs, width, 2, stride=2)
            if up_mode == "upconv"
            else nn.Sequential(
                nn.Upsample(mode="bilinear", scale_factor=2), nn.Conv2d(inputs, width, 1)
            )
        )
        self.conv_block = JvBlock(inputs, width, batch_norm, padding)


class Jvanvugt(nn.Module):
    """Concatenates [up, skip]; batch norm after the ReLU."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        depth: int = 3,
        wf: int = 2,
        batch_norm: bool = False,
        up_mode: str = "upconv",
        padding: int = 0,
    ) -> None:
        super().__init__()
        widths = [2 ** (wf + level) for level in range(depth)]
        inputs = [channels, *widths]
        self.down_path = nn.ModuleList(
            JvBlock(inputs[level], widths[level], batch_norm, padding) for level in range(depth)
        )
        self.up_path = nn.ModuleList(
            JvUp(widths[level + 1], widths[level], up_mode, batch_norm, padding)
            for level in reversed(range(depth - 1))
        )
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down_path[:-1]:
            x = down(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.down_path[-1](x)
        for up in self.up_path:
            x = up.up(x)
            x = up.conv_block(torch.cat([x, crop(skips.pop(), x)], 1))
        return self.last(x)


class Hayashimasa(nn.Module):
    """Concatenates [skip, up]; one batch norm for both convolutions of a block, before the ReLU."""

    def __init__(
        self, widths: tuple[int, ...] = (3, 5, 8), classes: int = 2, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        inputs = [1, *widths]
        for level, width in enumerate(widths):
            block = self._block(inputs[level], width, batch_norm)
            pool = [nn.MaxPool2d(2)] if level else []
            setattr(self, f"contract{level + 1}", nn.Sequential(*pool, *block))
        for number, level in enumerate(reversed(range(self.depth)), 1):
            up = nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2)
            setattr(self, f"up{number}", up)
            block = self._block(2 * widths[level], widths[level], batch_norm)
            setattr(self, f"deconv{number}", nn.Sequential(*block))
        self.segment = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _block(inputs: int, width: int, batch_norm: bool) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        return [
            nn.Conv2d(inputs, width, 3), *norm, nn.ReLU(),
            nn.Conv2d(width, width, 3), *norm, nn.ReLU(),
        ]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in range(self.depth + 1):
            x = getattr(self, f"contract{level + 1}")(x)
            skips.append(x)
        skips.pop()
        for number in range(1, self.depth + 1):
            x = getattr(self, f"up{number}")(x)
            x = getattr(self, f"deconv{number}")(torch.cat([crop(skips.pop(), x), x], 1))
        return self.segment(x)


class JoDown(nn.Module):
    def __init__(self, inputs: int, width: int, norm: bool, dim: int, padding: int) -> None:
        super().__init__()
        self.conv1 = CONV[dim](inputs, width, 3, padding=padding)
        self.conv2 = CONV[dim](width, width, 3, padding=padding)
        if norm:
            self.norm1, self.norm2 = NORM[dim](width), NORM[dim](width)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = self.norm1(x) if self.norm else x
        x = self.conv2(x).relu()
        return self.norm2(x) if self.norm else x


class JoUp(JoDown):
    def __init__(
        self, inputs: int, width: int, norm: bool, dim: int, padding: int, mode: str
    ) -> None:
        nn.Module.__init__(self)
        if mode == "transposed":
            self.up: nn.Module = UPCONV[dim](inputs, width, 2, stride=2)
        else:
            self.up = nn.Upsample(scale_factor=2.0, mode=mode)
        self.conv0 = CONV[dim](inputs, width, 1)
        self.conv1 = CONV[dim](2 * width, width, 3, padding=padding)
        self.conv2 = CONV[dim](width, width, 3, padding=padding)
        if norm:
            self.norm0, self.norm1, self.norm2 = (NORM[dim](width) for _ in range(3))
        self.norm, self.mode = norm, mode

    def raised(self, x: Tensor) -> Tensor:
        x = self.up(x)
        x = x if self.mode == "transposed" else self.conv0(x)
        return self.norm0(x.relu()) if self.norm else x.relu()


class Johschmidt42(nn.Module):
    """Concatenates [up, skip]; ReLU (and norm after it) behind the up-convolution, too."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        n_blocks: int = 3,
        start: int = 4,
        norm: bool = True,
        dim: int = 2,
        mode: str = "transposed",
        padding: int = 0,
    ) -> None:
        super().__init__()
        widths = [start * 2**level for level in range(n_blocks)]
        inputs = [channels, *widths]
        self.pool = functional.max_pool2d if dim == 2 else functional.max_pool3d
        # Its own code registers the head before the blocks.
        self.conv_final = CONV[dim](widths[0], classes, 1)
        self.down_blocks = nn.ModuleList(
            JoDown(inputs[level], widths[level], norm, dim, padding) for level in range(n_blocks)
        )
        self.up_blocks = nn.ModuleList(
            JoUp(widths[level + 1], widths[level], norm, dim, padding, mode)
            for level in reversed(range(n_blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down_blocks[:-1]:
            x = block(x)
            skips.append(x)
            x = self.pool(x, 2)
        x = self.down_blocks[-1](x)
        for block in self.up_blocks:
            x = block.raised(x)
            x = block(torch.cat([x, crop(skips.pop(), x)], 1))
        return self.conv_final(x)


class MiDouble(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, width):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)


class MiDown(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), MiDouble(inputs, width))


class MiUp(nn.Module):
    def __init__(self, inputs: int, width: int, bilinear: bool) -> None:
        super().__init__()
        if not bilinear:
            self.up = nn.ConvTranspose2d(inputs, width, 2, stride=2)
        self.conv = MiDouble(inputs if not bilinear else inputs + width, width)


class MiOut(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, classes, 1)


class Milesial(nn.Module):
    """Padded; concatenates [skip, up]; convolutions without bias, batch norm before the ReLU."""

    def __init__(self, bilinear: bool = False, start: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.depth = depth
        widths = [start * 2**level for level in range(depth + 1)]
        self.inc = MiDouble(1, widths[0])
        for level in range(1, depth + 1):
            setattr(self, f"down{level}", MiDown(widths[level - 1], widths[level]))
        for number, level in enumerate(reversed(range(depth)), 1):
            setattr(self, f"up{number}", MiUp(widths[level + 1], widths[level], bilinear))
        self.outc = MiOut(widths[0], 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc.double_conv(x)
        skips = []
        for level in range(1, self.depth + 1):
            skips.append(x)
            pool, block = getattr(self, f"down{level}").maxpool_conv
            x = block.double_conv(pool(x))
        for number in range(1, self.depth + 1):
            up = getattr(self, f"up{number}")
            x = up.conv.double_conv(torch.cat([skips.pop(), up.up(x)], 1))
        return self.outc.conv(x)


class LaDouble(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).relu()


class LaUp(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, width, 2, stride=2)


class Labmlai(nn.Module):
    """Padded; concatenates [up, skip]."""

    def __init__(self, widths: tuple[int, ...] = (2, 4, 8)) -> None:
        super().__init__()
        inputs = [1, *widths]
        levels = range(len(widths) - 1)
        self.down_conv = nn.ModuleList(LaDouble(inputs[i], widths[i]) for i in levels)
        self.middle_conv = LaDouble(widths[-2], widths[-1])
        self.up_sample = nn.ModuleList(LaUp(widths[i + 1], widths[i]) for i in reversed(levels))
        self.up_conv = nn.ModuleList(LaDouble(2 * widths[i], widths[i]) for i in reversed(levels))
        self.final_conv = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.down_conv:
            x = down(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.middle_conv(x)
        for sample, block in zip(self.up_sample, self.up_conv, strict=True):
            x = block(torch.cat([sample.up(x), skips.pop()], 1))
        return self.final_conv(x)
