"""SphereFace-R and the hyperspherical face-recognition family in JAX/Flax.

The mathematics are pure functions of arrays and can be used without the rest:

    from hyperface_jax import losses, magnitudes, margins

    geometry       norms, cosines and angles, with sound derivatives
    margins        psi and eta of each margin; peer_margins: those with constants
    magnitudes     how the length of an embedding enters: HFN, NFN, SFN
    losses         the hyperspherical softmax, an example at a time; plain softmax
    binary         SphereFace2 and UniFace: sums over classes
    regularizers   minimum hyperspherical energy (SphereFace+)
    family         every loss by name, with its published constants
    classifier     `Head`: a loss with its settings, memory and trained bias
    streaming      any loss over millions of classes, in chunks and over devices
    schedules      margins and learning rates over time
    optimizer      SGD and AdamW, with the prototypes back on the sphere
    model          a trained network on its own

Importing this package touches no device and no file; modules are imported when they
are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperface_jax import (
        adaptive,
        binary,
        class_loss,
        class_vectors,
        classifier,
        family,
        geometry,
        losses,
        magnitudes,
        margins,
        model,
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
    "class_loss",
    "class_vectors",
    "classifier",
    "family",
    "geometry",
    "losses",
    "magnitudes",
    "margins",
    "model",
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
