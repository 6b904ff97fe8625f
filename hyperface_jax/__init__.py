"""SphereFace-R and the hyperspherical face-recognition family in JAX/Flax.

The mathematics are pure functions of arrays and can be used without the rest:

    from hyperface_jax import losses, magnitudes, margins

Importing this package touches no device and no file.
"""

__version__ = "0.1.0"
