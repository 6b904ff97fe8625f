"""Whose weights are in a file: the state_dict in its wrapper, and what it expects.

    found = find_state_dict(torch_file.read("checkpoint_gpu_0.pt"))
    found.weights, found.prototypes, found.color_order, guess_backbone(found.weights)

Names come out as in `backbones.torch_names`, without prefixes such as `module.`.
Sources of names and layouts: the peers' training scripts, listed at `_unwrap`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hyperface_jax.interop.guess import (
    embedding_dim,
    family,
    first_layer,
    fitting_backbones,
    guess_backbone,
    image_size,
    width,
)
from hyperface_jax.interop.torch_objects import Opaque

__all__ = [
    "LAYOUTS",
    "StateDict",
    "find_state_dict",
    "first_layer",
    "guess_backbone",
    "image_size",
    "width",
]

_SHOWN = 5

LAYOUTS: dict[str, tuple[str | None, tuple[float, float]]] = {
    "insightface": ("RGB", (-1.0, 1.0)),
    "opensphere": ("RGB", (-1.0, 1.0)),
    "adaface": ("BGR", (-1.0, 1.0)),
    "cvlface": (None, (-1.0, 1.0)),
    "magface": ("BGR", (0.0, 1.0)),
}
"""Program -> channel order (None: the file does not say) and range of the pixels."""

# Files whose state_dict has the backbone and the head: prefix and first convolution of
# the one, prefixes of the other, layout, and whether prototypes are columns. MagFace
# run/trainer_dist.py and run/trainer.py; AdaFace train_val.py (Lightning).
_JOINT = (
    ("features.module.", "conv1.weight", ("parallel_fc.", "fc."), "magface", False),
    ("module.features.", "conv1.weight", ("module.fc.",), "magface", True),
    ("model.", "input_layer.0.weight", ("head.",), "adaface", True),
)

_IR_NAME = "input_layer.0.weight"

# OpenSphere's branch SphereFace2_ICLR21, which has the older layout of SFNet only.
_FIRST_CONV = re.compile(r"^(layer[1-4]\.0)\.conv\.")


@dataclass(frozen=True)
class StateDict:
    """Weights of another program.

    Attributes:
      weights: name -> array, of the backbone; BatchNorm's counters included.
      prototypes: [C, D], not normalised; None if the file has none. Of a
        checkpoint_gpu_{rank}.pt these are the classes of that rank only.
      layout: key in `LAYOUTS`.
      color_order: "RGB", "BGR", or None: a model of CVLface has it in its config, and
        the same names without a prefix are CurricularFace's, TFace's and AdaFace's.
      value_range: (lowest, highest) value of a pixel.
      embedding_dim: D.
      candidates: names in `backbones.BACKBONES` that fit. More than one for SFNets
        without BatchNorm: whether ReLU comes before or after the sum is not in the
        weights. Empty if the network is not one of ours.
    """

    weights: dict[str, np.ndarray]
    prototypes: np.ndarray | None
    layout: str
    color_order: str | None
    value_range: tuple[float, float]
    embedding_dim: int
    candidates: tuple[str, ...]


def find_state_dict(loaded: Any, head: Any = None) -> StateDict:
    """The backbone, and the prototypes if they are there.

    Args:
      loaded: as from `torch_file.read`.
      head: the same of a second file, where a program writes the head apart:
        OpenSphere's head_{it}.pth, InsightFace's rank_{r}_softmax_weight.pt.

    Raises:
      ValueError: there is no state_dict, something in it is not an array, its names
        are those of no network, or the prototypes do not fit.
    """
    parts = _unwrap(loaded)
    weights = {name: _array(name, value) for name, value in parts.weights.items()}
    newer = {_FIRST_CONV.sub(r"\1.conv1.", name): v for name, v in weights.items()}
    layout = parts.layout or _layout_of(newer)
    color_order, value_range = LAYOUTS[layout]
    dim = embedding_dim(newer)
    candidates = fitting_backbones(newer)
    if newer.keys() != weights.keys():
        candidates = tuple(n for n in candidates if n.endswith("_deprecated"))
    return StateDict(
        weights=newer,
        prototypes=_prototypes(
            parts.head if head is None else head, dim, parts.columns
        ),
        layout=layout,
        color_order=color_order,
        value_range=value_range,
        embedding_dim=dim,
        candidates=candidates,
    )


class _Parts(NamedTuple):
    """What a wrapper holds.

    Attributes:
      weights: names of the backbone -> values.
      head: its names -> values, the prototypes alone, or None.
      layout: None where the wrapper does not tell.
      columns: prototypes are the columns of a matrix [D, C].
    """

    weights: Mapping[str, Any]
    head: Any = None
    layout: str | None = None
    columns: bool = False


def _unwrap(loaded: Any) -> _Parts:
    """The parts of every file that we know of.

    InsightFace train_v2.py: {state_dict_backbone, state_dict_softmax_fc}, or the plain
    state_dict. OpenSphere: branch OpenSphere_v0 runner.py, the plain one with
    `module.`; branch SphereFace2_ICLR21 opensphere.py and branch main model.py,
    {backbone, head}; main base_trainer.py, the same under `model`. The others: `_JOINT`
    and, CVLface models/base/utils.py, the plain one with `net.`.
    """
    tree = _mapping(loaded, "file")
    if "state_dict_backbone" in tree:
        weights = _mapping(tree["state_dict_backbone"], "state_dict_backbone")
        return _Parts(weights, tree.get("state_dict_softmax_fc"), "insightface")
    if isinstance(tree.get("model"), Mapping) and "backbone" in tree["model"]:
        tree = tree["model"]
    if "backbone" in tree:
        weights = _mapping(tree["backbone"], "backbone")
        weights = _under("module.", weights) if _has(weights, "module.") else weights
        return _Parts(weights, tree.get("head"), "opensphere")
    if "state_dict" in tree:
        tree = _mapping(tree["state_dict"], "state_dict")
    for prefix, first, heads, layout, columns in _JOINT:
        if prefix + first in tree:
            weights = _under(prefix, tree, heads)
            head = {n.split(".")[-1]: v for n, v in tree.items() if n.startswith(heads)}
            return _Parts(weights, head, layout, columns)
    if _has(tree, "module."):
        weights = _under("module.", tree)
        # OpenSphere saves so, and anybody's DistributedDataParallel; it has no IR.
        return _Parts(weights, None, None if _IR_NAME in weights else "opensphere")
    if _has(tree, "net."):
        return _Parts(_under("net.", tree), None, "cvlface")
    return _Parts(tree)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what}: found a {_kind(value)}, expected a state_dict")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"{what}: a {_kind(name)} as name, expected text")
    return value


def _kind(value: Any) -> str:
    return str(value) if isinstance(value, Opaque) else type(value).__name__


def _has(tree: Mapping[Any, Any], prefix: str) -> bool:
    return any(str(name).startswith(prefix) for name in tree)


def _under(
    prefix: str, tree: Mapping[str, Any], others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The names below a prefix, without it; all the rest must be below `others`."""
    rest = sorted(repr(n[:80]) for n in tree if not n.startswith((prefix, *others)))
    if rest:
        more = f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
        raise ValueError(
            f"state_dict: names not below {prefix}: {', '.join(rest[:_SHOWN])}{more}"
        )
    return {n[len(prefix) :]: v for n, v in tree.items() if n.startswith(prefix)}


def _array(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"state_dict: {name[:80]!r} is a {_kind(value)}, expected a tensor"
        )
    if value.dtype.kind != "f" and not name.endswith("num_batches_tracked"):
        raise ValueError(f"state_dict: {name[:80]!r} is {value.dtype}, expected floats")
    return value


def _layout_of(weights: Mapping[str, np.ndarray]) -> str:
    """Of a state_dict without wrapper or prefix."""
    return {"sfnet": "opensphere", "ir": "cvlface"}.get(family(weights), "insightface")


def _prototypes(head: Any, dim: int, columns: bool) -> np.ndarray | None:
    """[C, D] from InsightFace's `weight`, OpenSphere's `w` or AdaFace's `kernel`.

    The matrix says itself which way round it is, unless C = D.
    """
    if isinstance(head, Mapping):
        # OpenSphere's main branch alone saves its heads without `module.`.
        columns = columns or _has(head, "module.")
        named = {str(n).removeprefix("module."): v for n, v in head.items()}
        found = [named[name] for name in ("weight", "w", "kernel") if name in named]
        if not found:
            return None
        head = found[0]
    if head is None:
        return None
    if not isinstance(head, np.ndarray):
        raise ValueError(f"head: found a {_kind(head)}, expected a matrix")
    if head.ndim != 2 or dim not in head.shape:
        raise ValueError(
            f"head: prototypes are {list(head.shape)}, expected [C, {dim}] or "
            f"[{dim}, C]"
        )
    if head.dtype.kind != "f" or not np.isfinite(head).all():
        raise ValueError("head: prototypes that are no finite numbers")
    if head.shape[0] != head.shape[1]:
        columns = head.shape[0] == dim
    return head.T if columns else head
