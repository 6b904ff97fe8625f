"""The family's other losses in float64, NumPy only, with loops and angles.

Written from the papers' formulas; imports nothing of the package. What carries no
gradient (a quality, a running mean, a weight) is computed once and may be kept
(`frozen`) while embeddings and class vectors move, so that differences of these losses
are the gradients that the papers' codes have.
"""

import math

import numpy as np


def cosines(x, w):
    """[B, C]; of sub-centres [C, K, D] the largest."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    w = w / np.linalg.norm(w, axis=-1, keepdims=True)
    found = np.zeros((len(x), len(w)))
    for i in range(len(x)):
        for j in range(len(w)):
            found[i, j] = np.max(w[j] @ unit[i])
    return np.clip(found, -1, 1)


def adaface_memory(norms, mean, deviation, decay=0.01):
    """Running mean and deviation after a batch."""
    safe = np.clip(norms, 1e-3, 100)
    return (
        decay * safe.mean() + (1 - decay) * mean,
        decay * safe.std(ddof=1) + (1 - decay) * deviation,
    )


def adacos_scale(cos, y, s):
    """The scale after a batch."""
    others = np.mean(
        [sum(math.exp(s * c) for j, c in enumerate(row) if j != label)
         for row, label in zip(cos, y, strict=True)]
    )  # fmt: skip
    angles = sorted(math.acos(row[label]) for row, label in zip(cos, y, strict=True))
    median = angles[(len(angles) - 1) // 2]
    return math.log(others) / math.cos(min(math.pi / 4, median))


def freeze(name, x, y, w, *, s, memory, drawn=None):
    """What carries no gradient, from the point where gradients are wanted."""
    cos, norms = cosines(x, w), np.linalg.norm(x, axis=1)
    own = cos[np.arange(len(y)), y]
    if name == "adaface":
        mean, deviation = adaface_memory(norms, *memory)
        spread = np.clip(norms, 1e-3, 100) - mean
        return {"quality": np.clip(0.333 * spread / (deviation + 1e-3), -1, 1)}
    if name == "curricularface":
        return {"t": 0.01 * own.mean() + 0.99 * memory[0]}
    if name == "adacos":
        return {"s": adacos_scale(cos, y, memory[0])}
    if name.endswith("_plus") and name.startswith("elastic"):
        margins = np.empty(len(y))
        margins[np.argsort(-own)] = np.sort(drawn)  # nearest first, smallest first
        return {"m": margins}
    if name.startswith("elastic"):
        return {"m": drawn}
    if name == "circle":
        return {"cos": cos}
    return {}


def psi_and_eta(name, theta, y, i, m, norm, frozen):
    """Angular functions of one example: own class at y, others elsewhere."""
    cos = np.cos(theta)
    own, f = theta[y], cos.copy()
    if name == "combined":
        f[y] = math.cos(min(own + m, math.pi)) - 0.2
    elif name == "magface":
        a = min(max(norm, 10.0), 110.0)
        slope = (m - 0.45) / (110.0 - 10.0)
        m = slope * (a - 10.0) + 0.45
        f[y] = math.cos(own + m) if cos[y] > 0 else cos[y]
    elif name == "adaface":
        z = frozen["quality"][i]
        f[y] = math.cos(min(max(own - m * z, 0.0), math.pi)) - (m + m * z)
    elif name == "curricularface":
        moved = math.cos(own + m)
        beyond = own + m > math.pi
        f[y] = cos[y] - m * math.sin(m) if beyond else moved
        for j in range(len(f)):
            if j != y and cos[j] > moved:
                f[j] = cos[j] * (frozen["t"] + cos[j])
    elif name.startswith("mv_"):
        moved = math.cos(own + m) if name == "mv_arc" else cos[y] - m
        f[y] = moved if cos[y] > (0 if name == "mv_arc" else m) else cos[y]
        for j in range(len(f)):
            if j != y and cos[j] > moved:
                f[j] = 1.12 * cos[j] + 0.12
    elif name == "circle":
        weights = frozen["cos"][i]
        for j in range(len(f)):
            if j == y:
                f[j] = max(1 + m - weights[j], 0) * (cos[j] - (1 - m))
            else:
                f[j] = max(weights[j] + m, 0) * (cos[j] - m)
    elif name.startswith("elasticface_arc"):
        f[y] = math.cos(own + frozen["m"][i])
    elif name.startswith("elasticface_cos"):
        f[y] = cos[y] - frozen["m"][i]
    elif name in ("subcenter_arcface", "vpl_arcface"):
        f[y] = math.cos(min(own + m, math.pi))
    elif name == "sphereface_plus":
        k = math.floor(m * own / math.pi)
        f[y] = (-1) ** k * math.cos(m * own) - 2 * k
    elif name != "adacos":
        raise KeyError(name)
    return f


def losses(name, x, y, w, *, m, s, frozen, offset=None, bias=0.0):
    """Loss of each example, and f - cos [B, C].

    With `offset` (from a first call) the angular functions are cos + offset: the form
    whose differences are detached gradients.
    """
    cos, norms = cosines(x, w), np.linalg.norm(x, axis=1)
    found, offsets = [], np.zeros_like(cos)
    for i, label in enumerate(y):
        if name == "uniface":
            z = s * cos[i] - bias
            z[label] = s * (cos[i, label] - m) - bias
            z = np.clip(z, -s, s)
            z[label] = -z[label]
            found.append(np.logaddexp(0, z).sum())
            continue
        f = psi_and_eta(name, np.arccos(cos[i]), label, i, m, norms[i], frozen)
        offsets[i] = f - cos[i]
        if offset is not None:
            f = cos[i] + offset[i]
        logits = frozen.get("s", s) * f
        value = np.logaddexp.reduce(logits) - logits[label]
        if name == "magface":
            a = min(max(norms[i], 10.0), 110.0)
            value += 35.0 * (a / 110.0**2 + 1 / a)
        found.append(value)
    return np.array(found), offsets


def energy(y, w):
    """Mean of angle^-2 over pairs of the batch's classes; 0 for one class."""
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    classes = sorted(set(y.tolist()))
    pairs = [
        math.acos(unit[a] @ unit[b]) ** -2 for a in classes for b in classes if a < b
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0
