"""What a PyTorch file cannot say of its network, put into the weights."""

from typing import Any

import numpy as np

from hyperface_jax.interop import state_dicts

TORCH_EPSILON = 1e-5  # of torch.nn.BatchNorm2d


def for_everybody(
    weights: dict[str, np.ndarray], network: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same function of RGB in [-1, 1], with PyTorch's epsilon.

    A file of PyTorch says nothing of its pixels. BGR is turned in the first layer, an
    epsilon goes into the running variances; both are exact.

    Raises:
      ValueError: the range of the pixels is another, which no weights can make up for
        (the first convolution pads with 0).
    """
    low, high = network["value_range"]
    if (low, high) != (-1, 1):
        raise ValueError(
            f"the network was trained on pixels in [{low:g}, {high:g}], which a .pth "
            "cannot say, expected [-1, 1]; --as_is writes it nevertheless"
        )
    weights = dict(weights)
    if network["color_order"] == "BGR":
        first = state_dicts.first_layer(weights)
        weights[first] = np.ascontiguousarray(weights[first][:, ::-1])
    more = network["batch_norm_epsilon"] - TORCH_EPSILON
    for name in weights:
        if name.endswith(".running_var"):
            weights[name] = weights[name] + np.float32(more)
    return weights, network | {
        "color_order": "RGB",
        "batch_norm_epsilon": TORCH_EPSILON,
    }
