"""Our parameters under PyTorch's state_dict names and layouts, and back.

A rule, not a table: our modules are called as in PyTorch, with `_0` where PyTorch has
`.0`, and a leaf is renamed and transposed by its name and number of axes. B, C, H, W as
everywhere; O and I are output and input channels of a kernel.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hyperface_jax.backbones import Backbone

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"
_SHOWN = 5

Path = tuple[str, ...]
Tree = Mapping[str, Any]


def to_flax(
    backbone: Backbone, image_size: int, state_dict: Mapping[str, np.ndarray]
) -> tuple[dict, dict]:
    """A PyTorch state_dict as our trees.

    Args:
      backbone: the same network as the state_dict's.
      image_size: height and width of the images that the weights were trained for.
      state_dict: name -> array, without prefixes such as `module.`. BatchNorm's
        `num_batches_tracked` may be there or not; it has no counterpart here.

    Returns:
      (params, batch_stats): nested dicts of float32 NumPy arrays.

    Raises:
      ValueError: a name is missing, superfluous, or has another shape.
    """
    params, batch_stats = _template(backbone, image_size)
    leaves = params | batch_stats
    names = {path: _torch_name(path) for path in leaves}
    counters = {_counter_name(path) for path in batch_stats}
    _check_names(backbone, set(names.values()), counters, set(state_dict))

    def convert(path: Path) -> np.ndarray:
        expected = leaves[path].shape
        found = np.asarray(state_dict[names[path]], np.float32)
        torch_shape = _torch_shape(path, expected)
        if found.shape != torch_shape:
            raise ValueError(
                f"state_dict: {names[path]} is {list(found.shape)}, {backbone.name} "
                f"for {image_size}x{image_size} images expects {list(torch_shape)}"
            )
        return _from_torch_layout(path, found, _map_side(backbone, path, image_size))

    return (
        unflatten_dict({path: convert(path) for path in params}),
        unflatten_dict({path: convert(path) for path in batch_stats}),
    )


def to_torch(
    backbone: Backbone, image_size: int, params: Tree, batch_stats: Tree
) -> dict[str, np.ndarray]:
    """Our trees as a PyTorch state_dict; inverse of `to_flax`.

    Args:
      backbone: the network.
      image_size: height and width of the images that `params` are for.
      params: nested dict of arrays.
      batch_stats: nested dict of arrays, {} without BatchNorm.

    Returns:
      name -> float32 array, with `num_batches_tracked` 0 (int64) for each BatchNorm.

    Raises:
      ValueError: a leaf is missing, superfluous, or has another shape.
    """
    templates = _template(backbone, image_size)
    state_dict = {}
    for template, tree in zip(templates, (params, batch_stats), strict=True):
        leaves = _flatten(tree)
        names = {path: "/".join(path) for path in template}
        _check_names(
            backbone, set(names.values()), set(), {"/".join(p) for p in leaves}, "tree"
        )
        for path, value in leaves.items():
            if value.shape != template[path].shape:
                raise ValueError(
                    f"tree: {names[path]} is {list(value.shape)}, {backbone.name} for "
                    f"{image_size}x{image_size} images expects "
                    f"{list(template[path].shape)}"
                )
            array = np.asarray(value, np.float32)
            side = _map_side(backbone, path, image_size)
            array = _to_torch_layout(path, array, side)
            state_dict[_torch_name(path)] = np.ascontiguousarray(array)
    for path in templates[1]:
        state_dict[_counter_name(path)] = np.zeros((), np.int64)
    return state_dict


def _template(backbone: Backbone, image_size: int) -> tuple[dict, dict]:
    """Path -> shape and dtype, of params and of batch_stats; allocates nothing."""
    params, batch_stats = jax.eval_shape(
        lambda key: backbone.init(key, image_size), jax.random.key(0)
    )
    return _flatten(params), _flatten(batch_stats)


def _flatten(tree: Tree) -> dict[Path, Any]:
    flat: Any = flatten_dict(tree)
    return flat


def _torch_module(path: Path) -> str:
    return re.sub(r"_(\d+)", r".\1", ".".join(path[:-1]))


def _torch_name(path: Path) -> str:
    leaf = _LEAVES.get(path[-1], path[-1])  # pos_embed and the like keep their names
    return ".".join(filter(None, (_torch_module(path), leaf)))


def _counter_name(path: Path) -> str:
    return f"{_torch_module(path)}.{_COUNTER}"


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _map_side(backbone: Backbone, path: Path, image_size: int) -> int:
    """Side of the feature map that the rows of a kernel are; 0: they are none."""
    network = backbone.module
    return image_size // network.stride if path[:-1] == (network.flattened,) else 0


def _to_torch_layout(path: Path, value: np.ndarray, side: int) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    if side:  # rows in the order H, W, C -> C, H, W
        maps = value.reshape(side, side, -1, value.shape[-1])
        value = maps.transpose(2, 0, 1, 3).reshape(value.shape)
    return value.T


def _from_torch_layout(path: Path, value: np.ndarray, side: int) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    value = value.T
    if side:
        maps = value.reshape(-1, side, side, value.shape[-1])
        value = maps.transpose(1, 2, 0, 3).reshape(value.shape)
    return value


def _check_names(
    backbone: Backbone,
    required: set[str],
    optional: set[str],
    found: set[str],
    what: str = "state_dict",
) -> None:
    for kind, names in (
        ("missing", required - found),
        ("superfluous", found - required - optional),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ValueError(
                f"{what} does not fit {backbone.name}: {kind} "
                f"{', '.join(sorted(names)[:_SHOWN])}{more}"
            )
