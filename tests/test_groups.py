"""Error rates by group against a plain count, and the file of groups."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyperface_jax.evaluation import groups as g
from hyperface_jax.evaluation import roc


@pytest.fixture
def pairs(rng):
    scores = np.round(rng.normal(size=400), 1)
    is_genuine = rng.uniform(size=400) < 0.3
    first = rng.integers(0, 20, 400)
    second = np.where(is_genuine, first, (first + rng.integers(1, 20, 400)) % 20)
    groups = {k: "abc"[k % 3] for k in range(20)} | {99: "nobody"}
    return scores + is_genuine, is_genuine, first, second, groups


@pytest.mark.core
def test_against_a_plain_count(pairs):
    scores, is_genuine, first, second, groups = pairs
    found = g.rates_by_group(scores, is_genuine, first, second, groups, fmr=0.05)
    impostors = scores[~is_genuine]
    lowest = min(t for t in scores if np.mean(impostors >= t) <= 0.05)
    assert found.threshold == lowest
    assert found.fmr == np.mean(impostors >= lowest)
    assert found.fnmr == pytest.approx(np.mean(scores[is_genuine] < lowest))
    tar = roc.tar_at_far(scores, is_genuine, 0.05)
    assert found.fnmr == pytest.approx(1 - tar)
    counted = {}
    for score, same, i, j in zip(scores, is_genuine, first, second, strict=True):
        kind = "fnmr" if same else "fmr"
        key = (kind, *sorted([groups[i], groups[j]]))
        n, k = counted.get(key, (0, 0))
        wrong = score < lowest if same else score >= lowest
        counted[key] = (n + 1, k + int(wrong))
    assert {
        (r.kind, r.group, r.other): (r.pairs, r.errors) for r in found.rows
    } == counted
    order = [(r.kind, r.group + r.other) for r in found.rows]
    assert order == [("fnmr", name) for name in ("aa", "bb", "cc")] + [
        ("fmr", name) for name in ("aa", "bb", "cc", "ab", "ac", "bc")
    ]
    for row in found.rows:
        assert row.rate == row.errors / row.pairs
        assert 0 <= row.low <= row.rate <= row.high <= 1


def test_groups_of_images_may_cross_in_genuine_pairs():
    found = g.rates_by_group(
        np.array([0.9, 0.1, 0.5, 0.2]),
        np.array([True, True, False, False]),
        ["old", "young", "old", "old"],
        ["young", "old", "old", "old"],
        {"old": "60+", "young": "20"},
        fmr=0.5,
    )
    assert found.rows[0][:5] == ("fnmr", "20", "60+", 2, 1)
    assert found.threshold == 0.5


@pytest.mark.parametrize(("errors", "pairs"), [(0, 10), (3, 10), (10, 10), (1, 100000)])
def test_wilson(errors, pairs):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(errors, pairs).proportion_ci(method="wilson")
    np.testing.assert_allclose(g.wilson(errors, pairs), tuple(expected), atol=1e-12)


def test_wrong_input_is_one_line(pairs):
    scores, is_genuine, first, second, groups = pairs
    del groups[4], groups[5]
    with pytest.raises(ValueError, match="2 ids of the pairs have no group, such as"):
        g.rates_by_group(scores, is_genuine, first, second, groups, fmr=0.1)
    with pytest.raises(ValueError, match="impostor pairs here resolve"):
        g.rates_by_group(scores, is_genuine, first, second, groups, fmr=1e-6)
    with pytest.raises(ValueError, match="first_id has 1 entries and second_id 2"):
        g.rates_by_group(scores, is_genuine, [1], [1, 2], groups, fmr=0.1)
    with pytest.raises(ValueError, match="ids of 1 pairs for 400 scores"):
        g.rates_by_group(scores, is_genuine, [1], [2], groups, fmr=0.1)
    with pytest.raises(ValueError, match="errors is 3 of 2"):
        g.wilson(3, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"7,women\n8,men\n",
        b"id,group\r\n7,women\r\n8,men",
        b"\xef\xbb\xbf7\twomen\n\n8\tmen\n",
        b'"7", women\n 8 ,"men"\n7,women\n\n',
    ],
)
def test_a_file_of_groups(tmp_path, data):
    file = tmp_path / "groups"
    file.write_bytes(data)
    assert g.read_groups(file) == {"7": "women", "8": "men"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 ids"),
        (b"id,group\n", "0 ids"),
        (b"a,b\nc\n", "line 2: 1 columns"),
        (b"a,b\nc,d,e\n", "line 2: 3 columns"),
        (b"a,b\n,d\n", "line 2: the id or the group is empty"),
        (b"a,b\nc,d\na,d\n", "line 3: 'a' is in 'd' and in 'b'"),
        (b"a,b\nc\xff,d\n", "line 2: not UTF-8"),
        (b"a,b\n" + b"x" * 200_000 + b",c\n", "line 2: field larger"),
    ],
)
def test_a_fault_is_one_line(tmp_path, data, message):
    file = tmp_path / "groups"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        g.read_groups(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        g.read_groups(tmp_path / "nothing")


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.one_of(st.binary(max_size=30), st.text('ab,\t\n\r" \x00', max_size=30)))
def test_no_file_crashes(tmp_path, data):
    file = tmp_path / "groups"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    try:
        found = g.read_groups(file)
    except ValueError as error:
        message = str(error)
    else:
        message = "" if all(found) and all(found.values()) else "an empty field"
    assert "\n" not in message
    assert "empty field" not in message
