"""The audit against brute force in float64, and on clusters with planted mistakes."""

import numpy as np
import pytest

from hyperface_jax.evaluation import auditing, centres, close_pairs

D = 64


@pytest.fixture(params=[False, True], ids=["one tile", "many tiles"])
def blocks(request, monkeypatch):
    """Everything must come out the same when it takes many tiles."""
    if request.param:
        for module in (auditing, centres, close_pairs):
            monkeypatch.setattr(module, "BLOCK", 28)
        for module in (auditing, close_pairs):
            monkeypatch.setattr(module, "COLUMNS", 7)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clusters(rng, *, classes=300, images=8, noise=0.6):
    """Images around random centres, at a cosine of about 1 / sqrt(1 + noise²)."""
    centres = unit(rng.normal(size=(classes, D)))
    labels = np.repeat(np.arange(classes), images)
    spread = noise * rng.normal(size=(len(labels), D)) / np.sqrt(D)
    scale = rng.uniform(0.1, 30, (len(labels), 1))  # embeddings are not normalised
    order = rng.permutation(len(labels))
    return ((centres[labels] + spread) * scale)[order].astype(np.float32), labels[order]


def brute_centres(embeddings, labels, classes):
    x = unit(embeddings.astype(np.float64))
    return np.stack([x[labels == c].sum(axis=0) for c in range(classes)])


def precision_recall(found, planted):
    found, planted = set(found), set(planted)
    return len(found & planted) / len(found), len(found & planted) / len(planted)


# --- centres --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_centres_against_brute_force(rng, blocks, dtype):
    embeddings, labels = clusters(rng, classes=40)
    embeddings = embeddings.astype(dtype)
    found = auditing.class_centres(embeddings, labels)
    sums = brute_centres(embeddings, labels, 40)
    np.testing.assert_allclose(found.unit, unit(sums), atol=1e-6)
    np.testing.assert_allclose(found.lengths, np.linalg.norm(sums, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(found.counts, 8)
    assert found.left_out == 0
    assert found.unit.dtype == np.float32


def test_rows_without_direction_are_left_out_and_counted(rng, blocks):
    embeddings, labels = clusters(rng, classes=10)
    clean = auditing.class_centres(embeddings, labels)
    bad = np.zeros((4, D), np.float32)
    bad[1], bad[2, 3], bad[3, 0] = np.nan, np.inf, -np.inf
    found = auditing.class_centres(
        np.concatenate([bad, embeddings]), np.concatenate([[0, 1, 2, 11], labels])
    )
    assert found.left_out == 4
    assert list(found.counts[10:]) == [0, 0]
    assert not found.unit[10:].any()
    np.testing.assert_allclose(found.unit[:10], clean.unit, atol=1e-6)


def test_memory_map_of_embeddings(rng, tmp_path):
    embeddings, labels = clusters(rng, classes=20)
    np.save(tmp_path / "e.npy", embeddings)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    centres = auditing.class_centres(mapped, labels)
    np.testing.assert_array_equal(
        centres.unit, auditing.class_centres(embeddings, labels).unit
    )
    assert auditing.outliers(mapped, labels, centres, threshold=0.3).judged == 160


def test_vectors_that_cancel_have_no_centre(rng):
    x = rng.normal(size=(1, D)).astype(np.float32)
    found = auditing.class_centres(np.concatenate([x, -x]), np.zeros(2, int))
    assert not found.unit.any()
    own = auditing.leave_one_out_cosines(
        np.concatenate([x, -x]), np.zeros(2, int), found
    )
    np.testing.assert_allclose(own, -1)


def test_labels_out_of_range_are_one_line():
    eye = np.eye(3)
    with pytest.raises(ValueError, match=r"labels are -1\.\.1, expected 0\.\.1"):
        auditing.class_centres(eye, np.array([-1, 0, 1]))
    with pytest.raises(ValueError, match=r"labels are 0\.\.2, expected 0\.\.1"):
        auditing.class_centres(eye, np.arange(3), num_classes=2)
    centres = auditing.class_centres(eye, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels are 0\.\.2, expected 0\.\.0"):
        auditing.outliers(eye, np.arange(3), centres, threshold=0.5)


# --- split identities -----------------------------------------------------------------


def brute_pairs(centres, threshold):
    x = unit(centres.astype(np.float64))
    cos = x @ x.T
    a, b = np.nonzero(np.triu(cos >= threshold, k=1))
    order = np.argsort(-cos[a, b], kind="stable")
    return a[order], b[order], cos[a, b][order]


@pytest.mark.parametrize("threshold", [0.1, 0.35])
def test_look_alikes_against_brute_force(rng, blocks, threshold):
    centres = rng.normal(size=(90, D))
    a, b, cos = brute_pairs(centres, threshold)
    found = auditing.look_alike_classes(centres, threshold=threshold)
    np.testing.assert_array_equal(found.a, a)
    np.testing.assert_array_equal(found.b, b)
    np.testing.assert_allclose(found.cosine, cos, atol=1e-6)
    assert found.found == len(a)


@pytest.mark.parametrize("top", [1, 10, 5000])
def test_top_pairs_and_the_cap(rng, blocks, top):
    centres = rng.normal(size=(90, D))
    a, b, _ = brute_pairs(centres, -1)
    found = auditing.look_alike_classes(centres, top=top)
    np.testing.assert_array_equal(found.a, a[:top])
    np.testing.assert_array_equal(found.b, b[:top])
    assert found.found == 90 * 89 // 2
    a, b, _ = brute_pairs(centres, 0.2)
    found = auditing.look_alike_classes(centres, top=10, threshold=0.2)
    np.testing.assert_array_equal(found.a, a[:10])
    assert found.found == len(a)


def test_the_stated_cap_holds(rng, monkeypatch):
    monkeypatch.setattr(close_pairs, "MAX_ANSWERS", 25)
    found = auditing.look_alike_classes(rng.normal(size=(40, D)), threshold=-1.0)
    assert (len(found.a), found.found) == (25, 780)


def test_ties_come_in_the_order_of_the_classes(blocks):
    centres = np.tile(np.eye(1, D), (60, 1))
    a, b = np.triu_indices(60, k=1)
    for top in (7, 300):
        found = auditing.look_alike_classes(centres, top=top, threshold=0.5)
        np.testing.assert_array_equal(found.a, a[:top])
        np.testing.assert_array_equal(found.b, b[:top])
        assert found.found == 60 * 59 // 2


def test_classes_without_images_resemble_nobody(rng):
    centres = rng.normal(size=(50, D))
    centres[::2] = 0
    found = auditing.look_alike_classes(centres, threshold=-1.0)
    assert len(found.a) == 25 * 24 // 2
    assert (found.a % 2).all()
    assert (found.b % 2).all()


@pytest.mark.parametrize("classes", [0, 1])
def test_no_pairs_of_no_or_one_class(classes):
    found = auditing.look_alike_classes(np.ones((classes, D)), threshold=-1.0)
    assert (len(found.a), len(found.b), len(found.cosine), found.found) == (0, 0, 0, 0)


def test_wrong_arguments_are_one_line(rng):
    centres = rng.normal(size=(5, D))
    with pytest.raises(ValueError, match="needs threshold, top or both"):
        auditing.look_alike_classes(centres)
    with pytest.raises(ValueError, match=r"threshold is 60\.0, expected a cosine"):
        auditing.look_alike_classes(centres, threshold=60.0)
    with pytest.raises(ValueError, match="top is 0, expected at least 1"):
        auditing.look_alike_classes(centres, top=0)
    centres[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        auditing.look_alike_classes(centres, top=1)


def test_split_identities_are_found(rng):
    """30 of 600 people have their images under two labels."""
    embeddings, labels = clusters(rng, classes=600)
    split = np.arange(30)
    for person in split:
        rows = np.flatnonzero(labels == person)
        labels[rows[4:]] = 600 + person
    centres = auditing.class_centres(embeddings, labels).unit
    threshold = auditing.suggest_threshold(centres)
    found = auditing.look_alike_classes(centres, threshold=threshold)
    planted = zip(split, 600 + split, strict=True)
    precision, recall = precision_recall(
        zip(found.a.tolist(), found.b.tolist(), strict=True), planted
    )
    assert precision >= 0.9
    assert recall == 1


# --- wrong labels ---------------------------------------------------------------------


def brute_outliers(embeddings, labels, classes, threshold, min_other):
    x, sums = (
        unit(embeddings.astype(np.float64)),
        brute_centres(embeddings, labels, classes),
    )
    rows, own, others, other = [], [], [], []
    for row, (e, label) in enumerate(zip(x, labels, strict=True)):
        mine = e @ unit(sums[label] - e)
        cos = unit(sums) @ e
        cos[label] = -np.inf
        if mine < threshold and cos.max() >= min_other and cos.max() > mine:
            rows.append(row)
            own.append(mine)
            others.append(cos.argmax())
            other.append(cos.max())
    order = np.argsort(np.array(own) - np.array(other), kind="stable")
    return tuple(np.array(column)[order] for column in (rows, own, others, other))


@pytest.mark.parametrize("min_other", [None, -1.0])
def test_outliers_against_brute_force(rng, blocks, min_other):
    embeddings, labels = clusters(rng, classes=40, noise=2.5)
    centres = auditing.class_centres(embeddings, labels)
    found = auditing.outliers(
        embeddings, labels, centres, threshold=0.3, min_other=min_other
    )
    rows, own, others, other = brute_outliers(
        embeddings, labels, 40, 0.3, 0.3 if min_other is None else min_other
    )
    assert len(rows) > 10
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.other_class, others)
    np.testing.assert_allclose(found.own, own, atol=2e-6)
    np.testing.assert_allclose(found.other, other, atol=2e-6)
    assert (found.found, found.judged) == (len(rows), 320)
    first = auditing.outliers(
        embeddings, labels, centres, threshold=0.3, min_other=min_other, top=3
    )
    np.testing.assert_array_equal(first.rows, rows[:3])
    assert first.found == len(rows)


@pytest.mark.parametrize(("noise", "false_alarms"), [(0.6, 1.0), (1.0, 24.0)])
def test_wrong_labels_are_found(rng, noise, false_alarms):
    """2 % of the images carry the label of somebody else."""
    embeddings, labels = clusters(rng, classes=300, noise=noise)
    wrong = rng.choice(len(labels), len(labels) // 50, replace=False)
    right = labels[wrong]
    labels[wrong] = (right + rng.integers(1, 300, len(wrong))) % 300
    centres = auditing.class_centres(embeddings, labels)
    threshold = auditing.suggest_threshold(
        centres.unit, embeddings, labels, false_alarms=false_alarms
    )
    found = auditing.outliers(embeddings, labels, centres, threshold=threshold)
    precision, recall = precision_recall(found.rows.tolist(), wrong.tolist())
    assert precision >= 0.95
    assert recall >= 0.95
    truth = dict(zip(wrong.tolist(), right.tolist(), strict=True))
    named = [truth.get(r) for r in found.rows.tolist()]
    assert np.mean(np.array(named) == found.other_class) >= 0.95


def test_a_clean_set_has_few_outliers(rng):
    embeddings, labels = clusters(rng, classes=300)
    centres = auditing.class_centres(embeddings, labels)
    threshold = auditing.suggest_threshold(centres.unit, embeddings, labels)
    found = auditing.outliers(embeddings, labels, centres, threshold=threshold)
    assert found.found <= 2


def test_an_image_alone_or_unreadable_is_not_judged(rng):
    embeddings, labels = clusters(rng, classes=5, images=2)
    embeddings = np.concatenate([embeddings, rng.normal(size=(1, D)), np.zeros((1, D))])
    labels = np.concatenate([labels, [5, 0]])
    centres = auditing.class_centres(embeddings, labels)
    own = auditing.leave_one_out_cosines(embeddings, labels, centres)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(own)), [10, 11])
    found = auditing.outliers(embeddings, labels, centres, threshold=1.0)
    assert found.judged == 10


def test_of_equal_other_classes_the_first_is_named(blocks):
    """An image at e0 labelled as one of e1; classes 3 and 20 both lie at e0."""
    labels = np.repeat(np.arange(30), 2)
    axis = np.where(np.isin(labels, (3, 20)), 0, 1)
    axis[labels == 10] = 0, 1
    embeddings = np.eye(D)[axis]
    centres = auditing.class_centres(embeddings, labels)
    found = auditing.outliers(embeddings, labels, centres, threshold=0.5)
    assert list(found.rows) == [20, 21]
    assert list(found.other_class) == [3, 0]


def test_one_class_or_none_has_no_outliers(rng):
    for n in (0, 6):
        embeddings, labels = rng.normal(size=(n, D)), np.zeros(n, int)
        centres = auditing.class_centres(embeddings, labels)
        found = auditing.outliers(
            embeddings, labels, centres, threshold=1.0, min_other=-1.0
        )
        assert (len(found.rows), found.found, found.judged) == (0, 0, n)


# --- overlap --------------------------------------------------------------------------


def test_overlap_is_found(rng, blocks):
    """20 of a protocol's 80 people are in the training set; other images of them."""
    embeddings, labels = clusters(rng, classes=380, images=10)
    in_protocol = (labels >= 300) | ((labels >= 280) & (rng.random(len(labels)) < 0.5))
    ids = 10 * labels[in_protocol] - 7000  # any whole numbers
    train = auditing.class_centres(embeddings[~in_protocol], labels[~in_protocol]).unit
    threshold = auditing.suggest_threshold(train, comparisons=300 * 100)
    found = auditing.overlapping_identities(
        train, embeddings[in_protocol], ids, threshold
    )
    precision, recall = precision_recall(
        zip(found.a.tolist(), found.b.tolist(), strict=True),
        [(c, 10 * c - 7000) for c in range(280, 300)],
    )
    assert precision >= 0.9
    assert recall == 1


def test_overlap_against_brute_force(rng, blocks):
    train, protocol = rng.normal(size=(50, D)), rng.normal(size=(120, D))
    ids = rng.integers(0, 60, 120) * 3 - 30
    found = auditing.overlapping_identities(train, protocol, ids, 0.1)
    names = np.unique(ids)
    sums = brute_centres(protocol, np.searchsorted(names, ids), len(names))
    cos = unit(train) @ unit(sums).T
    a, b = np.nonzero(cos >= 0.1)
    order = np.argsort(-cos[a, b], kind="stable")
    np.testing.assert_array_equal(found.a, a[order])
    np.testing.assert_array_equal(found.b, names[b[order]])
    np.testing.assert_allclose(found.cosine, cos[a, b][order], atol=1e-6)
    few = auditing.overlapping_identities(train, protocol, ids, 0.1, top=4)
    np.testing.assert_array_equal(few.a, a[order][:4])
    assert few.found == len(a)


def test_overlap_with_nobody(rng):
    train = rng.normal(size=(5, D))
    found = auditing.overlapping_identities(
        train, np.zeros((0, D)), np.zeros(0, int), 0.1
    )
    assert (len(found.a), len(found.b), found.found) == (0, 0, 0)
    found = auditing.overlapping_identities(train, np.zeros((2, D)), np.arange(2), -1.0)
    assert found.found == 0  # images that could not be read are nobody


# --- threshold ------------------------------------------------------------------------


@pytest.mark.parametrize("false_alarms", [1.0, 30.0, 1000.0])
def test_threshold_lets_about_as_many_false_alarms_through(rng, false_alarms):
    centres = unit(rng.normal(size=(3000, D)))
    threshold = auditing.suggest_threshold(centres, false_alarms=false_alarms)
    found = auditing.look_alike_classes(centres, threshold=threshold)
    # Cosines of random directions have a lighter tail than the normal distribution.
    assert false_alarms / 10 - 1 <= found.found <= 2 * false_alarms + 3


def test_threshold_for_images_lets_about_as_many_through(rng):
    centres, images = unit(rng.normal(size=(500, D))), rng.normal(size=(2000, D))
    labels = np.arange(2000) % 500
    threshold = auditing.suggest_threshold(centres, images, labels, false_alarms=100.0)
    assert 30 <= np.count_nonzero(unit(images) @ centres.T >= threshold) <= 200


def test_threshold_hardly_moves_with_the_planted_mistakes(rng):
    centres = unit(rng.normal(size=(1000, D)))
    clean = auditing.suggest_threshold(centres)
    centres[500:520] = centres[:20]
    assert abs(auditing.suggest_threshold(centres) - clean) < 0.02


def test_threshold_ignores_own_class_and_unreadable_rows(rng):
    centres = unit(rng.normal(size=(200, D)))
    labels = np.repeat(np.arange(200), 5)
    clean = auditing.suggest_threshold(centres, centres[labels], labels)
    assert clean < 0.9
    centres = np.concatenate([centres, np.zeros((50, D))])
    assert auditing.suggest_threshold(centres) < 0.9


def test_threshold_needs_classes_and_a_small_share(rng):
    with pytest.raises(
        ValueError, match="found 1 class centres, expected at least 100"
    ):
        auditing.suggest_threshold(np.ones((1, D)))
    with pytest.raises(ValueError, match="found 0 class centres"):
        auditing.suggest_threshold(np.zeros((0, D)))
    centres = rng.normal(size=(150, D))
    for count in (0.0, 1e4):
        with pytest.raises(ValueError, match="more than 0 and at most 10%"):
            auditing.suggest_threshold(centres, false_alarms=count)


def test_threshold_is_one_where_centres_cannot_be_told_apart(rng):
    centres = rng.normal(size=(200, 2))
    assert auditing.suggest_threshold(centres) == 1
