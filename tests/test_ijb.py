"""Reading of IJB metadata: what it says, and one line for every fault."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperface_jax.evaluation import ijb, integer_table
from hyperface_jax.evaluation.ijb import read_ijb
from hyperface_jax.evaluation.ijb_agreement import check_agreement

FILES = {
    "ijbc_face_tid_mid.txt": "1.jpg 4 70\n2.jpg 4 71\n3.jpg 2 70\n4.jpg 9 1\n",
    "ijbc_name_5pts_score.txt": "".join(
        f"{k}.jpg 1 2 3 4 5 6.5 7 8 9 {k} 0.{k}\n" for k in (1, 2, 3, 4)
    ),
    "ijbc_template_pair_label.txt": "2 4 1\n9 4 0\n4 4 1\n",
    "ijbc_1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n4,11,a\n4,11,b\n",
    "ijbc_1N_gallery_G2.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n9,12,a\n",
    "ijbc_1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID\r\n9,12\r\n2,11\r\n9,12\r\n",
}


def write(folder, files=FILES):
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.core
@pytest.mark.parametrize("subset", ["ijbb", "ijbc"])
def test_a_folder(tmp_path, subset):
    gallery = "G" if subset == "ijbc" else "S"
    files = {
        name.replace("ijbc", subset).replace("gallery_G", f"gallery_{gallery}"): text
        for name, text in FILES.items()
    }
    found = read_ijb(write(tmp_path, files))
    assert found.image_names == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert list(found.template_id) == [4, 4, 2, 9]
    assert list(found.media_id) == [70, 71, 70, 1]
    assert list(found.template_ids) == [2, 4, 9]
    assert list(found.first) == [0, 2, 1]
    assert list(found.second) == [1, 1, 1]
    assert list(found.is_genuine) == [True, False, True]
    np.testing.assert_allclose(
        found.landmarks[2], [[1, 2], [3, 4], [5, 6.5], [7, 8], [9, 3]]
    )
    np.testing.assert_allclose(found.detector_score, [0.1, 0.2, 0.3, 0.4])
    first, second = found.galleries
    assert (list(first.template), list(first.subject)) == ([1], [11])
    assert (list(second.template), list(second.subject)) == ([2], [12])
    assert found.probes is not None
    assert list(found.probes.template) == [2, 0]
    assert list(found.probes.subject) == [12, 11]


def test_without_1n_files(tmp_path):
    found = read_ijb(write(tmp_path, {k: v for k, v in FILES.items() if "1N" not in k}))
    assert found.galleries == ()
    assert found.probes is None


FAULTS = [
    ("face_tid_mid.txt", "1.jpg 4\n", "line 1: 2 columns, expected 3"),
    ("face_tid_mid.txt", "1.jpg 4 70\n2.jpg x 71\n", "line 2: template is 'x'"),
    ("face_tid_mid.txt", "1.jpg 4 7.5\n", "line 1: media is '7.5'"),
    ("face_tid_mid.txt", "1.jpg 4 -7\n", "line 1: media is '-7'"),
    ("face_tid_mid.txt", "1.jpg 4 " + "9" * 30 + "\n", "line 1: media is '99"),
    ("face_tid_mid.txt", b"\xff 4 7\n", "line 1: not UTF-8"),
    ("face_tid_mid.txt", "", "0 images"),
    ("name_5pts_score.txt", "1.jpg 1 2\n", "line 1: 3 columns, expected 12"),
    ("name_5pts_score.txt", "2.jpg" + " 1" * 11, "line 1: image '2.jpg', but the oth"),
    ("name_5pts_score.txt", "1.jpg" + " 1" * 10 + " nan", "line 1: landmarks or score"),
    ("name_5pts_score.txt", "1.jpg" + " 1" * 10 + " 1e99", "line 1: landmarks or sco"),
    ("name_5pts_score.txt", "1.jpg" + " 1" * 10 + " a", "line 1: .* are not numbers"),
    ("name_5pts_score.txt", "1.jpg" + " 1" * 11, "1 rows, expected 4"),
    ("template_pair_label.txt", "2 4 1\n2 4\n", "line 2: 2 columns, expected 3"),
    ("template_pair_label.txt", "2 4 1\n\n2 4 1\n", "line 2: 0 columns, expected 3"),
    ("template_pair_label.txt", "2 4\n1 2 4 1\n", "line 1: 2 columns, expected 3"),
    ("template_pair_label.txt", "2 4 1\n2 4.0 1\n", "line 2: '.' found, expected who"),
    ("template_pair_label.txt", "2 4 1\n4 3 1\n", "line 2: template 3 has no image"),
    ("template_pair_label.txt", "2 4 1\n4 99 1\n", "line 2: template 99 has no image"),
    ("template_pair_label.txt", "2 4 2\n", "line 1: label is 2, expected 0 or 1"),
    ("template_pair_label.txt", "2 " + "4" * 25 + " 0", "line 1: more than 18 digits"),
    ("template_pair_label.txt", "", "0 pairs"),
    ("1N_gallery_G1.csv", "T,S\n4\n", "line 2: 1 columns, expected 2 or more"),
    ("1N_gallery_G1.csv", "T,S\n4,11\n5,11\n", "line 3: template 5 has no image"),
    ("1N_gallery_G1.csv", "T,S\n4,11\n4,12\n", "line 3: template 4 is subject 12, ab"),
    ("1N_gallery_G1.csv", "T,S\n4,b\n", "line 2: subject is 'b'"),
    ("1N_gallery_G1.csv", "T,S\n", "0 templates"),
    ("1N_gallery_G1.csv", "4,11\n9,12\n", "line 1: found '4,11', expected a header"),
]


@pytest.mark.parametrize(("name", "text", "message"), FAULTS)
def test_a_fault_is_one_line(tmp_path, name, text, message):
    write(tmp_path, FILES | {f"ijbc_{name}": text})
    with pytest.raises(ValueError, match=message) as error:
        read_ijb(tmp_path)
    assert f"ijbc_{name}" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="found neither"):
        read_ijb(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match=r"ijbb_face_tid_mid\.txt: no such file"):
        read_ijb(tmp_path, subset="ijbb")
    with pytest.raises(ValueError, match="subset is 'ijba'"):
        read_ijb(tmp_path, subset="ijba")
    (tmp_path / "ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(ValueError, match=r"gallery_G2\.csv: no such file"):
        read_ijb(tmp_path)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(sorted(FILES)),
    start=st.floats(0, 1),
    cut=st.integers(0, 12),
    new=st.one_of(
        st.binary(max_size=8), st.text("0123456789 \n\r\t,.-+exnaif", max_size=9)
    ),
)
def test_no_mutation_crashes(tmp_path, name, start, cut, new):
    data = FILES[name].encode()
    at = int(start * len(data))
    new = new if isinstance(new, bytes) else new.encode()
    write(tmp_path, FILES | {name: data[:at] + new + data[at + cut :]})
    try:
        found = read_ijb(tmp_path)
    except ValueError as error:
        message = str(error)
    else:
        message = "ijbc_ is well"
        assert len(found.image_names) == len(found.template_id) == len(found.landmarks)
        assert found.first.max() < len(found.template_ids)
    assert "ijbc_" in message
    assert "\n" not in message


@pytest.mark.parametrize("end", ["\n", "", "\r\n", " \t\n", "\n\n \r\n\n", "\n "])
@pytest.mark.parametrize("block", [1, 3, 8, 1000])
def test_blocks_of_any_size(tmp_path, rng, block, end):
    expected = rng.integers(0, 10 ** rng.integers(1, 18, (50, 3)), (50, 3))
    lines = [" ".join(map(str, row)) for row in expected.tolist()]
    file = ijb.epath.Path(tmp_path) / "table"
    file.write_text("\n".join(lines) + end)
    parts = list(integer_table.read_integer_blocks(file, 3, block=block))
    np.testing.assert_array_equal(
        np.concatenate([table for _, table in parts]), expected
    )
    assert [number for number, table in parts] == list(
        1 + np.cumsum([0] + [len(table) for _, table in parts[:-1]])
    )


def test_a_byte_order_mark_and_blank_last_lines_are_not_content(tmp_path):
    plain = read_ijb(write(tmp_path))
    marked = {name: f"\ufeff{text}\n \n" for name, text in FILES.items()}
    found = read_ijb(write(tmp_path, marked))
    assert found.image_names == plain.image_names
    np.testing.assert_array_equal(found.first, plain.first)
    np.testing.assert_array_equal(found.galleries[1].subject, [12])


def agreement(tmp_path, caplog, **changed):
    """What is said of a folder with other 1:N or pair files."""
    names = {
        "gallery": "ijbc_1N_gallery_G2.csv",
        "probes": "ijbc_1N_probe_mixed.csv",
        "pairs": "ijbc_template_pair_label.txt",
    }
    files = {name: changed.get(key, "") for key, name in names.items()}
    files = FILES | {name: text for name, text in files.items() if text}
    check_agreement(read_ijb(write(tmp_path, files)), "IJBC")
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return said


def test_files_that_contradict_each_other_are_noticed(tmp_path, caplog):
    one_pair = dict(probes="T,S\n2,11\n", pairs="2 4 1\n")
    fine = dict(probes="T,S\n2,11\n", pairs="2 4 1\n9 4 0\n")
    assert agreement(tmp_path, caplog, **fine) == []
    (said,) = agreement(tmp_path, caplog, **fine | dict(probes="T,S\n4,11\n"))
    assert said == "IJBC: 1 probes are templates of a gallery: they find themselves"
    (said,) = agreement(tmp_path, caplog, gallery="T,S\n9,11\n", **one_pair)
    assert "1 subjects are in both galleries, expected none" in said
    (said,) = agreement(tmp_path, caplog, **fine | dict(pairs="2 4 0\n9 4 0\n4 2 1\n"))
    assert "labels of 1 pairs contradict" in said
    assert said.endswith("the first: templates 2 and 4")
    (said,) = agreement(tmp_path, caplog, **fine | dict(pairs="4 4 1\n"))
    assert "1 pairs compare a template with itself" in said
    with pytest.raises(ValueError, match="template 4 is subject 11 in one 1:N file an"):
        agreement(tmp_path, caplog, probes="T,S\n4,12\n")


def test_the_line_of_a_fault_in_a_later_block(tmp_path):
    file = ijb.epath.Path(tmp_path) / "table"
    file.write_text("1 2\n" * 40 + "1 b\n")
    with pytest.raises(ValueError, match="table, line 41: 'b' found"):
        list(integer_table.read_integer_blocks(file, 2, block=16))


@pytest.mark.parametrize("largest", [50, 10**12])
def test_template_rows_by_table_and_by_search(tmp_path, largest):
    ids = np.array([3, 7, largest])
    file = ijb.epath.Path(tmp_path) / "pairs"
    file.write_text(f"7 {largest} 0\n3 7 1\n")
    first, second, is_genuine = ijb.read_pairs(file, ids)
    assert (list(first), list(second)) == ([1, 0], [2, 1])
    assert (first.dtype, list(is_genuine)) == (np.int32, [False, True])
    for stranger in (4, 10**9, 10**15):
        file.write_text(f"3 7 1\n{stranger} 3 1\n")
        with pytest.raises(ValueError, match=f"line 2: template {stranger} has no"):
            ijb.read_pairs(file, ids)
