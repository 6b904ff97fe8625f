"""The losses side by side on LFW: same network, same budget, each tuned for itself.

    for what in tune ablate test low_far; do
      python benchmarks/side_by_side.py $what --lfw lfw.tar --pairs pairs.txt --out side
    done
    python benchmarks/side_by_side_report.py --out side --pairs pairs.txt

`tune` tries margins and scales of every loss on fold 8, whose people are tested in no
other fold: first the margins with a scale of 2.3 times the smallest that can separate
the classes, then with the best of them the other factors. Best is the area under the
ROC of all pairs among fold 8's people (at most 8 images of each). `ablate` trains there
with the whole gradient, and with other strengths of SFN's penalty. `test` trains the
chosen settings without each of folds 1 to 7 and measures there:

- the fold's 600 pairs, with the threshold from pairs among held-out training people,
- TAR at FAR 1e-2 and 1e-3 and EER of all pairs among the fold's people,
- rank-1 of the fold's people (first image in the gallery, the others are looked for)
  among 2 000 people with one picture, who are never trained on.

`low_far` does the same with what was best by TAR at FAR 1e-3 on fold 8.

`longer` trains SphereFace-R v2 under HFN, as chosen, for 24 epochs there and on the
tested folds, and with `--start MODEL` also from that network (a workdir, model folder)
instead of random weights: one that was trained on rendered faces, say.

NFN and SFN let m grow from 1 in the first half: with a margin from the start their
lengths vanish (benchmarks/RESULTS.md, stability). A run leaves <out>/<name>.json (what
was run, versions, commit, measures, which of the fold's pairs were decided wrongly) and
.npz (scores); runs that are there are not repeated, and `--part I/N` takes a part of
them, for several processes.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from side_by_side_runs import (
    AREA,
    LOSSES,
    LOW_FAR,
    TESTED_ON,
    Run,
    ablations,
    config_of,
    factor_runs,
    longer,
    margin_runs,
    tests,
)

from hyperface_jax import config as config_lib
from hyperface_jax import model, workdir
from hyperface_jax.data.evaluation_set import EvaluationSet
from hyperface_jax.data.pairs import Pairs
from hyperface_jax.evaluation import roc, verification
from hyperface_jax.evaluation.distractors import gallery_ranks_among_distractors
from hyperface_jax.evaluation.embedded import Embedded, Options
from hyperface_jax.training import experiment, initial, run_evaluation, train
from hyperface_jax.training.checkpoint import Checkpoints
from hyperface_jax.training.metric_writer import create_metric_writer

STRANGERS, MOST_OF_ONE = 2000, 8
WHAT = ("tune", "ablate", "test", "low_far", "longer")


def all_pairs(test: EvaluationSet) -> Pairs:
    """Of the images of the tested people, at most MOST_OF_ONE each."""
    label = test.faces.label_of_row()
    rows = test.open_set_rows
    order = np.argsort(label[rows], kind="stable")
    rows = rows[order]
    starts = np.searchsorted(label[rows], label[rows])
    rows = rows[np.arange(len(rows)) - starts < MOST_OF_ONE]
    a, b = np.triu_indices(len(rows), k=1)
    same = label[rows[a]] == label[rows[b]]
    return Pairs(rows[a], rows[b], same, np.zeros(len(a), int))


def rank_one(found: Embedded, strangers: np.ndarray) -> np.ndarray:
    """Of each probe: is the mate first in gallery and strangers?"""
    label = found.data.faces.label_of_row()
    rows = found.data.open_set_rows
    _, first = np.unique(label[rows], return_index=True)
    is_probe = np.ones(len(rows), bool)
    is_probe[first] = False
    of = lambda r: found.embeddings[found.position[r]]  # noqa: E731
    ranks = gallery_ranks_among_distractors(
        of(rows[first]),
        label[rows[first]],
        of(rows[is_probe]),
        label[rows[is_probe]],
        of(strangers),
        max_rank=1,
    )
    return ranks == 1


def measure(run: experiment.Experiment, state) -> tuple[dict, dict[str, np.ndarray]]:
    """Measures and the scores they come from."""
    (test,) = run.evaluation_sets
    labels, rows = test.faces.labels, test.faces.rows
    alone = np.bincount(labels, minlength=test.faces.num_classes)[labels] == 1
    alone &= ~np.isin(rows, test.open_set_rows)
    strangers = np.random.default_rng(0).permutation(rows[alone])[:STRANGERS]
    pairs, dev, every = test.pairs, test.dev_pairs, all_pairs(test)
    assert pairs is not None
    assert dev is not None
    # The embedder takes the rows of a set's protocols: those of all of ours.
    wanted = np.unique(
        np.concatenate([strangers, test.open_set_rows, dev.first, dev.second])
    )
    asked = dataclasses.replace(test, open_set_rows=wanted)
    found = run_evaluation.embedder_of(run, state).embed(asked, Options())
    found = dataclasses.replace(found, data=test)
    scores, of_all, of_dev = (found.scores(p) for p in (pairs, every, dev))
    threshold = verification.choose_threshold(of_dev, dev.is_genuine)
    first = rank_one(found, strangers)
    measures = {
        "accuracy": verification.accuracy_at_threshold(
            scores, pairs.is_genuine, threshold
        ),
        "best_accuracy": verification.best_accuracy(scores, pairs.is_genuine),
        "auc": roc.auc(of_all, every.is_genuine),
        "eer": roc.equal_error_rate(of_all, every.is_genuine),
        "tar@far=1e-2": roc.tar_at_far(of_all, every.is_genuine, 1e-2),
        "tar@far=1e-3": roc.tar_at_far(of_all, every.is_genuine, 1e-3),
        "rank1": float(first.mean()),
        "threshold": threshold,
        "genuine": int(every.is_genuine.sum()),
        "impostors": int((~every.is_genuine).sum()),
        "probes": len(first),
    }
    label = test.faces.label_of_row()
    arrays = {
        "scores": scores,
        "is_genuine": pairs.is_genuine,
        "first": label[pairs.first],
        "second": label[pairs.second],
        "right": (scores > threshold) == pairs.is_genuine,
        "dev_scores": of_dev,
        "dev_is_genuine": dev.is_genuine,
    }
    return measures, arrays


def execute(run: Run, out: Path, *settings: str) -> None:
    """Runs, unless the result is there."""
    if not (out / f"{run.key}.json").exists():
        train_and_measure(run, out, *settings)
        jax.clear_caches()  # what is compiled for one loss is of no use to the next


def train_and_measure(run: Run, out: Path, lfw: str, pairs: str, start: str) -> None:
    """Leaves the result of a run."""
    result = out / f"{run.key}.json"
    started = time.monotonic()
    config = config_of(run, lfw, pairs)
    config_lib.validate(config)
    made = experiment.create_experiment(config)
    facts = {"name": run.loss.name, **dataclasses.asdict(run)}
    facts |= {"scale": made.config.head.scale, "commit": workdir.commit()}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        place = workdir.absolute(folder)
        writer = create_metric_writer(place, start_step=0, tensorboard=False)
        with Checkpoints(place, keep_last=1) as checkpoints:
            try:
                state = made.create_state()
                if run.started:
                    state = initial.put_into(state, model.load(start))
                state = train.train(made, state, checkpoints, writer)
                measures, arrays = measure(made, state)
                np.savez(out / f"{run.key}.npz", allow_pickle=False, **arrays)
                wrong = np.flatnonzero(~arrays["right"]).tolist()
            except train.NonFiniteError as error:
                measures, wrong = {"diverged": str(error)}, []
            finally:
                writer.close()
    facts |= {"measures": measures, "wrong": wrong, "versions": workdir.versions()}
    facts["seconds"] = round(time.monotonic() - started, 1)
    result.write_text(json.dumps(facts, indent=1))
    print(f"{run.key}: {json.dumps(measures)}, {facts['seconds']} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lfw", required=True, help="folder or tar of LFW")
    parser.add_argument("--pairs", required=True, help="pairs.txt")
    parser.add_argument("--start", default="", help="longer: a network to start from")
    parser.add_argument("--folds", type=int, nargs="+", default=TESTED_ON)
    parser.add_argument("--part", default="1/1", help="I/N, from 1")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, a.part.split("/"))
    settings = (a.out, a.lfw, a.pairs, a.start)
    if a.what == "tune":
        for loss in LOSSES[part - 1 :: parts]:
            for run in margin_runs(loss):
                execute(run, *settings)
            for run in factor_runs(a.out, loss):
                execute(run, *settings)
        return
    runs = {
        "ablate": lambda: ablations(a.out),
        "test": lambda: tests(a.out, tuple(a.folds), AREA),
        "low_far": lambda: tests(a.out, tuple(a.folds), LOW_FAR),
        "longer": lambda: longer(a.out, tuple(a.folds), a.start),
    }[a.what]()
    for run in list(runs)[part - 1 :: parts]:
        execute(run, *settings)


if __name__ == "__main__":
    main()
