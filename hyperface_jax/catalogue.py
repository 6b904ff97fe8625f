"""Every loss by its name in a config: plain softmax, and the family."""

from hyperface_jax import family
from hyperface_jax.family import Member
from hyperface_jax.margins import Margin

PLAIN_SOFTMAX = "plain_softmax"


def loss_names() -> tuple[str, ...]:
    """Plain softmax and the family."""
    return (PLAIN_SOFTMAX, *family.names())


def member_of(loss: str | Margin | Member, **constants: float) -> Member:
    """What a loss is made of; of plain softmax NormFace's, without a part.

    Args:
      loss: a name of `loss_names()`; or a margin, or a whole loss, of your own.
      **constants: of a loss with a name, see `family.member`.

    Raises:
      ValueError: the name is unknown, a constant is out of its range, or there are
        some for a loss of your own, which has its constants already.
    """
    if isinstance(loss, str):
        return family.member("normface" if loss == PLAIN_SOFTMAX else loss, **constants)
    if constants:
        raise ValueError(f"constants are {constants}, expected none: yours has its own")
    return Member(loss) if isinstance(loss, Margin) else loss


def check_settings(
    loss: str, member: Member, norm: str, interclass_filter: float, sample_rate: float
) -> None:
    """Raises a ValueError where a loss has no form for these settings."""
    if loss != PLAIN_SOFTMAX:
        member.check(loss, norm, interclass_filter, sample_rate)
    elif interclass_filter:
        raise ValueError(
            f"head.interclass_filter is {interclass_filter} with {loss}, expected 0"
        )
