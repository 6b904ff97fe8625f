"""Embeddings in Parquet: `id` (string) and `embedding` (list of D float32)."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from hyperface_jax import workdir

_ROW_GROUP = 1 << 16


def check_installed() -> None:
    """Raises a ValueError that names the extra unless pyarrow is there."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("Parquet needs pyarrow: pip install -e '.[parquet]'")


def write_parquet(
    path: Path,
    ids: Sequence[str],
    embeddings: Float[np.ndarray, "N D"],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file, whole or not at all, in groups of 65 536 rows."""
    check_installed()
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = embeddings.shape[1]
    schema = pa.schema(
        [("id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))],
        metadata=dict(metadata),
    )
    with (
        workdir.whole_file(epath.Path(path), "wb") as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for start in range(0, len(ids), _ROW_GROUP):
            rows = np.asarray(embeddings[start : start + _ROW_GROUP], np.float32)
            values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), dim)
            names = pa.array(list(ids[start : start + _ROW_GROUP]), pa.string())
            writer.write_table(pa.table([names, values], schema=schema))


def read_parquet(
    path: Path,
) -> tuple[tuple[str, ...], Float[np.ndarray, "N D"], dict[str, str]]:
    """(ids, embeddings, metadata) of a file of `write_parquet` or one like it.

    Raises:
      ValueError: it cannot be read, or lacks a column; one line.
    """
    check_installed()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not {"id", "embedding"} <= set(names):
                raise ValueError(f"columns {names}, expected 'id' and 'embedding'")
            table: Any = file.read(["id", "embedding"])
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read ({reason})") from None
    flat = table["embedding"].combine_chunks()
    fixed = pa.types.is_fixed_size_list(flat.type)
    lengths = set() if fixed else {len(row) for row in flat}
    if len(lengths) > 1:
        raise ValueError(f"{path}: embeddings of sizes {sorted(lengths)}, expected one")
    values = np.asarray(flat.flatten(), np.float32)
    metadata = table.schema.metadata or {}
    facts = {
        k.decode(): v.decode() for k, v in metadata.items() if k != b"ARROW:schema"
    }
    ids = tuple(str(name) for name in table["id"].to_pylist())
    return ids, values.reshape(len(ids), -1), facts
