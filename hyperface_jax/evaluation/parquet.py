"""Embeddings as Parquet, by row groups: what data frames and vector databases read.

    id         string
    embedding  fixed-size list of float32, D of them

The schema's metadata hold one JSON text under `hyperface_jax`. Needs pyarrow (extra
`parquet`), which is imported when a file is opened.

Letters: N rows, D dimensions.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from hyperface_jax import workdir

ROWS = 65536
"""Rows of a group."""

_KEY = b"hyperface_jax"


def write_parquet(
    path: str | os.PathLike,
    ids: Sequence[str],
    embeddings: Any,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: to write to.
      ids: of the rows [N].
      embeddings: [N, D], also a memory map or `embedding_files.Sums`: whatever has a
        shape and gives rows; written as float32.
      metadata: of the file, anything that JSON takes.

    Raises:
      ValueError: ids or shape do not fit, or the file cannot be written.
    """
    if len(embeddings.shape) != 2 or not embeddings.shape[1]:
        raise ValueError(f"{path}: found {list(embeddings.shape)}, expected [N, D]")
    count = embeddings.shape[0]
    if len(ids) != count:
        raise ValueError(f"{path}: {len(ids)} ids for {count} embeddings")
    check_ids(path, ids)
    pa = pyarrow()
    size = embeddings.shape[1]

    def groups() -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(ids), ROWS):
            part = np.asarray(embeddings[start : start + ROWS], np.float32)
            yield {
                "id": pa.array(ids[start : start + ROWS], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(part.ravel()), size
                ),
            }

    types = {"id": pa.string(), "embedding": pa.list_(pa.float32(), size)}
    write_table(path, types, groups(), metadata)


def check_ids(path: str | os.PathLike, ids: Sequence[str]) -> None:
    """Raises a ValueError where an id is a file name that is no UTF-8."""
    for id_ in ids:
        try:
            id_.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{path}: the id {id_!r} is no UTF-8, which Parquet needs (.npz does "
                "not)"
            ) from None


def write_table(
    path: str | os.PathLike,
    types: Mapping[str, Any],
    groups: Iterator[Mapping[str, Any]],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes columns, group by group; the file is whole or absent.

    Args:
      path: to write to.
      types: column -> type of Arrow.
      groups: column -> values, of each row group.
      metadata: of the file.
    """
    pa = pyarrow()
    import pyarrow.parquet as pq

    text = json.dumps(dict(metadata or {})).encode()
    schema = pa.schema(list(types.items()), metadata={_KEY: text})
    try:
        with (
            workdir.whole_file(epath.Path(path), "wb") as file,
            pq.ParquetWriter(file, schema) as writer,
        ):
            for group in groups:
                writer.write_table(pa.table(dict(group), schema=schema))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be written ({error})") from None


def read_parquet(
    path: str | os.PathLike,
) -> tuple[tuple[str, ...], Float[np.ndarray, "N D"], dict[str, Any]]:
    """Ids, float32 embeddings [N, D] and metadata.

    Lists of any float, and of no fixed size, are read too if all have one size.

    Raises:
      ValueError: no such file or columns, sizes that differ, or something missing.
    """
    pa = pyarrow()
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise ValueError(f"{path}: not found, expected a Parquet file")
    try:
        with contextlib.closing(pq.ParquetFile(path)) as file:
            return _read(path, file, pa)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from None


def _read(path, file, pa):
    schema = file.schema_arrow
    if missing := [name for name in ("id", "embedding") if name not in schema.names]:
        raise ValueError(
            f"{path}: found columns {', '.join(schema.names)}, expected "
            f"{' and '.join(missing)}, too"
        )
    kind = schema.field("embedding").type
    fixed = pa.types.is_fixed_size_list(kind)
    some_list = fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (some_list and pa.types.is_floating(kind.value_type)):
        raise ValueError(f"{path}: embedding is {kind}, expected a list of floats")
    ids: list[str] = []
    size: int | None = kind.list_size if fixed else None
    embeddings = np.empty((0, size or 0), np.float32)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["id", "embedding"])
        column = table["embedding"].combine_chunks()
        if table["id"].null_count or column.null_count:
            raise ValueError(f"{path}: row group {group} lacks ids or embeddings")
        if not fixed and len(column):
            sizes = column.value_lengths().to_numpy(zero_copy_only=False)
            size = int(sizes[0]) if size is None else size
            other = np.flatnonzero(sizes != size)
            if len(other):
                raise ValueError(
                    f"{path}: row {len(ids) + other[0]} has {sizes[other[0]]} numbers, "
                    f"expected {size} as in row 0"
                )
        values = column.flatten()
        if values.null_count:
            raise ValueError(f"{path}: row group {group} has embeddings with gaps")
        if len(embeddings) == 0:
            embeddings = np.empty((file.metadata.num_rows, size or 0), np.float32)
        part = values.to_numpy(zero_copy_only=False).reshape(len(column), size or 0)
        embeddings[len(ids) : len(ids) + len(part)] = part
        ids.extend(table["id"].cast(pa.string()).to_pylist())
    text = (schema.metadata or {}).get(_KEY, b"{}")
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = {}
    return tuple(ids), embeddings, metadata


def pyarrow() -> Any:
    """The library, or one line on how to get it."""
    try:
        import pyarrow as found
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            "Parquet needs pyarrow: pip install 'hyperface_jax[parquet]'"
        ) from None
    return found
