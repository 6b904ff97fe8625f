"""Small networks, images and commands for the tests of models."""

import numpy as np
from PIL import Image
from test_backbones import filled

from hyperface_jax import (
    model,
    model_card,
)
from hyperface_jax.backbones import create_backbone

NETWORK = {
    "name": "sfnet4_bn",
    "width": 4,
    "embedding_dim": 8,
    "color_order": "RGB",
    "value_range": (-1.0, 1.0),
    "batch_norm_epsilon": 1e-5,
}


SIZE = 32


def made(**network):
    network = NETWORK | network
    params, stats = filled(create_backbone(**network), SIZE)
    card = model_card.of_import(network, SIZE, {"file": "none", "licence": "ours"})
    return model.create(network, params, stats, image_size=SIZE, card=card)


def images(count=3, size=SIZE, seed=0):
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_images(folder, count=5, size=SIZE):
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images(count, size)):
        Image.fromarray(image).save(folder / f"{k}.png")
    return folder


def call(command, *arguments, **more):
    work = getattr(command, command.__name__.rpartition(".")[2])
    return work(command.parser().parse_args([*map(str, arguments)]), **more)
