"""Choices about a training set: exclusions, noise, samplers; lists of names."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import record_files
import toy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyperface_jax.data import (
    datasets,
    edits,
    insightface,
    name_lists,
    orders,
    pipeline,
    preparing,
    sources,
    splits,
)


@pytest.fixture
def faces(tmp_path):
    return insightface.open_insightface(
        record_files.write_insightface(tmp_path / "f", people=6, images=10, size=16)
    )


@settings(max_examples=200, deadline=None)
@example([["\ud800", "a\\ud800", "\udfff\t"]])
@given(st.lists(st.lists(st.text(st.characters()), min_size=1, max_size=3), max_size=5))
def test_any_name_survives_a_list(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.tsv"
        name_lists.write_names(path, rows)
        assert name_lists.read_names(path) == rows
    assert name_lists.escape("Ana_Guevara/Ana Guevara.jpg") == (
        "Ana_Guevara/Ana Guevara.jpg"
    )


def test_names_that_break_lists_and_utf8(tmp_path):
    source = toy.write_folder(tmp_path / "faces", people=2, images=1)
    image = (source / "Person_00" / "Person_00_0001.jpg").read_bytes()
    odd = ["a\tb.jpg", "a\nb.jpg", "caf\udce9.jpg"]
    for name in odd:
        (source / "Person_01" / name).write_bytes(image)
    (source / "Person_01" / "bad\t.jpg").write_bytes(b"")
    faces = sources.open_path(str(source))
    folder = tmp_path / "out"
    options = preparing.Options(verify=True)
    datasets.convert(faces, folder, name="faces", source="x", options=options)
    copy = sources.open_path(str(folder))
    assert (len(copy), copy.num_classes) == (5, 2)
    listed = edits.read_exclusions(folder / "duplicates.tsv")["image"]
    assert "Person_01/a\tb" in listed
    assert "Person_01/a\nb" in listed
    kept = edits.exclude(faces, {"image": listed})
    assert len(kept) < len(faces)


def test_exclusions(faces, tmp_path):
    path = tmp_path / "leave_out.tsv"
    path.write_text("# seen in the test set\nidentity\t2\toverlap\nimage\t1\tblurred\n")
    kept = edits.exclude(faces, edits.read_exclusions(path))
    assert (len(kept), kept.num_classes) == (49, 5)
    assert kept.identities == ("0", "1", "3", "4", "5")
    assert kept.read([0])[0]["id"] == "2"
    assert kept.fingerprint != faces.fingerprint
    for text, message in (
        ("identity\tnobody\n", "no identity 'nobody' to exclude"),
        ("image\t999\n", "no image '999' to exclude"),
        ("person\t1\n", "line 1: found 'person"),
        ("".join(f"identity\t{k}\n" for k in range(6)), "nothing is left"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            edits.exclude(faces, edits.read_exclusions(path))


def test_exclusions_leave_the_test_people_alone(tmp_path):
    folder = toy.write_folder(tmp_path / "people")
    pairs = toy.write_pairs(tmp_path / "pairs.txt")
    (tmp_path / "out.tsv").write_text("identity\tPerson_01\nidentity\tPerson_09\n")
    options = dict(path=str(folder), pairs_path=str(pairs), fold=1, dev_fraction=0.0)
    whole, _ = splits.train_and_test("faces", **options)
    train, (test,) = splits.train_and_test(
        "faces", exclude=str(tmp_path / "out.tsv"), **options
    )
    assert set(whole.identities) - set(train.identities) == {"Person_09"}
    rows = np.union1d(test.pairs.first, test.pairs.second)
    assert (test.faces.label_of_row()[rows] >= 0).all()


def test_at_most_keeps_k_of_each(faces):
    kept = edits.at_most(faces, 4, seed=0)
    assert np.bincount(kept.labels).tolist() == [4] * 6
    assert edits.at_most(faces, 0, seed=0) is faces
    again, other = (edits.at_most(faces, 4, seed=s).rows.tolist() for s in (0, 1))
    assert kept.rows.tolist() == again != other


def test_at_least_leaves_out_people_with_few_images(tmp_path):
    folder = toy.write_folder(tmp_path / "people", people=4, images=3)
    (folder / "Person_01" / "Person_01_0001.jpg").unlink()
    faces = sources.open_path(str(folder))
    kept = edits.at_least(faces, 3)
    assert kept.identities == ("Person_00", "Person_02", "Person_03")
    assert kept.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert kept.read([3])[0]["id"] == "Person_02/Person_02_0001"
    assert edits.at_least(faces, 1) is faces
    with pytest.raises(ValueError, match=r"data\.min_images is 4, but nobody"):
        edits.at_least(faces, 4)


def test_label_noise_and_split_identities_change_labels_only(faces):
    noisy = edits.add_label_noise(faces, 0.5, seed=0)
    changed = (noisy.labels != faces.labels).mean()
    assert 0.2 < changed < 0.6
    reader = pipeline.BatchReader(noisy, image_size=16, threads=1)
    assert reader(range(60))["weight"].all()  # noise on purpose is no bad record
    cut = edits.split_identities(faces, 1.0, seed=0)
    assert cut.num_classes == 12
    assert (np.bincount(cut.labels) > 0).all()
    for person in range(6):
        halves = set(cut.labels[faces.labels == person])
        assert halves == {person, 6 + person}
    assert edits.split_identities(faces, 0.0, seed=0) is faces


@pytest.mark.parametrize("sampler", ["sqrt", "identity"])
def test_samplers_draw_people_by_a_power_of_their_images(sampler):
    labels = np.repeat([0, 1, 2], [4, 16, 64])
    power = orders.SAMPLERS[sampler]
    indices = orders.batch_indices(labels, batch_size=21, seed=0, sampler=sampler)
    drawn = np.concatenate([indices[k] for k in range(400)])  # 100 epochs
    share = np.bincount(labels[drawn]) / len(drawn)
    expected = np.array([4.0, 16, 64]) ** power
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.01)
    counts = np.bincount(drawn, minlength=84)
    ideal = 100 * edits.sampling_weights(labels, power)
    assert (np.abs(counts - ideal) < 40).all()
    again = orders.batch_indices(labels, batch_size=21, seed=0, sampler=sampler)
    np.testing.assert_array_equal(again[399], indices[399])
    np.testing.assert_array_equal(again[0], indices[0])
