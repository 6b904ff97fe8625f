"""Head rotation, projection and the five-point alignment of recognition crops."""

import numpy as np

from hyperface_jax.data.synth.conditions import Conditions
from hyperface_jax.data.synth.fields import Array

# InsightFace's 112x112 template: eyes, nose tip, mouth corners, image left first.
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)


def rotation(conditions: Conditions) -> Array:
    """float32[3, 3] that turns the head: yaw, then pitch. See Conditions for signs."""
    yaw, pitch = np.deg2rad(conditions.yaw), np.deg2rad(conditions.pitch)
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return (nod @ turn).astype(np.float32)


def project(points: Array, distance: float) -> Array:
    """Perspective image plane coordinates, mm; [3, n] to [2, n]."""
    return points[:2] * (np.float32(distance) / (np.float32(distance) - points[2]))


def alignment(landmarks: Array, conditions: Conditions) -> Array:
    """Affine float32[2, 3] from mm to pixels of the 112 template.

    The similarity that best maps the five projected landmarks, float[2, 5], to
    the template, as a recognition pipeline aligns its crops; then the jitter.
    """
    source = landmarks - landmarks.mean(1, keepdims=True)
    target = TEMPLATE.T - TEMPLATE.T.mean(1, keepdims=True)
    norm = float((source**2).sum())
    a = float((source * target).sum()) / norm
    b = float((source[0] * target[1] - source[1] * target[0]).sum()) / norm
    roll = np.deg2rad(conditions.roll)
    cr, sr = np.cos(roll) * conditions.scale, np.sin(roll) * conditions.scale
    jitter = np.array([[cr, -sr], [sr, cr]])
    linear = jitter @ np.array([[a, -b], [b, a]])
    shift = np.array([conditions.shift_x, conditions.shift_y])
    centre = TEMPLATE.mean(0) + shift
    offset = centre - linear @ landmarks.mean(1)
    return np.column_stack([linear, offset]).astype(np.float32)
