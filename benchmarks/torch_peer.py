"""PyTorch's side of the benchmarks: the same networks and loss, in its own words.

Networks are functions of a state_dict of InsightFace's or OpenSphere's names, as
`backbones.torch_names.to_torch` writes them from our parameters.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

STATISTICS = ("running_mean", "running_var")


class Network:
    """An IResNet or SFNet of any depth and width; NCHW in [-1, 1] -> embeddings."""

    def __init__(
        self,
        name: str,
        weights: Mapping[str, np.ndarray],
        *,
        device: str,
        dtype: torch.dtype = torch.float32,
        train: bool,
    ):
        """Places the weights.

        Args:
          name: one of our names, such as "iresnet50" or "sfnet20_deprecated".
          weights: the state_dict.
          device: "cpu" or "cuda".
          dtype: of weights; under autocast float32.
          train: batch statistics (running ones are updated), or the running ones.
        """
        self.forward = self._iresnet if name.startswith("iresnet") else self._sfnet
        self.older_layout = name.endswith("_deprecated")
        self.dtype, self.train = dtype, train
        self.tensors = {
            key: torch.tensor(np.asarray(value), device=device)
            for key, value in weights.items()
        }
        for key, tensor in self.tensors.items():
            if tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.tensors[key] = tensor
        if train:
            for tensor in self.parameters:
                tensor.requires_grad_()

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What is trained: not the statistics, nor the last scale, which stays 1."""
        left_out = (*STATISTICS, "tracked")
        return [
            tensor
            for key, tensor in self.tensors.items()
            if not key.endswith(left_out) and key != "features.weight"
        ]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)

    def _norm(self, x, name):
        t = self.tensors
        if f"{name}.weight" not in t:
            return x
        statistics = [t[f"{name}.{key}"] for key in STATISTICS]
        scale, bias = t[f"{name}.weight"], t[f"{name}.bias"]
        return F.batch_norm(x, *statistics, scale, bias, self.train, momentum=0.1)

    def _conv(self, x, name, stride=1):
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, (weight.shape[-1] - 1) // 2)

    def _embed(self, x):
        # The authors leave autocast for this product.
        x = x.flatten(1).to(self.dtype)
        with torch.autocast(x.device.type, enabled=False):
            x = F.linear(x, self.tensors["fc.weight"], self.tensors["fc.bias"])
        return self._norm(x, "features")

    def _blocks(self, stage: int, first: int) -> list[str]:
        names, number = [], first
        while f"layer{stage}.{number}.conv1.weight" in self.tensors:
            names.append(f"layer{stage}.{number}")
            number += 1
        return names

    def _iresnet(self, x):
        x = self._norm(self._conv(x, "conv1"), "bn1")
        x = F.prelu(x, self.tensors["prelu.weight"])
        for stage in range(1, 5):
            for i, at in enumerate(self._blocks(stage, 0)):
                stride = 1 if i else 2
                y = self._conv(self._norm(x, f"{at}.bn1"), f"{at}.conv1")
                slope = self.tensors[f"{at}.prelu.weight"]
                y = F.prelu(self._norm(y, f"{at}.bn2"), slope)
                y = self._norm(self._conv(y, f"{at}.conv2", stride), f"{at}.bn3")
                if stride == 2:
                    x = self._conv(x, f"{at}.downsample.0", 2)
                    x = self._norm(x, f"{at}.downsample.1")
                x = x + y
        return self._embed(self._norm(x, "bn2"))

    def _sfnet(self, x):
        for stage in range(1, 5):
            at = f"layer{stage}.0"
            x = F.relu(self._norm(self._conv(x, f"{at}.conv1", 2), f"{at}.bn1"))
            for at in self._blocks(stage, 1):
                y = F.relu(self._norm(self._conv(x, f"{at}.conv1"), f"{at}.bn1"))
                y = self._norm(self._conv(y, f"{at}.conv2"), f"{at}.bn2")
                x = x + F.relu(y) if self.older_layout else F.relu(x + y)
        return self._embed(x)


def loss(
    embeddings: torch.Tensor,
    prototypes: torch.Tensor,
    labels: torch.Tensor,
    *,
    margin: float,
    scale: float,
    weight: float,
) -> torch.Tensor:
    """SphereFace-R v2, hard normalisation, characteristic gradient detachment.

    Args:
      embeddings: [B, D].
      prototypes: [C, D], unit rows.
      labels: int64 [B].
      margin: m.
      scale: s.
      weight: lw; the loss is multiplied by lw / s.
    """
    cos = F.normalize(embeddings) @ prototypes.T
    with torch.no_grad():
        angle = torch.arccos(cos.clamp(-1, 1))
        moved = torch.cos(angle / margin)
        rows = torch.arange(len(labels), device=labels.device)
        moved[rows, labels] = cos[rows, labels]
        delta = moved - cos
    return weight / scale * F.cross_entropy(scale * (cos + delta), labels)
