"""A loss over classes as functions of any part of them.

A `ClassLoss` prepares embeddings, makes logits of some classes, and finishes with sums
over all of them, so that the classes between the first and the last may come all at
once (`dense`), in chunks or from several devices (`streaming`). No reduction over the
batch: callers take (weighted) means.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hyperface_jax import class_sums, geometry
from hyperface_jax.class_sums import ClassSums
from hyperface_jax.precision import FLOAT32, Products

Prototypes = Literal["project", "differentiate"]
PROTOTYPES = ("project", "differentiate")
Aux = dict[str, Array]


class Examples(NamedTuple):
    """What the classes must know of the examples.

    Attributes:
      vectors: [B, D], to be multiplied with prototypes.
      norms: [B], lengths of the embeddings.
      given: [B] arrays that were made of the whole batch, by their names in
        `margins.MarginContext`: a drawn margin, a quality.
    """

    vectors: Array
    norms: Array
    given: Mapping[str, Array] = {}


class ClassLoss(NamedTuple):
    """A loss that is a softmax over classes, or a plain sum over them.

    Attributes:
      prepare: embeddings [B, D] -> Examples.
      logits: (Examples, prototypes [K, ...], target_cos [B, 1], is_target [B, K]) ->
        (logits [B, K], plain cosines [B, K]) of any K classes; `target_cos` may be
        None where the target is among them.
      finish: (Examples, ClassSums of all classes) -> (loss [B], aux).
      needs_target: logits of other classes depend on target_cos.
      terms: (logits [B, K], is_target [B, K]) -> [B, K], of a loss that is a plain sum
        over classes; it finds the sum in ClassSums.added.
    """

    prepare: Callable[[Array], Examples]
    logits: Callable[[Examples, Array, Array | None, Array], tuple[Array, Array]]
    finish: Callable[[Examples, ClassSums], tuple[Array, Aux]]
    needs_target: bool = False
    terms: Callable[[Array, Array], Array] | None = None

    def sums(
        self,
        examples: Examples,
        prototypes: Float[Array, "K ..."],
        target_cos: Float[Array, "B 1"] | None,
        is_target: Bool[Array, "B K"],
        class_mask: Bool[Array, " K"] | None,
    ) -> ClassSums:
        """What `finish` needs of K classes; arguments as `logits`.

        And `class_mask` [K], False for classes that take no part, or None for all.
        """
        logits, cos = self.logits(examples, prototypes, target_cos, is_target)
        terms = self.terms(logits, is_target) if self.terms else None
        return class_sums.of_logits(logits, cos, is_target, class_mask, terms)


def normalized(embeddings: Float[Array, "B D"]) -> Examples:
    """Unit vectors and lengths: `ClassLoss.prepare` of all losses of angles."""
    embeddings = geometry.at_least_float32(embeddings)
    norms = geometry.magnitude(embeddings)
    return Examples(geometry.l2_normalize(embeddings), norms)


def unit_cosines(
    examples: Examples,
    prototypes: Float[Array, "K ..."],
    prototype_norm: Prototypes,
    products: Products = FLOAT32,
) -> Float[Array, "B K"]:
    """Cosines of normalised examples and prototypes [K, D] or [K, centres, D].

    Args:
      examples: from `normalized`.
      prototypes: unit rows where `prototype_norm` is "project".
      prototype_norm: see `losses.hyperspherical_softmax`.
      products: precision of the matrix products.
    """
    if prototype_norm == "differentiate":
        prototypes = geometry.l2_normalize(prototypes)
    return geometry.class_cosines(examples.vectors, prototypes, products)


def check_prototype_norm(name: str) -> None:
    """Raises a ValueError unless `name` is one of `PROTOTYPES`."""
    if name not in PROTOTYPES:
        raise ValueError(f"prototype_norm is {name!r}, expected one of {PROTOTYPES}")


def dense(
    loss: ClassLoss,
    embeddings: Float[Array, "B D"],
    labels: Int[Array, " B"],
    prototypes: Float[Array, "C ..."],
    class_mask: Bool[Array, " C"] | None = None,
) -> tuple[Float[Array, " B"], Aux]:
    """The loss of each example with the whole matrix of logits [B, C] at once.

    Args:
      loss: the loss.
      embeddings: [B, D], not normalised.
      labels: [B] integers in [0, C); the loss of any other is NaN.
      prototypes: [C, D].
      class_mask: [C], False for padding rows, or None.

    Returns:
      Loss [B] and aux, as `losses.hyperspherical_softmax`.

    Raises:
      ValueError: the shapes do not fit, or labels are no integers.
    """
    check_shapes(embeddings, labels, prototypes)
    labels = wide(labels)
    examples = loss.prepare(embeddings)
    ids = jnp.arange(prototypes.shape[0], dtype=labels.dtype)
    is_target = labels[:, None] == ids[None, :]
    sums = loss.sums(examples, prototypes, None, is_target, class_mask)
    values, aux = loss.finish(examples, sums)
    values = nan_where_unknown(values, labels, len(prototypes))
    if class_mask is not None:
        place = jnp.clip(labels, 0, len(prototypes) - 1)
        values = jnp.where(class_mask[place], values, jnp.nan)
    return values, aux


def wide(labels: Int[Array, " B"]) -> Int[Array, " B"]:
    """At least int32: 300 classes do not fit the bytes that labels may come in."""
    return labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels


def nan_where_unknown(
    values: Float[Array, " B"], labels: Int[Array, " B"], num_classes: int
) -> Float[Array, " B"]:
    """NaN for labels outside [0, C): inside a compiled step nothing else can tell."""
    known = (labels >= 0) & (labels < num_classes)
    return jnp.where(known, values, jnp.nan)


def check_shapes(embeddings: Array, labels: Array, prototypes: Array) -> None:
    """Raises a ValueError that names the shapes unless they are [B, D], [B], [C, D].

    Sub-centres [C, K, D] are prototypes, too.
    """
    x, y, w = embeddings.shape, labels.shape, prototypes.shape
    fits = len(x) == 2 and len(y) == 1 and len(w) in (2, 3)
    fits = fits and x[0] == y[0] and x[-1] == w[-1]
    if not fits:
        raise ValueError(
            f"embeddings, labels, prototypes are {list(x)}, {list(y)}, {list(w)}, "
            "expected [B, D], [B], [C, D]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels are {labels.dtype}, expected integers")


def report(norms: Array, sums: ClassSums, cross_entropy: Array) -> Aux:
    """What the step reports of each example, all [B]; no gradient."""
    aux = {
        "target_cos": sums.target_cos,
        "magnitude": norms,
        "correct": (sums.target_cos > sums.rival).astype(norms.dtype),
        "probability": jnp.exp(-cross_entropy),
    }
    return jax.lax.stop_gradient(aux)
