"""Engine of pgvector: a table of a PostgreSQL server, where the data of a house are in one already.

Shapes: N images, W width of the table.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from training.retrieval.engines.engine import Filter, Metadata
from training.retrieval.engines.server import NO_CHECKSUM

# Candidates beyond k, which are scored exactly.
LEAST_CANDIDATES = 64
# From here on a scan of everything takes about 0.1 s, and an index (HNSW) is made.
INDEX_FROM = 100_000
# Candidates that a search of the index can find at most: the largest value of hnsw.ef_search.
MOST_INDEXED = 1000
# Seconds to wait for a server.
PATIENCE = 10


class PgvectorEngine:
    """A table of a PostgreSQL server with the extension `vector`, made when it does not exist.

    location: as of libpq, "postgresql://USER@HOST/DATABASE". Without a filter a large table is searched through its index, which
    is approximate; with one, everything that fulfils it is compared: the index looks at the filter last and would find too few.
    Raises RuntimeError without psycopg, the server or the extension.
    """

    def __init__(self, width: int, location: str, table: str) -> None:
        try:
            import psycopg
            from psycopg import sql
            from psycopg.types.json import Jsonb
        except ImportError as error:
            raise RuntimeError("the engine pgvector needs psycopg: pip install 'bdam-fast[search]'") from error
        self.psycopg, self.sql, self.json = psycopg, sql, Jsonb
        self.location, self.table, self.index = location, sql.Identifier(table), sql.Identifier(f"{table}-index")
        self.lock = threading.Lock()
        self.connection: Any = None
        with self._cursor() as cursor:
            try:
                cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.Error as error:
                raise RuntimeError(
                    "PostgreSQL has no extension `vector`; install pgvector on the server, and have its administrator run "
                    f"CREATE EXTENSION vector ({_first_line(error)})"
                ) from error
            self._make_table(cursor, width)
        self.has_index = bool(self._rows("SELECT 1 FROM pg_class WHERE relname = %s", [f"{table}-index"]))

    def _make_table(self, cursor: Any, width: int) -> None:
        columns = "id bigint PRIMARY KEY, embedding vector({}) NOT NULL, time double precision, facts jsonb NOT NULL, crc bigint"
        text = self.sql.SQL("CREATE TABLE IF NOT EXISTS {} (" + columns + ")")
        cursor.execute(text.format(self.table, width))
        cursor.execute(self.sql.SQL("SELECT * FROM {} LIMIT 0").format(self.table))
        if "crc" not in [column.name for column in cursor.description]:
            # A table of an earlier version.
            cursor.execute(self.sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS crc bigint").format(self.table))

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        """A cursor of a transaction, by one thread at a time; of a new connection where the last one was lost."""
        with self.lock:
            try:
                if self.connection is None or self.connection.closed:
                    self.connection = self.psycopg.connect(self.location, connect_timeout=PATIENCE)
                with self.connection.transaction(), self.connection.cursor() as cursor:
                    yield cursor
            except self.psycopg.Error as error:
                # Not the location, which may hold a password.
                raise RuntimeError(f"PostgreSQL refuses: {_first_line(error)}") from error

    def _rows(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(self.sql.SQL(text).format(table=self.table), values).fetchall()

    def add(
        self, ids_N: np.ndarray, table_NW: np.ndarray, metadata: Metadata, crcs_N: np.ndarray | None = None
    ) -> None:
        """Copies images to the server; of ids that it has the values are replaced. Makes the index of a table that is large."""
        with self._cursor() as cursor:
            cursor.execute(self.sql.SQL("CREATE TEMP TABLE added (LIKE {}) ON COMMIT DROP").format(self.table))
            with cursor.copy("COPY added FROM STDIN (FORMAT binary)") as copy:
                # The bytes of a vector go as they are.
                copy.set_types(["int8", "bytea", "float8", "jsonb", "int8"])
                for i in np.flatnonzero(ids_N >= 0).tolist():
                    time = None if np.isnan(metadata.times_N[i]) else float(metadata.times_N[i])
                    crc = None if crcs_N is None else int(crcs_N[i])
                    copy.write_row((int(ids_N[i]), _binary(table_NW[i]), time, self.json(metadata.row(i)), crc))
            replaced = ", ".join(f"{name} = excluded.{name}" for name in ("embedding", "time", "facts", "crc"))
            text = "INSERT INTO {} SELECT * FROM added ON CONFLICT (id) DO UPDATE SET " + replaced
            cursor.execute(self.sql.SQL(text).format(self.table))
        if not self.has_index and self.count() >= INDEX_FROM:
            with self._cursor() as cursor:
                text = "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (embedding vector_ip_ops)"
                cursor.execute(self.sql.SQL(text).format(self.index, self.table))
            self.has_index = True

    def search(self, query_W: np.ndarray, k: int, where: Filter) -> np.ndarray:
        """Ids of the nearest; the server applies the filter."""
        wanted = max(LEAST_CANDIDATES, 2 * k)
        conditions, values = _conditions(where)
        by_index = self.has_index and not where and wanted <= MOST_INDEXED
        # <#> is the negative product.
        text = f"SELECT id FROM {{}} WHERE {conditions} ORDER BY embedding <#> %s::vector LIMIT %s"
        with self._cursor() as cursor:
            if self.has_index:
                option = f"hnsw.ef_search = {wanted}" if by_index else "enable_indexscan = off"
                cursor.execute(f"SET LOCAL {option}")
            cursor.execute(self.sql.SQL(text).format(self.table), [*values, _text(query_W), wanted])
            return np.array([row[0] for row in cursor], np.int64)

    def delete(self, ids_N: np.ndarray) -> None:
        """Removes rows."""
        with self._cursor() as cursor:
            text = self.sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self.table)
            cursor.execute(text, [[int(i) for i in ids_N]])

    def held(self) -> tuple[np.ndarray, np.ndarray]:
        """Id and checksum of each image, int64 (N,) each; NO_CHECKSUM where there is none."""
        rows = self._rows("SELECT id, coalesce(crc, %s) FROM {table}", [NO_CHECKSUM])
        ids_N, crcs_N = np.array(rows, np.int64).reshape(-1, 2).T
        return ids_N, crcs_N

    def count(self) -> int:
        """Number of rows."""
        return int(self._rows("SELECT count(*) FROM {table}")[0][0])

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()


def _conditions(where: Filter) -> tuple[str, list[Any]]:
    """Conditions in SQL with a %s for each of the values; a column that an image lacks is "" as in a gallery."""
    conditions: list[str] = ["true"]
    values: list[Any] = []
    for name, accepted in where.values.items():
        conditions.append("coalesce(facts ->> %s, '') = ANY(%s)")
        values += [name, list(accepted)]
    for sign, bound in ((">=", where.start), ("<=", where.end)):
        if bound is not None:
            conditions.append(f"time {sign} %s")
            values.append(bound)
    if where.without:
        conditions.append("id <> ALL(%s)")
        values.append(sorted(where.without))
    return " AND ".join(conditions), values


def _binary(row_W: np.ndarray) -> bytes:
    """A vector as pgvector reads it in binary: number of values, zero, values in network order."""
    return struct.pack(">hh", len(row_W), 0) + row_W.astype(">f4").tobytes()


def _text(row_W: np.ndarray) -> str:
    return "[" + ",".join(f"{x:.9g}" for x in row_W.tolist()) + "]"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
