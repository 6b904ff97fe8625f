"""Real faces: Labeled Faces in the Wild, trained on the people outside one fold.

    python -m hyperface_jax.main --config configs/lfw.py:fold=8 --workdir runs/lfw8 \
        --config.data.path=/data/lfw.tar --config.data.pairs_path=/data/pairs.txt

trains on the people who are in no pair of fold 8, chooses the threshold from pairs
among a tenth of them (held out of training), and tests on fold 8: LFW's protocol
"unrestricted, label-free outside data". Minutes on two cores; a working baseline.
"""

from hyperface_jax.config import default_config, parse_arg


def get_config(arg: str | None = None):
    """LFW.

    Args:
      arg: "fold=K", K from 1 to 10.
    """
    values = parse_arg(arg, fold=tuple(str(k) for k in range(1, 11)))
    config = default_config()
    config.data.name = "face_folder"
    config.data.config = "lfw"
    config.data.fold = int(values["fold"])
    config.data.image_size = 64
    # Two thirds of the people have one picture: as classes they cost time and, as far
    # as was tried (benchmarks/RESULTS.md), accuracy.
    config.data.min_images = 2
    config.augment.shift = 0.05
    config.augment.scale = 0.08
    config.augment.rotate = 8.0
    config.augment.erase = 0.3
    config.augment.grey = 0.2
    config.backbone.name = "sfnet10_bn"
    config.backbone.width = 24
    config.backbone.embedding_dim = 256
    config.backbone.dropout = 0.3
    config.head.margin = 1.4
    # The automatic s of large sets is too large for a thousand people.
    config.head.scale_factor = 1.2
    config.head.loss_weight = 30.0
    config.optimizer.backbone.weight_decay = 1e-3
    config.train.batch_size = 64
    config.train.epochs = 22.0
    config.train.ema_decay = 0.995
    config.learning_rate.schedule = "cosine"
    config.learning_rate.peak = 0.07
    config.learning_rate.warmup_steps = 100
    config.log.every_steps = 50
    config.log.checkpoint_every_steps = 500
    return config.lock()
