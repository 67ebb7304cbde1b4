"""The best queries found by hand that give the numbers of a training set, over the same archive and the same spine.

Each reads the archive's files and the spine's file, and writes one Parquet file; nothing of the platform runs. They
know what the engine may not assume: no record is late, deleted or erased, and floats may lose what is small beside
everything before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import duckdb
import polars as pl

from tests.load.offline_input import LARGE, WINDOWS

# Of sums over ten million prices: every addition rounds by the total so far, and both grow with them.
_LOST, _LOST_OF = 1e-4, 10_000_000
_TOTALS = ("n", "large", "sum", "paid")


def running_totals(files: Sequence[str], spine: str, output: str) -> None:
    """Running totals per user, and one as-of join for all window edges of all rows."""
    running = (
        pl.scan_parquet(files)
        .select(pl.col("user"), pl.col("__time").alias("t"), "amount", "price")
        .sort("t")
        .select(
            "user",
            "t",
            pl.int_range(1, pl.len() + 1).over("user").alias("n"),
            (pl.col("amount") > LARGE).cast(pl.Int64).cum_sum().over("user").alias("large"),
            pl.col("amount").cum_sum().over("user").alias("sum"),
            pl.col("price").cum_sum().over("user").alias("paid"),
        )
        .collect()
    )
    given = pl.read_parquet(spine)
    asked = given.select("user", pl.col("timestamp").dt.epoch("us").alias("t")).with_row_index("row")
    edges = [asked.with_columns(pl.lit(0, pl.Int8).alias("edge"))]
    for number, size in enumerate(WINDOWS.values()):
        edges.append(asked.with_columns(pl.col("t") - size - 1, pl.lit(number + 1, pl.Int8).alias("edge")))
    found = (
        pl.concat(edges)
        .sort("t")
        .join_asof(running, on="t", by="user", check_sortedness=False)
        .sort("edge", "row")
        .select("edge", pl.col(_TOTALS).fill_null(0))
    )
    at, *starts = found.partition_by("edge", maintain_order=True)
    given.with_columns(*_features(at, starts)).write_parquet(output)


def sorted_totals(files: Sequence[str], spine: str, output: str) -> None:
    """As above, with totals over all users in one sort by user and time, and edges found by binary search."""
    events = (
        pl.scan_parquet(files)
        .select(pl.col("user").hash().alias("u"), pl.col("__time").alias("t"), "amount", "price")
        .sort("u", "t")
        .select(
            "u",
            "t",
            (pl.col("amount") > LARGE).cast(pl.Int64).cum_sum().alias("large"),
            pl.col("amount").cum_sum().alias("sum"),
            pl.col("price").cum_sum().alias("paid"),
        )
        .collect()
    )
    given = pl.read_parquet(spine)
    asked = given.select(pl.col("user").hash().alias("u"), pl.col("timestamp").dt.epoch("us").alias("t"))
    order = asked.with_row_index("row").sort("u", "t")
    running = events.with_row_index("n", offset=1).with_columns(pl.col("n").cast(pl.Int64))
    first = running.group_by("u").agg(pl.col("n").min() - 1).rename({"n": "before"})
    base = running.select(pl.col("n").alias("before"), *_TOTALS)
    nothing = base.clear(1).fill_null(0)
    bases = first.join(pl.concat([nothing, base]), on="before")
    edges = [order] + [order.with_columns(pl.col("t") - size - 1) for size in WINDOWS.values()]
    found = []
    for edge in edges:
        joined = edge.join_asof(running, on="t", by="u", check_sortedness=False)
        whole = joined.join(bases, on="u", how="left", maintain_order="left", suffix="_base")
        found.append(
            whole.sort("row").select(
                pl.when(pl.col(name).is_null()).then(0).otherwise(pl.col(name) - pl.col(f"{name}_base")).alias(name)
                for name in _TOTALS
            )
        )
    at, *starts = found
    given.with_columns(*_features(at, starts)).write_parquet(output)


def duckdb_asof(files: Sequence[str], spine: str, output: str) -> None:
    """Running totals by a window function, and an as-of join per window edge, in DuckDB."""
    names = ", ".join(f"'{file}'" for file in files)
    edges = ["0", *(str(size + 1) for size in WINDOWS.values())]
    joins = " ".join(
        f"ASOF LEFT JOIN running r{number} ON r{number}.user = s.user AND r{number}.t <= s.t - {size}"
        for number, size in enumerate(edges)
    )
    columns = []
    for number, window in enumerate(WINDOWS, 1):
        total = {name: f"(coalesce(r0.{name}, 0) - coalesce(r{number}.{name}, 0))" for name in _TOTALS}
        columns += [f"{total[name]} AS {name}_{window}" for name in _TOTALS]
        columns.append(f"CASE WHEN {total['n']} > 0 THEN {total['paid']} / {total['n']} ELSE 0 END AS avg_{window}")
    with duckdb.connect() as connection:
        connection.execute(
            f"""
            CREATE TEMP TABLE running AS SELECT "user", __time AS t,
                count(*) OVER w AS n, count(*) FILTER (amount > {LARGE}) OVER w AS large,
                sum(amount) OVER w AS sum, sum(price) OVER w AS paid
            FROM read_parquet([{names}])
            WINDOW w AS (PARTITION BY "user" ORDER BY __time ROWS UNBOUNDED PRECEDING);
            CREATE TEMP TABLE asked AS SELECT *, row_number() OVER () AS row, epoch_us(timestamp) AS t
            FROM read_parquet('{spine}');
            COPY (SELECT s.user, s.timestamp, s.label, {", ".join(columns)} FROM asked s {joins} ORDER BY s.row)
            TO '{output}' (FORMAT parquet)
            """
        )


def _features(at: pl.DataFrame, starts: Sequence[pl.DataFrame]) -> list[pl.Series]:
    columns = []
    for window, start in zip(WINDOWS, starts, strict=True):
        total = {name: at[name] - start[name] for name in _TOTALS}
        mean = (total["paid"] / total["n"]).zip_with(total["n"] > 0, pl.Series([0.0]))
        columns += [total[name].alias(f"{name}_{window}") for name in _TOTALS]
        columns.append(mean.alias(f"avg_{window}"))
    return columns


QUERIES: dict[str, Callable[[Sequence[str], str, str], None]] = {
    "running totals and an as-of join, Polars": running_totals,
    "totals over all users, sorted, Polars": sorted_totals,
    "running totals and as-of joins, DuckDB": duckdb_asof,
}
"""By name; the benchmarks measure all and compare with the fastest."""


def assert_alike(found: str, expected: str, files: Sequence[str]) -> None:
    """Equal rows in equal order; unknown users have zeros in a query where a training set has defaults or nulls.

    Args:
        found: the training set's files.
        expected: the query's.
        files: of the archive.

    Raises:
        AssertionError: they differ by more than running totals of floats lose; names the feature.
    """
    ours, theirs = pl.read_parquet(found), pl.read_parquet(expected)
    lost = _LOST * max(1.0, pl.scan_parquet(files).select(pl.len()).collect().item() / _LOST_OF) ** 1.5
    assert ours["user"].equals(theirs["user"])
    for name in [each for each in theirs.columns if each not in {"user", "timestamp", "label"}]:
        mine, hand = ours[name].fill_null(0), theirs[name].fill_null(0)
        # Amounts are in cents; totals over all users of ten million prices are right to some millionths.
        far = (mine - hand).abs() > lost if mine.dtype.is_float() else mine != hand
        assert not far.any(), (name, int(far.sum()), (mine - hand).abs().max())
