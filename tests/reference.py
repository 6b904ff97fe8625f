"""An independent float64 reference of every formula, NumPy only.

Written from the formulas, with angles where the package uses cosines, loops where it
uses broadcasts and analytic gradients where it uses autodiff. It imports nothing of
the package; the one shared number is the cap of a slope at a true pole.
"""

import math

import numpy as np

MIN_SIN = 1e-4
OFFICIAL_CLIP = 1e-5


def psi(name, theta, m, annealing=0.0):
    """Target angular function at one angle."""
    if name == "normface" or name == "sphereface_r_v2":
        return math.cos(theta)
    if name == "cosface":
        return math.cos(theta) - m
    if name == "arcface":
        return math.cos(min(theta + m, math.pi))
    if name == "arcface_wrap":
        return math.cos(theta + m)
    if name == "arcface_linear":
        if theta + m < math.pi:
            return math.cos(theta + m)
        return math.cos(theta) - m * math.sin(m)
    if name == "arcface_easy":
        return math.cos(theta + m) if theta < math.pi / 2 else math.cos(theta)
    if name == "sphereface":
        k = math.floor(m * theta / math.pi)
        return (-1) ** k * math.cos(m * theta) - 2 * k
    if name == "sphereface_r_v1":
        return math.cos(min(m * theta, math.pi))
    if name == "ga_softmax":
        return 1 - 2 * m * theta / math.pi
    if name == "sphereface_2017":
        value = psi("sphereface", theta, m)
        return (annealing * math.cos(theta) + value) / (1 + annealing)
    raise KeyError(name)


def eta(name, theta, m):
    """Non-target angular function at one angle."""
    if name == "sphereface_r_v2":
        return math.cos(theta / m)
    if name == "ga_softmax":
        return 1 - 2 * theta / math.pi
    return math.cos(theta)


def _multiple_slope(m, theta):
    """d cos(mθ) / d cos θ = m sin(mθ)/sin θ, with its limits and capped pole."""
    sine = math.sin(theta)
    if theta < 1e-9:
        return m * m
    if math.pi - theta < 1e-9:
        limit = -math.cos(math.pi * m) * m
        pole = 0.0 if m == round(m) else math.sin(math.pi * m) / MIN_SIN
        return m * (pole + limit)
    return m * math.sin(m * theta) / sine


def _inverse_sine(theta):
    return 1 / max(math.sin(theta), MIN_SIN)


def slope_psi(name, theta, m, annealing=0.0):
    """d psi / d cos θ."""
    if name in ("normface", "sphereface_r_v2", "cosface"):
        return 1.0
    if name.startswith("arcface"):
        inside = math.sin(theta + m) * _inverse_sine(theta)
        if name == "arcface_easy":
            return inside if theta < math.pi / 2 else 1.0
        if name == "arcface_wrap" or theta + m < math.pi:
            return inside
        return 0.0 if name == "arcface" else 1.0
    if name == "sphereface":
        return (-1) ** math.floor(m * theta / math.pi) * _multiple_slope(m, theta)
    if name == "sphereface_r_v1":
        return _multiple_slope(m, theta) if m * theta < math.pi else 0.0
    if name == "ga_softmax":
        return 2 * m / math.pi * _inverse_sine(theta)
    if name == "sphereface_2017":
        value = slope_psi("sphereface", theta, m)
        return (annealing + value) / (1 + annealing)
    raise KeyError(name)


def slope_eta(name, theta, m):
    """d eta / d cos θ."""
    if name == "sphereface_r_v2":
        return _multiple_slope(1 / m, theta)
    if name == "ga_softmax":
        return 2 / math.pi * _inverse_sine(theta)
    return 1.0


def head(
    x,
    y,
    w,
    *,
    margin,
    m,
    norm,
    s=None,
    t=0.0,
    penalty="l1",
    detach="cosine",
    loss_weight=1.0,
    divide_by_scale=True,
    differentiate=False,
    official=False,
    annealing=0.0,
):
    """Mean loss and its gradients.

    Args:
      x: [B, D] embeddings. y: [B] labels. w: [C, D] prototypes.
      margin, m, norm ("hfn" | "nfn" | "sfn"), s, t, penalty: the head.
      detach: "none", "cosine" or "angle".

    Returns:
      loss, d loss/dx [B, D], d loss/dw [C, D].
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    count, classes = x.shape[0], w.shape[0]
    kappa = loss_weight / s if divide_by_scale and norm != "nfn" else loss_weight
    lengths = np.linalg.norm(w, axis=1)
    unit_w = w / lengths[:, None] if differentiate else w
    loss, dx, dw = 0.0, np.zeros_like(x), np.zeros_like(w)
    for i in range(count):
        size = np.linalg.norm(x[i])
        unit_x = x[i] / size
        cos = unit_w @ unit_x
        values, slopes = np.zeros(classes), np.zeros(classes)
        for j in range(classes):
            c = min(max(cos[j], -1.0), 1.0)
            if official:
                c = min(max(c, -1 + OFFICIAL_CLIP), 1 - OFFICIAL_CLIP)
            theta = math.acos(c)
            if j == y[i]:
                values[j] = psi(margin, theta, m, annealing)
                slopes[j] = slope_psi(margin, theta, m, annealing)
            else:
                values[j], slopes[j] = (
                    eta(margin, theta, m),
                    slope_eta(margin, theta, m),
                )
            if detach == "cosine":
                slopes[j] = 1.0
            elif detach == "angle":
                slopes[j] = slope_eta(margin, theta, 1.0)
        rho = s if norm == "hfn" else size
        logits = rho * values
        shifted = np.exp(logits - logits.max())
        probability = shifted / shifted.sum()
        loss += kappa * (np.log(shifted.sum()) + logits.max() - logits[y[i]])
        g = kappa * (probability - np.eye(classes)[y[i]])
        g_cos = g * rho * slopes
        dx[i] += (g_cos @ unit_w - (g_cos @ cos) * unit_x) / size
        if norm != "hfn":
            dx[i] += (g @ values) * unit_x
        if norm == "sfn":
            gap = size - s
            loss += t * (abs(gap) if penalty == "l1" else gap**2)
            dx[i] += t * (np.sign(gap) if penalty == "l1" else 2 * gap) * unit_x
        if differentiate:
            dw += (
                g_cos[:, None]
                * (unit_x[None] - cos[:, None] * unit_w)
                / lengths[:, None]
            )
        else:
            dw += g_cos[:, None] * unit_x[None]
    return loss / count, dx / count, dw / count


def sgd(parameter, gradient, buffer, *, lr, momentum, weight_decay):
    """PyTorch's SGD: returns the new parameter and momentum buffer."""
    gradient = gradient + weight_decay * parameter
    buffer = gradient if buffer is None else momentum * buffer + gradient
    return parameter - lr * buffer, buffer
