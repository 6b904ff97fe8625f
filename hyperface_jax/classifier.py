"""The head: class vectors and the loss over them, as one object for the step.

A `Head` holds everything static (margin, normalisation, schedules); called, it is the
loss, which is all that the train step knows of it. What a loss trains besides the class
vectors (a bias) and what it remembers (running means) are arrays in the train state.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from hyperface_jax import carried as carried_by
from hyperface_jax import (
    class_rows,
    geometry,
    losses,
    magnitudes,
    margins,
    precision,
    regularizers,
    schedules,
    streaming,
    variational,
)
from hyperface_jax.adaptive import Seen
from hyperface_jax.carried import NOTHING_CARRIED, Carried
from hyperface_jax.catalogue import PLAIN_SOFTMAX, check_settings, member_of
from hyperface_jax.class_loss import Aux, ClassLoss, Prototypes
from hyperface_jax.family import Member
from hyperface_jax.margins import Margin
from hyperface_jax.sharding import AXES


@dataclass(frozen=True)
class Head:
    """A loss, bound to its settings.

    Attributes:
      loss: a name of `catalogue.loss_names()`, or a `Margin` or `Member` of your own.
      num_classes: C; further rows of the prototypes are padding and masked out.
      margin: step -> m.
      constants: the loss's own, see `family.constants_of`; default: published.
      norm: "hfn", "nfn" or "sfn".
      scale: s of HFN and SFN.
      annealing: step -> λ of SphereFace 2017, or None.
      penalty: SFN's "l1" or "l2".
      penalty_strength: SFN's t.
      detach: see `margins.angular_functions`.
      clamp: see `margins.angular_functions`.
      interclass_filter: see `losses.hyperspherical`.
      prototype_norm: see `losses.hyperspherical_softmax`.
      loss_weight: lw.
      divide_by_scale: lw/s instead of lw.
      products: precision of the matrix products.
      sample_rate: share of the classes that a step sees; for biases before training.
      chunk: classes at a time, see `streaming.choose_chunk`.
      dense_bytes: see `streaming.choose_chunk`.
      mesh: see `streaming.evaluate`.
      class_axes: see `streaming.evaluate`.
    """

    loss: str | Margin | Member
    num_classes: int
    margin: schedules.Schedule
    constants: Mapping[str, float] = field(default_factory=dict)
    norm: str = "hfn"
    scale: float = 30.0
    annealing: schedules.Schedule | None = None
    penalty: str = "l1"
    penalty_strength: float = 0.01
    detach: margins.Detach = "cosine"
    clamp: margins.Clamp = "exact"
    interclass_filter: float = 0.0
    prototype_norm: Prototypes = "project"
    loss_weight: float = 1.0
    divide_by_scale: bool = True
    products: precision.Products = precision.FLOAT32
    sample_rate: float = 1.0
    chunk: int = 0
    dense_bytes: int = streaming.DENSE_BYTES
    mesh: Mesh | None = None
    class_axes: tuple[str, ...] = AXES

    def __post_init__(self) -> None:
        """Raises a ValueError where the loss has no form for these settings."""
        check_settings(
            *(self.name, self.member),
            *(self.norm, self.interclass_filter, self.sample_rate),
        )
        self._magnitude(self.scale)

    @cached_property
    def member(self) -> Member:
        """See `member_of`."""
        return member_of(self.loss, **self.constants)

    @property
    def name(self) -> str:
        """Of the loss, for messages."""
        return self.loss if isinstance(self.loss, str) else "a loss of your own"

    @property
    def centres(self) -> int:
        """Class vectors of each class."""
        return self.member.centres

    def __call__(
        self,
        embeddings: Array,
        labels: Array,
        prototypes: Array,
        step: Any,
        ids: Array | None = None,
        carried: Carried = NOTHING_CARRIED,
    ) -> tuple[Array, Aux]:
        """The loss of each example.

        Args:
          embeddings: [B, D], not normalised.
          labels: [B].
          prototypes: [R, D], or [R, centres, D].
          step: updates done; the time of schedules.
          ids: [R], classes of the rows where they are not all.
          carried: see `Carried`.

        Returns:
          (loss [B], aux as `losses.hyperspherical_softmax`); aux has "seen", too, for
          losses that remember.

        Raises:
          ValueError: shapes do not fit, or `carried` lacks what the loss needs.
        """
        member, aux = self.member, {}
        carried_by.check(self.name, member, carried)
        m = jnp.asarray(self.margin(step), geometry.at_least_float32(embeddings).dtype)
        annealing = jnp.asarray(self.annealing(step) if self.annealing else 0, m.dtype)
        context = margins.MarginContext(margin=m, annealing=annealing)
        force: dict[str, Any] = {"context": context}
        given: dict[str, Array] = {}
        if member.binary:
            force["bias"] = carried.trained["bias"].astype(m.dtype)
        if member.memory or member.given or member.variational:
            seen = self._look(embeddings, labels, prototypes, ids, carried)
            aux["seen"] = seen
            memory: Any = carried.memory
            if member.memory:
                memory = member.memory.update(memory, seen)
            if member.own_scale:
                force["scale"] = memory["scale"].astype(m.dtype)
            if member.given:
                given = member.given(seen, memory, m, carried.key)
        if member.variational:
            prototypes = variational.mixed(
                prototypes, carried.memory, member.variational, step
            )
        where = (embeddings, labels, prototypes, ids)
        values, report = self._evaluate(self._class_loss, force, *where, given)
        if member.energy:
            values = values + member.energy * self._energy(*where[1:], carried.weight)
        return values, report | aux

    def trained(self) -> dict[str, Array]:
        """The parameters besides the class vectors, before the first step."""
        if not self.member.binary:
            return {}
        classes = max(self.sample_rate * self.num_classes, 2)
        with jax.ensure_compile_time_eval():
            m = float(self.margin(jnp.int32(0)))
        return {"bias": jnp.float32(self.member.binary.bias(m, classes, self.scale))}

    def memory(self, rows: int, dim: int) -> dict[str, Any]:
        """What the loss remembers before the first step; prototypes are [rows, dim]."""
        member = self.member
        if member.variational:
            return variational.empty(rows, dim)
        values = member.memory.init(self.num_classes) if member.memory else {}
        return {name: jnp.float32(value) for name, value in values.items()}

    def remember(self, memory: Any, seen: Seen, step: Any) -> Any:
        """The memory after a step that has `seen` the whole batch."""
        if self.member.variational:
            return variational.remembered(memory, seen, step, **self._mesh)
        return self.member.memory.update(memory, seen) if self.member.memory else memory

    @property
    def _mesh(self) -> dict[str, Any]:
        return {"mesh": self.mesh, "class_axes": self.class_axes}

    def _class_loss(self, force: dict[str, Any]) -> ClassLoss:
        """The loss with what is in force at this step: context, bias, scale."""
        if self.loss == PLAIN_SOFTMAX:
            return losses.plain(loss_weight=self.loss_weight, products=self.products)
        settings: dict[str, Any] = {
            "detach": self.detach,
            "clamp": self.clamp,
            "prototype_norm": self.prototype_norm,
            "products": self.products,
            "loss_weight": self.loss_weight,
            "divide_by_scale": self.divide_by_scale,
        }
        if self.member.binary:
            return self.member.binary.loss(**force, scale=self.scale, **settings)
        scale = force.get("scale", self.scale)
        return losses.hyperspherical(
            margin=self.member.margin,
            context=force["context"],
            magnitude=self._magnitude(scale),
            interclass_filter=self.interclass_filter,
            **settings,
        )

    def _magnitude(self, scale: geometry.Scalar) -> magnitudes.Magnitude:
        return magnitudes.of_norm(self.norm, scale, self.penalty_strength, self.penalty)

    def _evaluate(self, loss_of, force, embeddings, labels, prototypes, ids, given):
        return streaming.evaluate(
            loss_of,
            force,
            embeddings,
            labels,
            prototypes,
            num_classes=self.num_classes,
            ids=ids,
            given=given,
            chunk=self.chunk,
            dense_bytes=self.dense_bytes,
            **self._mesh,
        )

    def _look(self, embeddings, labels, prototypes, ids, carried: Carried) -> Seen:
        """What the loss asks for before it is computed; no gradient."""
        embeddings, prototypes = jax.lax.stop_gradient(
            (geometry.at_least_float32(embeddings), prototypes)
        )
        norms = geometry.magnitude(embeddings)
        weight = jnp.ones_like(norms) if carried.weight is None else carried.weight
        seen = Seen(embeddings, norms, labels, weight)
        if "target_cos" in self.member.looks_at:
            own = class_rows.take(prototypes, labels, ids=ids, **self._mesh)
            seen = seen._replace(target_cos=geometry.own_cosines(embeddings, own))
        if "others" in self.member.looks_at:
            scale = carried.memory["scale"].astype(norms.dtype)
            others, _ = self._evaluate(
                losses.of_the_others, scale, embeddings, labels, prototypes, ids, {}
            )
            seen = seen._replace(others=others)
        return seen

    def _energy(self, labels, prototypes, ids, weight: Array | None) -> Array:
        own = class_rows.take(prototypes, labels, ids=ids, **self._mesh)
        if self.prototype_norm == "differentiate":
            own = geometry.l2_normalize(own)
        kept = jnp.ones(len(labels), bool) if weight is None else weight > 0
        return regularizers.minimum_hyperspherical_energy(own, labels, kept)
