"""The whole family by name: what each loss is made of, with its published constants.

A `Member` puts together a margin and whatever else a loss needs: a trained bias, a
memory, a number for each example, sub-centres. Members without constants of their own
are rows of `margins.MARGINS`; the others are functions here, whose keywords are their
constants (in a config `head.NAME.KEYWORD`). A new loss is a function and a row of
`FAMILY`.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from hyperface_jax import adaptive, binary, peer_margins
from hyperface_jax.class_loss import ClassLoss
from hyperface_jax.margins import MARGINS, Detach, Margin, MarginContext
from hyperface_jax.variational import Variational


class Binary(NamedTuple):
    """A loss that is a sum over classes, with a trained bias.

    Attributes:
      bias: (m, number of classes, s) -> b before the first step.
      loss: keywords of `binary.sphereface2` (context, bias, scale, ...) -> ClassLoss.
    """

    bias: Callable[[float, float, float], float]
    loss: Callable[..., ClassLoss]


class Member(NamedTuple):
    """A loss of the family.

    Attributes:
      margin: psi and eta, default m, source.
      scale: published s (r, γ); None where there is none.
      detach: the gradient with which it was published.
      given: numbers for each example, or None.
      memory: scalars that it remembers, or None.
      looks_at: fields of `adaptive.Seen` that cost something: "target_cos", "others".
      binary: of a sum over classes instead of a softmax, or None.
      centres: class vectors of each class.
      energy: strength of `regularizers.minimum_hyperspherical_energy`.
      variational: settings of VPL, or None.
      draws: `given` draws with a random key.
      own_scale: the scale follows from its memory ("scale"), not from the config.
    """

    margin: Margin
    scale: float | None = 64.0
    detach: Detach = "none"
    given: adaptive.Given | None = None
    memory: adaptive.Memory | None = None
    looks_at: tuple[str, ...] = ()
    binary: Binary | None = None
    centres: int = 1
    energy: float = 0.0
    variational: Variational | None = None
    draws: bool = False
    own_scale: bool = False

    def check(
        self, name: str, norm: str, interclass_filter: float, sample_rate: float
    ) -> None:
        """Raises a ValueError where the loss has no form for these settings."""
        summed = self.binary is not None
        if (summed or self.own_scale) and norm != "hfn":
            raise ValueError(f"head.norm is {norm!r} with {name}, expected 'hfn'")
        if summed and interclass_filter:
            raise ValueError(
                f"head.interclass_filter is {interclass_filter} with {name}, expected "
                "0: its classes do not compete"
            )
        if self.variational and sample_rate < 1:
            raise ValueError(
                f"head.sample_rate is {sample_rate} with {name}, expected 1: it "
                "remembers an embedding of every class"
            )


def _combined(m1: float = 1.0, m3: float = 0.2) -> Member:
    return Member(peer_margins.combined(m1, m3))


def _magface(
    lower: float = 10.0,
    upper: float = 110.0,
    lower_margin: float = 0.45,
    strength: float = 35.0,
) -> Member:
    return Member(peer_margins.magface(lower, upper, lower_margin, strength))


def _adaface(h: float = 0.333, decay: float = 0.01) -> Member:
    return Member(
        peer_margins.adaface(),
        given=adaptive.adaface_quality(h),
        memory=adaptive.adaface_norms(decay),
    )


def _curricularface(decay: float = 0.01) -> Member:
    return Member(
        peer_margins.curricularface(),
        given=adaptive.difficulty_of_all,
        memory=adaptive.running_target(decay),
        looks_at=("target_cos",),
    )


def _elastic(base: str, plus: bool) -> Callable[..., Member]:
    # The deviation that its authors trained MS1MV2 with.
    published = {
        ("arcface_wrap", False): 0.05,
        ("arcface_wrap", True): 0.0175,
        ("cosface", False): 0.05,
        ("cosface", True): 0.02,
    }[base, plus]
    name = ("ElasticFace-Arc" if base != "cosface" else "ElasticFace-Cos") + "+" * plus

    def make(deviation: float = published) -> Member:
        return Member(
            MARGINS[base]._replace(source=f"{name}, CVPRW 2022; utils/losses.py"),
            given=adaptive.elastic_margin(deviation, plus),
            draws=True,
            looks_at=("target_cos",) if plus else (),
        )

    return make


def _sphereface2(variant: str) -> Callable[..., Member]:
    row = binary.VARIANTS[variant]

    def make(t: float = 3.0, alpha: float = 0.7) -> Member:
        def g(cos):
            return binary.similarity(cos, t)

        def bias(m, num_classes, scale):
            return binary.initial_bias(
                variant, m, num_classes, scale=scale, t=t, alpha=alpha
            )

        def loss(**settings):
            return binary.sphereface2(variant=variant, t=t, alpha=alpha, **settings)

        margin = Margin(
            psi=lambda cos, context: row.own(cos, g, context),
            eta=lambda cos, target_cos, context: row.others(cos, g, context),
            neutral=1.0 if variant == "m" else 0.0,
            default=row.default,
            source="SphereFace2, ICLR 2022; OpenSphere, model/head/sphereface2.py",
        )
        loss(context=MarginContext(row.default), bias=0.0)  # checks t and alpha
        return Member(margin, 40.0, "cosine", binary=Binary(bias, loss))

    return make


def _uniface(negatives: float = 1.0) -> Member:
    def loss(*, clamp="exact", detach="none", **settings):
        del clamp, detach  # a constant margin has one gradient
        return binary.uniface(negatives=negatives, **settings)

    loss(context=MarginContext(0.4), bias=0.0)
    margin = MARGINS["cosface"]._replace(
        default=0.4, source="UniFace, ICCV 2023; head.py"
    )
    start = Binary(lambda m, num_classes, scale: binary.uniface_bias(num_classes), loss)
    return Member(margin, binary=start)


def _sphereface_plus(energy: float = 0.1) -> Member:
    if not energy >= 0:
        raise ValueError(f"energy of SphereFace+ is {energy}, expected 0 or more")
    source = "SphereFace+, NeurIPS 2018; OpenSphere, model/head/spherefaceplus.py"
    margin = MARGINS["sphereface"]._replace(source=source)
    return Member(margin, 30.0, "cosine", energy=energy)


def _subcenter_arcface(centres: int = 3) -> Member:
    if centres < 1:
        raise ValueError(f"centres of sub-center ArcFace is {centres}, expected 1 up")
    source = "Sub-center ArcFace, ECCV 2020; InsightFace, subcenter_arcface"
    return Member(MARGINS["arcface"]._replace(source=source), centres=centres)


def _adacos() -> Member:
    source = "AdaCos, CVPR 2019; FaceX-Zoo, head/AdaCos.py"
    return Member(
        MARGINS["normface"]._replace(source=source),
        None,
        "cosine",
        memory=adaptive.adacos_scale(),
        looks_at=("target_cos", "others"),
        own_scale=True,
    )


def _vpl(share: float = 0.15, start: int = 8000, recent: int = 200) -> Member:
    if not 0 <= share < 1:
        raise ValueError(f"share of VPL is {share}, expected 0 <= share < 1")
    source = "VPL, CVPR 2021; InsightFace, recognition/vpl"
    margin = MARGINS["arcface"]._replace(source=source)
    return Member(
        margin, detach="cosine", variational=Variational(share, start, recent)
    )


FAMILY: dict[str, Callable[..., Member]] = {
    "combined": _combined,
    "sphereface_plus": _sphereface_plus,
    "sphereface2_c": _sphereface2("c"),
    "sphereface2_a": _sphereface2("a"),
    "sphereface2_m": _sphereface2("m"),
    "magface": _magface,
    "adaface": _adaface,
    "curricularface": _curricularface,
    "elasticface_arc": _elastic("arcface_wrap", False),
    "elasticface_arc_plus": _elastic("arcface_wrap", True),
    "elasticface_cos": _elastic("cosface", False),
    "elasticface_cos_plus": _elastic("cosface", True),
    "subcenter_arcface": _subcenter_arcface,
    "mv_arc": lambda t=1.12: Member(peer_margins.mv_arc(t), 32.0),
    "mv_am": lambda t=1.12: Member(peer_margins.mv_am(t), 32.0),
    "circle": lambda: Member(peer_margins.circle(), 256.0),
    "uniface": _uniface,
    "adacos": _adacos,
    "vpl_arcface": _vpl,
}

# s and gradient of the members that are a margin and nothing else.
_PUBLISHED: dict[str, tuple[float | None, Detach]] = {
    "normface": (30.0, "cosine"),
    "cosface": (64.0, "cosine"),
    "sphereface": (30.0, "cosine"),
    "sphereface_r_v1": (30.0, "cosine"),
    "sphereface_r_v2": (60.0, "cosine"),
    "ga_softmax": (30.0, "angle"),
    "sphereface_2017": (None, "none"),
}


def names() -> tuple[str, ...]:
    """Rows of `margins.MARGINS`, also those that were added since, and of `FAMILY`."""
    return (*MARGINS, *FAMILY)


def member(name: str, **constants: Any) -> Member:
    """The loss called `name`.

    Args:
      name: of `names()`.
      **constants: its own, see `constants_of`; published values by default.

    Raises:
      ValueError: the name is unknown, or a constant is out of its range.
    """
    if name in FAMILY:
        return FAMILY[name](**constants)
    if name not in MARGINS:
        raise ValueError(f"loss is {name!r}, expected one of {', '.join(names())}")
    scale, detach = _PUBLISHED.get(name, (64.0, "cosine"))
    return Member(MARGINS[name], scale, detach)


def constants_of(name: str) -> dict[str, float]:
    """A member's own constants with their published values; {} without any."""
    if name not in FAMILY:
        return {}
    return {
        key: parameter.default
        for key, parameter in inspect.signature(FAMILY[name]).parameters.items()
    }
