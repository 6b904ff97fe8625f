"""Model cards: what a network is, what it was trained on, what its scores are worth.

A card is a plain dict, written as `model_card.json` and `model_card.md` into every
model folder and the workdir of a finished run, and beside an export. What is not known
says so.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from hyperface_jax import model_card_text, workdir
from hyperface_jax.model_card_text import UNKNOWN

JSON, MARKDOWN = "model_card.json", "model_card.md"
FED = ("color_order", "value_range", "batch_norm_epsilon")
"""What a PyTorch file does not say of its network: `card["network"]["file"]`."""

INTENDED = (
    "Embeddings of aligned face crops for research on face recognition: comparing "
    "losses, verification and identification on test sets whose terms allow it."
)
LIMITS = (
    "A score says how similar two embeddings are, not that two pictures show one "
    "person. A threshold holds for people, cameras and alignment like those it was "
    "calibrated on; error rates differ between groups of people (eval.groups measures "
    "it). Not for decisions about people without a human who can overrule them."
)


def of_run(
    folder: epath.Path, facts: Mapping[str, Any], step: int, weights: str
) -> dict[str, Any]:
    """The card of a run's checkpoint.

    Args:
      folder: the workdir.
      facts: content of its config.json.
      step: of the checkpoint.
      weights: their fingerprint. What was measured with others is left out.
    """
    config, data = facts["config"], facts["data"]
    head, backbone = config["head"], config["backbone"]
    start = folder / "started_from.json"
    # The file of an earlier try may still be there.
    is_there = config.get("init_from") and start.exists()
    started = workdir.read_json(start) if is_there else {}
    results = folder / workdir.RESULTS
    measured = workdir.read_json(results) if results.exists() else {}
    if measured.get("embedding", {}).get("weights") != weights:
        measured = {}
    return {
        "network": {
            "name": backbone["name"],
            "embedding_dim": backbone["embedding_dim"],
            "image_size": config["data"]["image_size"],
            **_input(backbone),
        },
        "training": {
            "data": data["name"],
            "fingerprint": data["fingerprint"],
            "licence": data.get("licence") or UNKNOWN,
            "identities": data["identities"],
            "images": data["images"],
            "loss": head["loss"],
            "norm": head["norm"],
            "margin": head["margin"],
            "scale": head["scale"],
            "constants": head.get(head["loss"]) or {},
            "gradient": head["detach"],
            "steps": step,
            "batch_size": config["train"]["batch_size"],
            "started_from": started.get("init_from") or "random weights",
        },
        "evaluation": _evaluation(measured),
        "thresholds": thresholds(measured),
        "weights_licence": started.get("licence") or "of whoever trained them",
        "intended_use": INTENDED,
        "limits": LIMITS,
        "versions": facts.get("versions", {}),
        "commit": facts.get("commit", ""),
    }


def of_import(
    network: Mapping[str, Any], image_size: int, source: Mapping[str, Any]
) -> dict[str, Any]:
    """The card of weights from another program.

    Args:
      network: values of `model.NETWORK`.
      image_size: H = W.
      source: "file", "sha256", "layout", "licence".
    """
    return {
        "network": {
            "name": network["name"],
            "embedding_dim": network["embedding_dim"],
            "image_size": image_size,
            **_input(network),
        },
        "training": {"data": UNKNOWN, "imported_from": dict(source)},
        "evaluation": [],
        "thresholds": [],
        "weights_licence": source.get("licence") or UNKNOWN,
        "intended_use": INTENDED,
        "limits": LIMITS,
        "versions": {},
        "commit": workdir.commit(),
    }


def fed_with(
    card: Mapping[str, Any], network: Mapping[str, Any], sha256: str
) -> dict[str, Any]:
    """The card of the same network in a PyTorch file, which takes its own pixels."""
    low, high = network["value_range"]
    takes = f"{network['color_order']} in {low:g} to {high:g}"
    fed = {key: network[key] for key in FED} | {"sha256": sha256}
    return dict(card) | {
        "network": dict(card["network"]) | {"takes": takes, "file": fed}
    }


def exported(card: Mapping[str, Any], takes: str, sha256: str) -> dict[str, Any]:
    """The card of a network in a file for other programs.

    Args:
      card: of the network.
      takes: what the file is fed with.
      sha256: of the file.
    """
    network = dict(card["network"]) | {"takes": takes, "exported_sha256": sha256}
    return dict(card) | {"network": network}


def of_file(path: epath.Path, sha256: str) -> dict[str, Any]:
    """The card of `fed_with` beside a PyTorch file; {} without one, or of another.

    Raises:
      ValueError: it is damaged.
    """
    # Earlier versions named it after the stem; the digest says whether it is this one.
    card = read(path.parent, path.name) or read(path.parent, path.stem)
    fed = card["network"].get("file") if card else None
    return card if isinstance(fed, dict) and fed.get("sha256") == sha256 else {}


def with_results(
    card: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """The card with an evaluation's metrics and operating points instead of its own."""
    return dict(card) | {
        "evaluation": _evaluation(measured),
        "thresholds": thresholds(measured),
    }


def thresholds(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Operating points of a results.json: cosine, FAR, impostor count, where.

    Args:
      measured: content of a results.json; {} for none.
    """
    found = []
    embedding = measured.get("embedding", {})
    for protocol in measured.get("protocols", []):
        impostors = protocol.get("counts", {}).get("impostor_pairs")
        for key, value in protocol.get("metrics", {}).items():
            if not key.startswith("threshold@far="):
                continue
            found.append(
                {
                    "cosine": min(max(value, -1.0), 1.0),  # of rounding
                    "far": float(key.removeprefix("threshold@far=")),
                    "impostor_pairs": impostors,
                    "compares": "templates"
                    if protocol["name"].startswith("templates_")
                    else "images",
                    "mirror_image_added": embedding.get("mirror_image_added", True),
                    "jitter": embedding.get("jitter", 0.0),
                    "calibrated_on": f"{protocol['test_set']}/{protocol['name']}",
                }
            )
    return found


def write(folder: epath.Path, card: Mapping[str, Any], file: str = "") -> None:
    """Writes both forms; with `file` as FILE.model_card.*, beside a single file."""
    prefix = f"{file}." if file else ""
    workdir.write_json(folder / f"{prefix}{JSON}", card)
    workdir.write_text(folder / f"{prefix}{MARKDOWN}", model_card_text.markdown(card))


def read(folder: epath.Path, file: str = "") -> dict[str, Any]:
    """The card in a folder, or beside a file in it; {} without one.

    Raises:
      ValueError: it is damaged.
    """
    path = folder / (f"{file}.{JSON}" if file else JSON)
    if not path.exists():
        return {}
    card = workdir.read_json(path)
    try:
        _check(card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r:.120})") from None
    return card


def _check(card: Mapping[str, Any]) -> None:
    """Raises what comes up where a card lacks what is read of it."""
    for part in ("network", "training"):
        card[part].items()
    for row in card["thresholds"]:
        where, _ = row["calibrated_on"], row["mirror_image_added"]
        legal = -1 <= row["cosine"] <= 1 and row["far"] >= 0
        if not (isinstance(where, str) and legal):
            raise ValueError(f"threshold {row}")
    model_card_text.markdown(card)


def _input(network: Mapping[str, Any]) -> dict[str, Any]:
    low, high = network.get("value_range", (-1.0, 1.0))
    return {
        "trained_on_color_order": network.get("color_order", "RGB"),
        "trained_on_value_range": [low, high],
        "takes": "RGB; the order and range above are made of it inside the network",
    }


def _evaluation(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for protocol in measured.get("protocols", []):
        name = f"{protocol['test_set']}/{protocol['name']}"
        intervals = protocol.get("intervals", {})
        for metric, value in protocol.get("metrics", {}).items():
            if not isinstance(value, int | float) or metric.startswith("threshold"):
                continue
            row = {"protocol": name, "metric": metric, "value": value}
            if metric in intervals:
                row["interval"] = list(intervals[metric])[:2]
            rows.append(row)
    return rows
