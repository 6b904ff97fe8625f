"""Draws docs/synth_faces.jpg: rows are people who do not exist, columns conditions.

python docs/draw_synth_faces.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from hyperface_jax.data.synth import conditions, identity, render

SEED, PEOPLE, IMAGES, SIZE = 2022, (3, 8, 14, 21, 30), 9, 112


def main() -> None:
    rows = []
    for person in PEOPLE:
        rng = np.random.default_rng([SEED, person])
        mesh = render.prepare(identity.sample_identity(rng))
        views = [(conditions.frontal(), rng)]
        for i in range(IMAGES):
            rng = np.random.default_rng([SEED, person, i])
            views.append((conditions.sample_conditions(rng), rng))
        row = [render.render(mesh, view, SIZE, rng) for view, rng in views]
        rows.append(np.concatenate(row, axis=1))
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.save(Path(__file__).with_name("synth_faces.jpg"), quality=82)


if __name__ == "__main__":
    main()
