"""The same training in PyTorch and here: same weights, same batches, step by step.

    pip install torch matplotlib
    python benchmarks/twin.py --network iresnet18 --width 16 --size 64 --batch 32 \
        --steps 200 --lfw lfw.tar --pairs pairs.txt --out runs/twin

Ours is the whole train step of `configs/lfw.py` (without augmentation, dropout and
moving average), PyTorch's is `torch_peer.py` (network, SphereFace-R v2 with hard
normalisation) and torch.optim.SGD. Both start from our initial weights. A third
training, PyTorch in float64 (--no-reference leaves it out), tells rounding from error:
two float32 trainings of a network with BatchNorm drift apart. Written to --out: losses,
curves and a table. With --accuracy both networks are tested on the fold at the end;
--dtype bfloat16 uses autocast there and backbone.dtype here.
"""

import argparse
import platform
import runpy
import time
from pathlib import Path

import jax
import numpy as np
import torch
import torch_peer

from hyperface_jax import config as config_lib
from hyperface_jax import sharding
from hyperface_jax.backbones.torch_names import to_flax, to_torch
from hyperface_jax.evaluation import protocols
from hyperface_jax.training import experiment, run_evaluation

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {
    "ours and PyTorch": (0, 1),
    "ours and PyTorch float64": (0, 2),
    "PyTorch and PyTorch float64": (1, 2),
}


def make_run(a):
    c = runpy.run_path(str(ROOT / "configs/lfw.py"))["get_config"](f"fold={a.fold}")
    c.unlock()
    c.data.path, c.data.pairs_path = a.lfw, a.pairs
    c.data.image_size = a.size
    for key in c.augment:
        c.augment[key] = 0.0
    c.backbone.name, c.backbone.width = a.network, a.width
    c.backbone.embedding_dim, c.backbone.dropout = a.dim, 0.0
    c.backbone.dtype = a.dtype
    c.train.batch_size, c.train.steps, c.train.epochs = a.batch, a.steps, 0.0
    c.train.ema_decay = 0.0
    c.learning_rate.schedule, c.learning_rate.peak = "constant", a.learning_rate
    c.learning_rate.warmup_steps = 0
    c.optimizer.backbone.weight_decay = 5e-4
    c.head.class_multiple = 1
    config_lib.validate(c.lock())
    return experiment.create_experiment(c)


class TorchTraining:
    """PyTorch's side: `step` makes one update and returns the loss."""

    def __init__(self, a, run, state, dtype):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        c = run.config
        params, stats = state.params["backbone"], state.batch_stats
        weights = to_torch(run.backbone, a.size, params, stats)
        self.net = torch_peer.Network(
            a.network, weights, device=self.device, dtype=dtype, train=True
        )
        self.prototypes = torch.tensor(
            np.asarray(state.params["prototypes"]), device=self.device, dtype=dtype
        ).requires_grad_()
        self.sgd = torch.optim.SGD(
            [*self.net.parameters, self.prototypes],
            lr=a.learning_rate,
            momentum=0.9,
            weight_decay=5e-4,
        )
        self.autocast = a.dtype == "bfloat16"
        self.head = {
            "margin": c.head.margin,
            "scale": c.head.scale,
            "weight": c.head.loss_weight,
        }

    def step(self, batch):
        images = torch.tensor(batch["image"], device=self.device).permute(0, 3, 1, 2)
        images = (images.to(self.net.dtype) - 127.5) / 127.5
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            embeddings = self.net(images)
        labels = torch.tensor(batch["label"], device=self.device).long()
        embeddings = embeddings.to(self.net.dtype)
        loss = torch_peer.loss(embeddings, self.prototypes, labels, **self.head)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        with torch.no_grad():
            self.prototypes /= self.prototypes.norm(dim=1, keepdim=True)
        return loss.item()

    def worst_statistics(self, ours):
        """Largest difference of a running mean (in deviations) or relative variance."""
        found = []
        for name in ours:
            if name.endswith("running_var"):
                mean = name.replace("var", "mean")
                kept = [self.net.tensors[key] for key in (mean, name)]
                m, v = (tensor.cpu().double().numpy() for tensor in kept)
                found.append(np.abs(ours[mean] - m).max() / np.sqrt(v).min())
                found.append(np.abs(ours[name] / v - 1).max())
        return max(found, default=0.0)


def train(a, run):
    """Losses [steps, 2 or 3]: ours, PyTorch's, and PyTorch's in float64."""
    state = run.create_state()
    dtypes = [torch.float32] + [torch.float64] * a.reference
    theirs = [TorchTraining(a, run, state, dtype) for dtype in dtypes]
    losses, seconds, first = [], np.zeros(1 + len(theirs)), []
    for step, batch in enumerate(run.batches(run.reader(), 0)):
        times = [time.perf_counter()]
        state, metrics = run.step(state, sharding.put_batch(run.mesh, batch))
        row = [float(metrics["loss"])]
        times.append(time.perf_counter())
        for one in theirs:
            row.append(one.step(batch))
            times.append(time.perf_counter())
        losses.append(row)
        if step == 0:
            params, stats = state.params["backbone"], state.batch_stats
            ours = to_torch(run.backbone, a.size, params, stats)
            first = [one.worst_statistics(ours) for one in theirs]
        else:  # the first step compiles
            seconds += np.diff(times)
        if step % 10 == 0:
            print(f"step {step}: {row}", flush=True)
    return state, theirs[0].net, np.array(losses), seconds, first


def draw(losses, path, title):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="tight")
    axes[0].plot(losses[:, 0], label="hyperface_jax")
    axes[0].plot(losses[:, 1], "--", label="PyTorch")
    axes[0].set(ylabel="loss", title=title)
    axes[0].legend()
    for name, (i, j) in PAIRS.items():
        if j < losses.shape[1]:
            apart = np.abs(losses[:, i] / losses[:, j] - 1)
            axes[1].semilogy(apart + 1e-9, label=name)
    axes[1].axhline(1e-3, color="grey", lw=0.8)
    axes[1].set(xlabel="step", ylabel="relative difference of the loss")
    axes[1].legend()
    figure.savefig(path, dpi=110)


def accuracy(run, state):
    found = run_evaluation.evaluate_state(run, state, hardest=0)
    metrics = protocols.flat_metrics(found)
    return {k: v for k, v in metrics.items() if "accuracy" in k or "standard" in k}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network", default="iresnet18", choices=["iresnet18", "sfnet20_deprecated"]
    )
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--fold", type=int, default=8)
    parser.add_argument("--no-reference", dest="reference", action="store_false")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--lfw", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    run = make_run(a)
    state, net, losses, seconds, first = train(a, run)
    np.savez(a.out / f"{a.network}.npz", losses=losses)
    title = f"{a.network}, width {a.width}, {a.size}x{a.size}, batch {a.batch}"
    draw(losses, a.out / f"{a.network}.png", f"{title}, {a.dtype}")
    shown = sorted({min(n, a.steps) for n in (1, 5, 10, 50, a.steps)})
    print(
        f"\n{title}, lr {a.learning_rate}, {a.dtype}, {platform.machine()}, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"torch {torch.__version__}\n\n| largest relative difference of the loss in | "
        + " | ".join(f"{n} steps" for n in shown)
        + " |\n|---|"
        + "---:|" * len(shown)
    )
    for name, (i, j) in PAIRS.items():
        if j < losses.shape[1]:
            apart = np.abs(losses[:, i] / losses[:, j] - 1)
            cells = " | ".join(f"{apart[:n].max():.1e}" for n in shown)
            print(f"| {name} | {cells} |")
    print("\nrunning statistics after step 1:", *(f"{x:.1e}" for x in first))
    print("mean loss of the last 10 steps:", losses[-10:].mean(0).round(4))
    print("seconds:", seconds.round(1))
    if a.accuracy:
        tensors = {k: v.detach().cpu().numpy() for k, v in net.tensors.items()}
        params, stats = to_flax(run.backbone, a.size, tensors)
        theirs = state.replace(
            params=state.params | {"backbone": params}, batch_stats=stats
        )
        print(f"here: {accuracy(run, state)}\nPyTorch: {accuracy(run, theirs)}")


if __name__ == "__main__":
    main()
