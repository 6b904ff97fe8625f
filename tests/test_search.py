"""`python -m hyperface_jax.search`: the nearest rows are those of a sort in float64."""

import json
import sys

import numpy as np
import pytest

from hyperface_jax import search
from hyperface_jax.evaluation import (
    best_groups,
    embedding_files,
    faiss_index,
    nearest,
    parquet,
    stored,
)


def by_sorting(gallery, probes, k):
    """Scores and rows of a stable sort in float64; rows that are 0 are left out."""

    def unit(x):
        x = x.astype(np.float64) / np.abs(x).max(axis=1, keepdims=True)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    with np.errstate(invalid="ignore", divide="ignore"):
        cos = unit(probes) @ unit(gallery).T
    cos = np.where(np.isnan(cos), -np.inf, np.round(cos, 12))
    order = np.argsort(-cos, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(cos, order, axis=1)
    return scores, np.where(np.isneginf(scores), -1, order)


def assert_exact(gallery, probes, k, **options):
    found = nearest.search(gallery, probes, k, **options)
    scores, rows = by_sorting(gallery, probes, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=2e-12)
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("rows", "block"), [(1000, 256), (1024, 256), (37, None)])
def test_random_galleries(rng, dtype, rows, block):
    gallery = (5 * rng.normal(size=(rows, 24))).astype(dtype)
    probes = rng.normal(size=(9, 24)).astype(dtype)
    for k in (1, 10):
        assert_exact(gallery, probes, k, block=block)
    scores, columns = nearest.top_k(gallery, probes, rows + 5, block=block)
    assert scores.shape == columns.shape == (9, rows)
    np.testing.assert_array_equal(columns, by_sorting(gallery, probes, rows)[1])


def test_of_a_tie_the_lower_row_comes_first(rng):
    gallery = rng.normal(size=(600, 8)).astype(np.float32)
    gallery[[3, 250, 599]] = gallery[411]
    gallery[77] = 4 * gallery[411]
    found = assert_exact(gallery, gallery[[411, 3, 5]], 7, block=128)
    assert found.rows[0, :5].tolist() == [3, 77, 250, 411, 599]


@pytest.mark.parametrize("kinds", [1, 3])
def test_a_gallery_of_copies_is_searched_in_float64(rng, kinds, monkeypatch):
    monkeypatch.setattr(best_groups, "_MERGED", 16)
    some = rng.normal(size=(kinds, 16)).astype(np.float32)
    gallery = np.repeat(some, 3000 // kinds, axis=0)[rng.permutation(3000)]
    gallery[::7] = rng.normal(size=(429, 16))
    assert_exact(gallery, np.concatenate([some, gallery[:3]]), 5, block=512)


def test_scores_that_float32_cannot_tell_apart(rng):
    probe = rng.normal(size=(2, 64))
    gallery = probe[0] + 1e-5 * rng.normal(size=(4000, 64))
    assert_exact(gallery, probe, 10, block=1024)


def test_the_best_may_be_in_any_block(rng):
    """Rising scores: each block displaces all that was kept."""
    gallery = np.stack([np.ones(5000), np.linspace(3, 0, 5000)], axis=1)
    gallery = gallery.astype(np.float32)
    found = assert_exact(gallery, np.float32([[1, 0], [-1, 0]]), 4, block=64)
    assert found.rows[0].tolist() == [4999, 4998, 4997, 4996]


def test_rows_that_are_zero_match_nothing_and_are_reported(rng):
    gallery = rng.normal(size=(300, 8)).astype(np.float32)
    gallery[[0, 64, 299]] = 0
    probes = gallery[[1, 64, 2]]
    found = assert_exact(gallery, probes, 300, block=64)
    assert found.blank_gallery.tolist() == [0, 64, 299]
    assert found.blank_probes.tolist() == [1]
    assert (found.rows[1] == -1).all()
    assert np.isneginf(found.scores[1]).all()
    assert (found.rows[0] >= 0).sum() == 297
    nothing = nearest.search(np.zeros((5, 8), np.float32), probes, 2)
    assert (nothing.rows == -1).all()


def test_lengths_beyond_float32s_squares(rng):
    gallery = rng.normal(size=(200, 8))
    gallery[5] *= 1e-30
    gallery[150] *= 1e25
    gallery[151] *= 1e200
    probes = gallery[[5, 150, 151]]
    found = assert_exact(gallery, probes, 3, block=64)
    assert found.rows[:, 0].tolist() == [5, 150, 151]
    assert len(found.blank_gallery) == 0


def test_views_are_summed_and_probes_go_in_passes(rng, monkeypatch):
    monkeypatch.setattr(nearest, "PROBES", 4)
    views = rng.normal(size=(500, 2, 8)).astype(np.float16)
    summed = views.astype(np.float32).sum(axis=1)
    found = nearest.search(views, views[:10], 3, block=96)
    scores, rows = by_sorting(summed, summed[:10], 3)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)


def test_one_program_serves_all_blocks(rng):
    gallery = rng.normal(size=(1003, 12)).astype(np.float32)
    # jax may throw out what other tests compiled, so no difference of sizes tells.
    nearest._best_of_groups.clear_cache()
    nearest.top_k(gallery, gallery[:11], 3, block=160)
    assert nearest._best_of_groups._cache_size() == 1


@pytest.mark.parametrize(
    ("gallery", "probes", "k", "message"),
    [
        (np.zeros((0, 4)), np.ones((1, 4)), 1, r"gallery: found \[0, 4\], expected 1"),
        (np.ones((1, 4)), np.zeros((0, 4)), 1, r"probes: found \[0, 4\]"),
        (np.ones((2, 4)), np.ones((2, 5)), 1, "probes: found .* 5 numbers, expected 4"),
        (np.ones((2, 4)), np.ones((2, 4)), 0, "k is 0, expected at least 1"),
        (np.float32([[1], [np.nan]]), np.ones((1, 1)), 1, "gallery: row 1 holds NaN"),
        (np.ones((1, 1)), np.array([[1], [np.inf]]), 1, "probes: row 1 holds NaN or i"),
    ],
)
def test_arrays_that_cannot_be_searched(gallery, probes, k, message):
    with pytest.raises(ValueError, match=message):
        nearest.top_k(gallery, probes, k)


def test_a_nan_in_a_later_block_has_its_row(rng):
    gallery = rng.normal(size=(300, 4)).astype(np.float32)
    gallery[5], gallery[217, 2] = 0, np.inf
    with pytest.raises(ValueError, match=r"g\.npy: row 217 holds NaN or infinity"):
        nearest.search(gallery, gallery[:1], 1, block=64, names=("g.npy", "p"))


# The command line.


@pytest.fixture
def files(tmp_path, rng):
    """40 gallery rows, row 7 unreadable; 5 probes near to rows 0, 1, 2, 3 and 4."""
    gallery = rng.normal(size=(40, 16)).astype(np.float32)
    gallery[7] = 0
    probes = gallery[:5] + np.float32(0.01)
    ids = [f"face {k}" for k in range(40)]
    np.save(tmp_path / "g.npy", gallery)
    np.savez(tmp_path / "g.npz", embeddings=gallery, ids=ids)
    parquet.write_parquet(tmp_path / "g.parquet", ids, gallery, {"dimension": 16})
    store = stored.EmbeddingStore.create(
        tmp_path / "g", ids, views=2, dimension=16, images="i", weights="w"
    )
    store.write(0, range(40), np.stack([gallery, gallery], 1), {7: "0 bytes"})
    np.save(tmp_path / "p.npy", probes)
    (tmp_path / "p.txt").write_text("".join(f"probe\\t{k}\n" for k in range(5)))
    return tmp_path


def run(folder, *options, gallery="g.npz", probes="p.npy", out="out.tsv"):
    search.main(
        [
            *(f"--gallery={folder / gallery}", f"--probes={folder / probes}"),
            *(f"--out={folder / out}", *options),
        ]
    )
    return folder / out


@pytest.mark.parametrize("gallery", ["g.npy", "g.npz", "g.parquet", "g"])
def test_all_inputs_give_the_same_table(files, gallery, capsys):
    lines = run(files, "--top=3", gallery=gallery).read_text().splitlines()
    assert lines[0] == "probe\trank\tgallery\tscore"
    assert len(lines) == 1 + 5 * 3
    for k in range(5):
        probe, rank, row, score = lines[1 + 3 * k].split("\t")
        assert (probe, rank) == (rf"probe\t{k}", "1")
        assert row == (str(k) if gallery == "g.npy" else f"face {k}")
        assert 0.99 < float(score) <= 1
    printed = capsys.readouterr().out
    assert "5 probes, 40 gallery rows, index: exact" in printed
    assert "1 rows of the gallery are 0 (unreadable images)" in printed
    assert "A rank is no identification" in printed


def test_all_outputs_hold_the_same(files):
    tsv = [line.split("\t") for line in run(files).read_text().splitlines()[1:]]
    with np.load(run(files, out="o.npz")) as arrays:
        assert arrays["row"].shape == arrays["score"].shape == (5, 10)
        assert arrays["gallery"].ravel().tolist() == [line[2] for line in tsv]
        assert arrays["probe"][4] == "probe\t4"
        about = json.loads(str(arrays["about"]))
    assert about["index"] == "exact"
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(run(files, out="new/o.parquet"))
    assert table.column_names == list(search.COLUMNS)
    assert table["gallery"].to_pylist() == [line[2] for line in tsv]
    assert table["rank"].to_pylist() == [int(line[1]) for line in tsv]
    assert json.loads(table.schema.metadata[b"hyperface_jax"]) == about | {
        "gallery": str(files / "g.npz")
    }
    assert not list(files.rglob("*.tmp"))


def test_a_threshold_leaves_out_what_is_below(files, capsys):
    lines = run(files, "--threshold=0.9").read_text().splitlines()
    assert [line.split("\t")[2] for line in lines[1:]] == [
        f"face {k}" for k in range(5)
    ]
    with np.load(run(files, "--threshold=1", out="o.npz")) as arrays:
        assert (arrays["row"] == -1).all()
        assert (arrays["gallery"] == "").all()
    assert "5 probes have none" in capsys.readouterr().out
    pq = pytest.importorskip("pyarrow.parquet")
    assert len(pq.read_table(run(files, "--threshold=1", out="o.parquet"))) == 0


@pytest.mark.parametrize("index", ["faiss", "ivf:4,4", "hnsw:8,64"])
def test_indexes_of_faiss(files, index, capsys):
    pytest.importorskip("faiss")
    exact = run(files).read_text()
    capsys.readouterr()
    assert run(files, f"--index={index}", out="f.tsv").read_text() == exact
    printed = capsys.readouterr().out
    assert ("approximate" in printed) == (index != "faiss")
    assert "1 rows of the gallery are 0" in printed


def test_faiss_leaves_out_zero_rows(rng):
    pytest.importorskip("faiss")
    gallery = rng.normal(size=(30, 4)).astype(np.float32)
    gallery[::2] = 0
    probes = -gallery[[1, 2]]
    found = faiss_index.search(gallery, probes, 20, "faiss")
    scores, rows = by_sorting(gallery, probes, 20)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=2e-12)
    assert found.blank_gallery.tolist() == list(range(0, 30, 2))
    with pytest.raises(ValueError, match="15 rows of gallery are not 0, expected 20"):
        faiss_index.search(gallery, probes, 1, "ivf:20,1")
    for kind in ("hnsw:99999999999,10", "hnsw:16,99999999999", "hnsw:1,10"):
        with pytest.raises(ValueError, match=r"expected 2 to 1024 and at most 2147"):
            faiss_index.search(gallery, probes, 1, kind)
    with pytest.raises(ValueError, match="31 cells, expected at most 30"):
        faiss_index.search(gallery, probes, 1, "ivf:31,1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": ["--top=0"]}, "--top is 0, expected at least 1"),
        ({"options": ["--threshold=2"]}, "--threshold is 2.0, expected a cosine"),
        (
            {"options": ["--index=ivf:4"]},
            "index is 'ivf:4', expected exact, faiss, ivf",
        ),
        ({"out": "o.csv"}, "o.csv, expected a name ending .tsv, .npz, .parquet"),
        ({"out": "p.npy/o.tsv"}, "o.tsv: cannot be written to ("),
        ({"gallery": "none.npy"}, "none.npy: not found, expected embeddings"),
        ({"gallery": "empty.npy"}, "empty.npy: found [0, 1, 16], expected 1 row"),
        ({"probes": "empty.npy"}, "empty.npy: found [0, 1, 16], expected 1 row"),
        ({"probes": "short.npy"}, "short.npy: found embeddings of 8 numbers, expect"),
        ({"gallery": "nan.npy"}, "nan.npy: row 2 holds NaN or infinity"),
        (
            {"gallery": "cols.parquet"},
            "cols.parquet: found columns id, x, expected emb",
        ),
        (
            {"gallery": "mixed.parquet"},
            "mixed.parquet: row 1 has 3 numbers, expected 2",
        ),
        ({"gallery": "ints.parquet"}, "ints.parquet: embedding is list<element: int64"),
        ({"gallery": "gaps.parquet"}, "gaps.parquet: row group 0 lacks ids or embed"),
        ({"gallery": "text.parquet"}, "text.parquet: not a readable Parquet file"),
    ],
)
def test_wrong_input_is_one_line(files, options, message):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    np.save(files / "empty.npy", np.zeros((0, 16)))
    np.save(files / "short.npy", np.ones((2, 8)))
    np.save(files / "nan.npy", np.array([[1.0] * 16, [0] * 16, [np.nan] * 16]))
    (files / "text.parquet").write_text("no")
    for name, columns in {
        "cols": {"id": ["a"], "x": [1]},
        "mixed": {"id": ["a", "b"], "embedding": [[1.0, 2.0], [1.0, 2.0, 3.0]]},
        "ints": {"id": ["a"], "embedding": [[1, 2]]},
        "gaps": {"id": ["a", "b"], "embedding": [[1.0, 2.0], None]},
    }.items():
        pq.write_table(pa.table(columns), files / f"{name}.parquet")
    with pytest.raises(SystemExit) as error:
        run(files, *options.pop("options", []), **options)
    line = str(error.value)
    assert message in line
    assert line.startswith("error: ")
    assert "\n" not in line


@pytest.mark.parametrize("package", ["faiss", "pyarrow"])
def test_an_absent_package_is_one_line_with_its_extra(files, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"faiss": "search", "pyarrow": "parquet"}[package]
    with pytest.raises(SystemExit, match=rf"hyperface_jax\[{extra}\]"):
        run(
            files,
            *(["--index=faiss"] if package == "faiss" else []),
            out="o.tsv" if package == "faiss" else "o.parquet",
        )


def test_parquet_by_row_groups(tmp_path, rng, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "ROWS", 30)
    embeddings = rng.normal(size=(100, 6)).astype(np.float32)
    ids = [f"ü/{k}" for k in range(100)]
    path = tmp_path / "e.parquet"
    parquet.write_parquet(path, ids, embeddings, {"weights": "abc", "views": [1, 2]})
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 4
    assert str(file.schema_arrow.field("embedding").type).startswith("fixed_size_list")
    found_ids, found, metadata = parquet.read_parquet(path)
    assert found_ids == tuple(ids)
    np.testing.assert_array_equal(found, embeddings)
    assert metadata == {"weights": "abc", "views": [1, 2]}
    assert embedding_files.open_embeddings(path).views.shape == (100, 1, 6)
    with pytest.raises(ValueError, match="99 ids for 100 embeddings"):
        parquet.write_parquet(path, ids[1:], embeddings)
    with pytest.raises(ValueError, match=r"e\.parquet: found \[100, 0\], expected"):
        parquet.write_parquet(path, ids, embeddings[:, :0])
    parquet.write_parquet(path, [], embeddings[:0])
    assert parquet.read_parquet(path)[1].shape == (0, 6)


def test_the_gallery_is_not_overwritten(tmp_path):
    np.savez(tmp_path / "g.npz", embeddings=np.eye(3, dtype=np.float32))
    files = ("--gallery", tmp_path / "g.npz", "--probes", tmp_path / "g.npz")
    arguments = map(str, (*files, "--out", tmp_path / "g.npz"))
    with pytest.raises(ValueError, match="the file of --gallery: expected another"):
        search.search(search.parser().parse_args([*arguments]))
