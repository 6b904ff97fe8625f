"""Which of our backbones a state_dict is for, from its names and shapes.

A guess: `backbones.torch_names.to_flax` compares every name and shape afterwards.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]
Table = dict[tuple[int, ...], str]

# Family -> (a name that no other has, the weight whose rows are the embedding).
_FAMILIES = {
    "ir": ("input_layer.0.weight", "output_layer.3.weight"),
    "mbf": ("conv_sep.layers.0.weight", "features.layers.2.weight"),
    "vit": ("patch_embed.proj.weight", "feature.2.weight"),
    "iresnet": ("prelu.weight", "fc.weight"),
    "sfnet": ("layer1.0.conv1.weight", "fc.weight"),  # an IResNet has this, too
}

# Residual blocks of each stage.
_IRESNETS: Table = {
    (2, 2, 2, 2): "iresnet18",
    (3, 4, 6, 3): "iresnet34",
    (3, 4, 14, 3): "iresnet50",
    (3, 13, 30, 3): "iresnet100",
    (6, 26, 60, 6): "iresnet200",
}
_IRS: Table = {
    (2, 2, 2, 2): "ir18",
    (3, 4, 6, 3): "ir34",
    (3, 4, 14, 3): "ir50",
    (3, 13, 30, 3): "ir100",
}
_SFNETS: Table = {
    (0, 0, 0, 0): "sfnet4",
    (0, 1, 2, 0): "sfnet10",
    (1, 2, 4, 1): "sfnet20",
    (2, 4, 8, 2): "sfnet36",
    (3, 8, 16, 3): "sfnet64",
}
_MBFS: Table = {(1, 4, 6, 2): "mbf", (2, 8, 12, 4): "mbf_large"}
# (width, blocks)
_VITS: Table = {
    (256, 12): "vit_t",
    (512, 12): "vit_s",
    (512, 24): "vit_b",
    (768, 24): "vit_l",
    (1024, 48): "vit_h",
}


def guess_backbone(weights: Weights) -> str:
    """Name in `backbones.BACKBONES`.

    Args:
      weights: name -> array, without prefixes.

    Raises:
      ValueError: none fits, with what was found; or several, with their names.
    """
    names = fitting_backbones(weights)
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(
            f"state_dict: fits {' and '.join(names)}, which have the same names and "
            "shapes; say which it is"
        )
    raise ValueError(
        f"state_dict: {_described(weights)}, which is none of our backbones"
    )


def fitting_backbones(weights: Weights) -> tuple[str, ...]:
    """Names in `backbones.BACKBONES` that fit; () if none does.

    Raises:
      ValueError: not the names of any network known here.
    """
    kind, shape = family(weights), _shape(weights)
    if kind == "sfnet" and shape in _SFNETS:
        name = _SFNETS[shape]
        if "layer1.0.bn1.weight" in weights:
            return (f"{name}_bn",)
        return (name, f"{name}_deprecated")
    tables = {"ir": _IRS, "iresnet": _IRESNETS, "mbf": _MBFS, "vit": _VITS}
    table = tables.get(kind, {})
    return (table[shape],) if shape in table else ()


def family(weights: Weights) -> str:
    """One of "ir", "mbf", "vit", "iresnet", "sfnet".

    Raises:
      ValueError: not the names of any of these.
    """
    for kind, (marker, _) in _FAMILIES.items():
        if marker in weights:
            return kind
    shown = ", ".join(repr(name[:60]) for name in sorted(weights)[:3])
    raise ValueError(
        f"state_dict: {len(weights)} names ({shown} ...) of no network known here; "
        f"expected one of {', '.join(marker for marker, _ in _FAMILIES.values())}"
    )


def first_layer(weights: Weights) -> str:
    """Name of the weight [out, in, ...] that the pixels' channels go into."""
    kind = family(weights)
    first = {"iresnet": "conv1.weight", "mbf": "layers.0.layers.0.weight"}
    return first.get(kind, _FAMILIES[kind][0])


def embedding_dim(weights: Weights) -> int:
    """D.

    Raises:
      ValueError: the last layer is missing.
    """
    kind = family(weights)
    name = _FAMILIES[kind][1]
    if name not in weights or weights[name].ndim != 2:
        raise ValueError(f"state_dict: no matrix {name}, the last layer of {kind}")
    return weights[name].shape[0]


def width(weights: Weights) -> int:
    """`width` of our network: channels of the first stage, 64 if published."""
    kind = family(weights)
    if kind in ("vit", "mbf"):
        return 64
    first = "conv1.weight" if kind == "iresnet" else _FAMILIES[kind][0]
    if first not in weights or not weights[first].ndim:
        raise ValueError(f"state_dict: no {first}, the first layer of {kind}")
    return weights[first].shape[0]


def image_size(weights: Weights) -> int:
    """Side in pixels of the images that the weights are for.

    A ViT does not look at what is left of its last patch: its 12x12 patches of 9 pixels
    are taken for 112.
    """
    kind = family(weights)
    if kind == "vit":
        side = math.isqrt(_named(weights, "pos_embed", 3).shape[1])
        return 112 if side == 12 else 9 * side
    if kind == "mbf":
        return 16 * _named(weights, "features.layers.0.layers.0.weight", 4).shape[-1]
    last = _named(weights, _FAMILIES[kind][1], 2)
    return 16 * math.isqrt(last.shape[-1] // (8 * width(weights)))


def _named(weights: Weights, name: str, axes: int) -> np.ndarray:
    if name not in weights or weights[name].ndim != axes:
        raise ValueError(
            f"state_dict: no {name} of {axes} axes, which tells the size of the images"
        )
    return weights[name]


def _shape(weights: Weights) -> tuple[int, ...]:
    """What the tables above are about; (-1,) if it is something else."""
    kind = family(weights)
    if kind == "ir":
        if any(".se_block." in name or ".res_layer.6." in name for name in weights):
            return (-1,)  # squeeze-and-excitation, or bottlenecks
        return _ir_stages(weights)
    if kind == "vit":
        width = weights["patch_embed.proj.weight"].shape[:1]
        return *width, _count(weights, r"blocks\.(\d+)\.")
    if kind == "mbf":
        first = _count(weights, r"layers\.1\.layers\.(\d+)\.layers\.0\.layers\.0\.")
        rest = (
            _count(weights, rf"layers\.{n}\.layers\.(\d+)\.layers\.0\.layers\.0\.")
            for n in (3, 5, 7)
        )
        return (first or 1, *rest)
    blocks = tuple(_count(weights, rf"layer{n}\.(\d+)\.") for n in range(1, 5))
    return tuple(n - 1 for n in blocks) if kind == "sfnet" else blocks


def _count(weights: Weights, pattern: str) -> int:
    """Different numbers at the place of the group."""
    found = (re.match(pattern, name) for name in weights)
    return len({match.group(1) for match in found if match})


def _ir_stages(weights: Weights) -> tuple[int, ...]:
    """Blocks of each width, in the order of `body`."""
    widths: dict[int, int] = {}
    for name, value in weights.items():
        if re.fullmatch(r"body\.\d+\.res_layer\.4\.weight", name) and value.ndim:
            widths[value.shape[0]] = widths.get(value.shape[0], 0) + 1
    return tuple(widths[width] for width in sorted(widths))


def _described(weights: Weights) -> str:
    shape = _shape(weights)
    if shape == (-1,):
        return "an IR network of bottlenecks or with squeeze-and-excitation"
    what = "width and blocks" if family(weights) == "vit" else "blocks"
    return f"{family(weights)} names with {what} {', '.join(map(str, shape))}"
