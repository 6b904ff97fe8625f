"""SphereFace-R and the hyperspherical face-recognition family in JAX/Flax.

Pure functions of arrays, for any training loop (docs/library.md):

    losses           the hyperspherical softmax of embeddings, labels and prototypes
    margins          psi and eta of each loss; peer_margins: those with constants
    magnitudes       rho: hard, no, soft feature normalisation
    binary           SphereFace2 and UniFace, sums over classes
    regularizers     SphereFace+'s energy
    geometry         norms, cosines and multiples of angles with exact slopes
    schedules        step -> margin, annealing, learning rate
    class_loss       a loss as functions of any part of the classes
    streaming        a loss over all of them, in chunks and on several devices
    precision        of the products of embeddings and prototypes
    family           every loss by name; adaptive, variational: what some of them need
    catalogue        every loss by name, plain softmax included
    classifier       a loss bound to its settings: Head
    carried          its other parameters and memory: Carried
    class_vectors    prototypes before the first step
    optimizer        over network and prototypes, with PyTorch's rules

They are loaded when they are first used: importing this package touches no device and
no file. The other modules are the program around them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperface_jax import (
        adaptive,
        binary,
        carried,
        catalogue,
        class_loss,
        class_vectors,
        classifier,
        family,
        geometry,
        losses,
        magnitudes,
        margins,
        optimizer,
        peer_margins,
        precision,
        regularizers,
        schedules,
        streaming,
        variational,
    )

__version__ = "0.1.0"

__all__ = [
    "adaptive",
    "binary",
    "carried",
    "catalogue",
    "class_loss",
    "class_vectors",
    "classifier",
    "family",
    "geometry",
    "losses",
    "magnitudes",
    "margins",
    "optimizer",
    "peer_margins",
    "precision",
    "regularizers",
    "schedules",
    "streaming",
    "variational",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
