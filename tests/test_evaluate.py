"""`python -m hyperface_jax.evaluate` and all kinds of test sets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import record_files
import toy

from hyperface_jax import evaluate
from hyperface_jax.backbones import create_backbone
from hyperface_jax.data import datasets, preparing, sources, splits
from hyperface_jax.evaluation import (
    distractors,
    embedded,
    forward,
    protocols,
    similarity,
    test_sets,
)
from hyperface_jax.evaluation.stored import Stored
from hyperface_jax.reporting import tables


def run(*arguments):
    return evaluate.evaluate_files(evaluate.parser().parse_args([*map(str, arguments)]))


def fake_views(people, rng, spread=0.6, views=2, dimension=16):
    """Embeddings of people, noisy, [N, V, D]."""
    centres = np.random.default_rng(9).normal(size=(max(people) + 1, dimension))
    noise = rng.normal(size=(len(people), views, dimension))
    return (centres[people][:, None] + spread * noise).astype(np.float32)


def test_two_sets_of_one_name_are_refused(tmp_path):
    path = record_files.write_bin(tmp_path / "a=b.bin")
    assert test_sets.open_test(str(path)).name == "a=b"
    assert test_sets.open_test(f"mine={path}").name == "mine"
    with pytest.raises(ValueError, match="two test sets have one name"):
        test_sets.open_all([str(path)] * 2)


@pytest.fixture
def lfw(tmp_path, rng):
    """A .bin of 40 pairs of 5 people, and embeddings that know them."""
    path = record_files.write_bin(tmp_path / "lfw.bin", pairs=40)
    people = []
    for k in range(40):
        people += [k % 5, k % 5 if k % 2 == 0 else (k + 1) % 5]
    np.save(tmp_path / "lfw.npy", fake_views(people, rng))
    return path


def test_a_stored_file_is_evaluated_without_a_network(tmp_path, lfw):
    results = run(
        *("--set", lfw, "--embeddings", tmp_path / "lfw.npy"),
        *("--out", tmp_path / "out", "--hardest", 2),
    )
    (result,) = results
    assert result.key == "lfw/verification"
    views = np.load(tmp_path / "lfw.npy").sum(axis=1)
    scores = similarity.pair_scores(views, np.arange(0, 80, 2), np.arange(1, 80, 2))
    np.testing.assert_allclose(result.scores, scores)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["protocols"][0]["test_set"] == "lfw"
    low, high = written["protocols"][0]["intervals"]["kfold_accuracy"]
    assert low <= written["metrics"]["lfw/verification/kfold_accuracy"] <= high
    page = (tmp_path / "out" / "report.html").read_text()
    assert "lfw/verification" in page
    assert "data:image/png;base64" in page
    assert "k-fold acc." in (tmp_path / "out" / "results.md").read_text()
    assert r"\toprule" in (tmp_path / "out" / "results.tex").read_text()


def test_several_sets_and_their_combination(tmp_path, lfw):
    other = record_files.write_bin(tmp_path / "agedb_30.bin", pairs=40)
    array = tmp_path / "lfw.npy"
    results = run(
        *("--set", lfw, "--embeddings", array, "--set", other, "--embeddings", array),
        *("--out", tmp_path / "out"),
    )
    assert [r.key for r in results] == [
        "lfw/verification",
        "agedb_30/verification",
        "all/combined",
    ]
    assert len(results[2].scores) == 80
    assert results[2].note == "pairs of lfw, agedb_30"
    table = tables.markdown(results, "ours")
    assert table.splitlines()[0].startswith("| model | lfw<br>k-fold acc. | agedb_")
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert table.splitlines()[2].startswith("| ours | ")
    tex = (tmp_path / "out" / "results.tex").read_text()
    assert r"\begin{tabular}{lrr}" in tex
    assert r"lfw, lfw & " in tex


def folder_with_pairs(tmp_path):
    folder = toy.write_folder(tmp_path / "people")
    pairs = toy.write_pairs(tmp_path / "pairs.txt")
    return folder, f"{folder};{pairs}"


def test_folder_and_pairs_with_intervals_and_groups(tmp_path, rng):
    folder, item = folder_with_pairs(tmp_path)
    test = test_sets.open_test(item)
    people = test.faces.labels
    ids = [r["id"] for r in test.faces.read(range(len(people)))]
    shuffled = rng.permutation(len(people))
    np.savez(
        tmp_path / "e.npz",
        embeddings=fake_views(people, rng, spread=1.2)[shuffled],
        ids=np.array(ids)[shuffled],
    )
    rows = [
        f"{name},{'north' if k < 6 else 'south'}"
        for k, name in enumerate(test.faces.identities)
    ]
    (tmp_path / "groups.csv").write_text("\n".join(rows))
    results = run(
        *("--set", f"mine={item}", "--embeddings", tmp_path / "e.npz"),
        *("--out", tmp_path / "out", "--groups", tmp_path / "groups.csv"),
        *("--bootstrap", 50, "--protocols", "verification,open_set"),
        *("--group_fmr", 0.1),
    )
    assert [r.key for r in results] == ["mine/verification", "mine/open_set"]
    result = results[0]
    assert set(result.intervals) >= {"kfold_accuracy", "eer"}
    assert result.intervals["eer"].low <= result.metrics["eer"]
    assert {row.group for row in result.groups.rows} == {"north", "south"}
    with pytest.raises(ValueError, match=r"far is 0.001, expected 1/impostors"):
        run(
            *("--set", item, "--embeddings", tmp_path / "e.npz", "--out", tmp_path),
            *("--groups", tmp_path / "groups.csv", "--group_fmr", 1e-3),
        )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Error rates by group" in page
    assert "north" in page
    assert folder.name in str(folder)


def test_a_missing_embedding_and_wrong_counts_are_one_line(tmp_path, lfw, rng):
    np.save(tmp_path / "short.npy", fake_views([0, 1], rng))
    arguments = ["--set", str(lfw), "--out", str(tmp_path / "out")]
    for path, text in (("short.npy", "2 embeddings without ids, expected one for"),):
        with pytest.raises(SystemExit, match=text):
            evaluate.main([*arguments, "--embeddings", str(tmp_path / path)])
    np.savez(tmp_path / "i.npz", embeddings=np.zeros((2, 3)), ids=np.array(["0", "1"]))
    with pytest.raises(SystemExit, match="78 of 80 images have no embedding"):
        evaluate.main([*arguments, "--embeddings", str(tmp_path / "i.npz")])
    with pytest.raises(SystemExit, match="--embeddings is given 2 times"):
        evaluate.main([*arguments, *["--embeddings", "x"] * 2])
    with pytest.raises(SystemExit, match="--embeddings and --out are needed"):
        evaluate.main(arguments)
    with pytest.raises(SystemExit, match="--protocols has 'roc', expected some of"):
        evaluate.main([*arguments, "--protocols", "roc"])
    with pytest.raises(SystemExit, match="expected N, D, F"):
        evaluate.main([*arguments, "--pooling", "N2"])
    with pytest.raises(SystemExit, match="not found, expected a folder"):
        evaluate.main(["--set", "/nowhere", "--embeddings", "x", "--out", "y"])


def test_distractors_by_both_rules(tmp_path, rng):
    folder = toy.write_folder(tmp_path / "probes", people=4, images=3)
    people = np.repeat(np.arange(4), 3)
    np.save(tmp_path / "probes.npy", fake_views(people, rng, spread=0.1))
    np.save(tmp_path / "crowd.npy", rng.normal(size=(500, 16)).astype(np.float32))
    results = run(
        *("--set", folder, "--embeddings", tmp_path / "probes.npy"),
        *("--distractors", tmp_path / "crowd.npy", "--out", tmp_path / "out"),
        *("--protocols", "distractors"),
    )
    assert results[0].name == "distractors_megaface"
    assert results[0].counts == {"probes": 12, "searches": 24, "distractors": 500}
    assert results[0].metrics["rank1"] > 0.9
    assert len(results[0].cmc) == 100
    np.save(tmp_path / "crowd.npy", rng.normal(size=(5, 8)).astype(np.float32))
    with pytest.raises(ValueError, match=r"distractors have 8 dimensions.* probes 16"):
        run(
            *("--set", folder, "--embeddings", tmp_path / "probes.npy"),
            *("--distractors", tmp_path / "crowd.npy", "--out", tmp_path / "out"),
        )


def test_zero_embeddings_of_others_count_as_unreadable(tmp_path, lfw, caplog):
    views = np.load(tmp_path / "lfw.npy")
    views[[2, 7]] = 0
    np.save(tmp_path / "a.npy", views)
    (result, *_) = run(
        *("--set", lfw, "--embeddings", tmp_path / "a.npy"),
        *("--out", tmp_path / "out", "--protocols", "verification"),
    )
    assert result.counts["unreadable_images"] == 2
    assert "lfw: 2 of 80 images have no embedding, the first: " in caplog.text
    run(
        *("--set", lfw, "--embeddings", tmp_path / "a.npy"),
        *("--out", tmp_path / "none", "--protocols", "open_set"),
    )
    assert "lfw: it offers none of the protocols open_set; nothing" in caplog.text
    np.save(tmp_path / "a.npy", 0 * views)
    with pytest.raises(ValueError, match=r"lfw: 80 of 80 images have no embedding"):
        run(
            *("--set", lfw, "--embeddings", tmp_path / "a.npy"),
            *("--out", tmp_path / "out", "--protocols", "verification"),
        )


def test_a_protocol_that_fails_takes_nothing_from_the_others(tmp_path, lfw, rng):
    """Hours of embedding may stand behind the others."""
    bad = np.load(tmp_path / "lfw.npy")
    bad[7] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    record_files.write_bin(tmp_path / "agedb_30.bin", pairs=40)
    out = tmp_path / "out"
    sets = ("--set", tmp_path / "agedb_30.bin", "--set", lfw)
    files = ("--embeddings", tmp_path / "bad.npy", "--embeddings", tmp_path / "lfw.npy")
    with pytest.raises(ValueError, match=r"agedb_30, verif.*NaN.*\(1 of 2 protocols f"):
        run(*sets, *files, "--out", out)
    written = json.loads((out / "results.json").read_text())
    failed, fine = written["protocols"]
    assert "NaN" in failed["failed"]
    assert failed["metrics"] == {}
    assert fine["metrics"]["auc"] > 0.5
    assert "agedb_30/verification</b>: could not be measured" in (
        (out / "report.html").read_text()
    )
    with pytest.raises(ValueError, match=r"agedb_30, verification: .*NaN"):
        run(*sets[:2], *files[:2], "--out", tmp_path / "none")
    assert not (tmp_path / "none" / "results.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bootstrap", -3), "bootstrap is -3, expected draws, or 0 for none"),
        (("--group_fmr", 0), "group_fmr is 0, expected 0 < value < 1"),
        (("--hardest", -1), "--hardest is -1, expected pairs"),
    ],
)
def test_numbers_out_of_range_are_one_line(tmp_path, lfw, words, message):
    with pytest.raises(ValueError, match=message):
        run(
            *("--set", lfw, "--embeddings", tmp_path / "lfw.npy"),
            *("--out", tmp_path / "out", *words),
        )


def test_a_prepared_set_brings_its_pairs_and_a_name(tmp_path, rng):
    source = toy.write_folder(tmp_path / "people")
    pairs = toy.write_pairs(tmp_path / "pairs.txt", folds=2)
    faces = sources.open_path(str(source), pairs_path=str(pairs))
    folder = datasets.writable_folder_of("faces", "mine", str(tmp_path))
    options = preparing.Options()
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    np.save(tmp_path / "e.npy", fake_views(np.repeat(np.arange(12), 4), rng))
    results = run(
        *("--set", folder, "--embeddings", tmp_path / "e.npy"),
        *("--out", tmp_path / "out"),
    )
    assert [r.key for r in results] == [
        "faces_mine/verification",
        "faces_mine/open_set",
    ]
    low, high = results[0].to_json()["intervals"]["kfold_accuracy"]
    assert 0 <= low <= high <= 1  # two folds: t would point far beyond


def test_one_fold_gives_everything_but_folds(tmp_path, rng):
    source = toy.write_folder(tmp_path / "people")
    pairs = toy.write_pairs(tmp_path / "pairs.txt", folds=1)
    views = fake_views(np.repeat(np.arange(12), 4), rng, spread=0.01)
    np.save(tmp_path / "e.npy", views)
    results = run(
        *("--set", f"{source};{pairs}", "--embeddings", tmp_path / "e.npy"),
        *("--out", tmp_path / "out", "--protocols", "verification"),
    )
    (found,) = results
    assert found.metrics["auc"] == 1
    assert "kfold_accuracy" not in found.metrics
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Thresholds" in page
    assert "ROC:" in page
    assert "DET:" not in page  # nothing is rejected, there is no curve to draw


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: --set and --embeddings and --out missing: without --workdir"),
        (("--nonsense",), "error: unrecognized arguments: --nonsense (see python -m"),
        (("--bootstrap", "x"), "error: argument --bootstrap: invalid int value: 'x'"),
    ],
)
def test_wrong_arguments_of_tools_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(list(arguments))
    text = capsys.readouterr().err or str(stop.value)
    assert text.startswith(message)
    assert len(text.strip().splitlines()) == 1


def test_jitter_adds_shifted_and_zoomed_copies(rng):
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    copies = [
        np.asarray(copy) for copy in forward._jittered(jnp.asarray(images), 1 / 16)
    ]
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
    for copy, (y, x) in zip(copies, ((4, 2), (0, 2), (2, 4), (2, 0)), strict=False):
        np.testing.assert_allclose(copy, padded[:, y : y + 32, x : x + 32])
    ramp = jnp.broadcast_to(jnp.arange(32.0)[None, :, None, None], (1, 32, 32, 3))
    near, far = (np.asarray(c)[0, :, 0, 0] for c in forward._jittered(ramp, 1 / 16)[4:])
    np.testing.assert_allclose(np.diff(near), 8 / 9, rtol=1e-4)  # zoomed in by 9/8
    np.testing.assert_allclose(np.diff(far)[4:-4], 8 / 7, rtol=1e-4)  # and out by 7/8

    backbone = create_backbone("sfnet4_bn", width=4, embedding_dim=8)
    weights = backbone.init(jax.random.key(0), 32)
    plain = forward.make_embed_fn(backbone)
    found = forward.make_embed_fn(backbone, jitter=1 / 16)(*weights, images)
    expected = sum(plain(*weights, copy) for copy in (images, *copies))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_unreadable_image_is_left_out_of_the_angles(tmp_path, rng):
    """And does not end the evaluation; it is counted."""
    folder = toy.write_folder(tmp_path / "faces", people=4, images=3)
    views = fake_views(np.repeat(np.arange(4), 3), rng, spread=0.1)
    views[4] = 0
    np.save(tmp_path / "faces.npy", views)
    arguments = ("--set", folder, "--out", tmp_path / "out", "--protocols", "open_set")
    (found,) = run(*arguments, "--embeddings", tmp_path / "faces.npy")
    assert found.counts["unreadable_images"] == 1
    assert found.counts["genuine_pairs"] == 3 * 3 + 1
    views[5] = np.nan
    np.save(tmp_path / "faces.npy", views)
    with pytest.raises(ValueError, match=r"faces, open_set: .* hold NaN"):
        run(*arguments, "--embeddings", tmp_path / "faces.npy")


def test_ids_that_do_not_meet_are_shown(tmp_path, rng):
    folder = toy.write_folder(tmp_path / "faces", people=4, images=3)
    views = fake_views(np.repeat(np.arange(4), 3), rng)
    np.savez(
        tmp_path / "e.npz", embeddings=views[:, 0], ids=[f"{k}.jpg" for k in range(12)]
    )
    with pytest.raises(
        ValueError,
        match=r"12 of 12 images .* first is 'Person_00/Person_00_0001'; they .*'0.jpg'",
    ):
        run(
            "--set", folder, "--embeddings", tmp_path / "e.npz", "--out", tmp_path / "o"
        )
    ids = sources.open_path(str(folder)).source.ids
    np.save(tmp_path / "e.npy", views[:, 0])
    (tmp_path / "e.txt").write_text("\ufeff" + "\n".join(ids) + "\n")  # of an editor
    assert run(
        *("--set", folder, "--embeddings", tmp_path / "e.npy", "--out", tmp_path / "o")
    )


def test_distractors_are_among_the_tested_people_of_a_split(tmp_path, rng):
    """The set of a fold holds everybody, but not everybody is embedded."""
    source = toy.write_folder(tmp_path / "faces", people=12, images=4)
    pairs_path = toy.write_pairs(tmp_path / "pairs.txt", people=12)
    faces = sources.open_path(str(source), pairs_path=str(pairs_path))
    _, test = splits.by_people_of_pairs(faces, fold=1, dev_fraction=0.25)
    assert test is not None
    people = faces.label_of_row()
    views = fake_views(people.tolist(), rng, spread=1.5)
    crowd = Stored(rng.normal(size=(300, 1, 16)).astype(np.float32))
    options = embedded.Options(distractors=crowd)
    stored = Stored(
        np.concatenate([views, crowd.views.repeat(2, axis=1)]),
        (*faces.source.ids, *(f"other{k}" for k in range(300))),
    )
    found = embedded.from_stored(test, stored, options)
    assert len(found.views) < len(faces)
    (result,) = protocols.run_protocols([found], ["distractors"])
    tested = embedded.needed_rows(test)
    sums = views.sum(axis=1)[tested]
    expected = distractors.ranks_among_distractors(
        sums, people[tested], crowd.views[:, 0], max_rank=10
    )
    assert result.metrics["rank1"] == pytest.approx(np.mean(expected.rank <= 1))
    with pytest.raises(ValueError, match="images without embeddings"):
        found.of(np.setdiff1d(faces.rows, tested))
