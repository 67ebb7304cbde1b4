"""The same numbers from the raw files in SQL (DuckDB): what the demo compares with. No code of the platform."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb

# Plain UTC timestamps: DuckDB's zoned ones need an extension it would have to download.
_JOINED = """
create temp table joined as
select d.*, w.wind_speed
from (
    select * exclude (departed_at), make_timestamp(epoch_us(departed_at)) as departed_at
    from read_parquet('{files}/departures/*.parquet') where not cancelled
) d
asof left join (
    select origin, wind_speed, strptime(observed_at, '%Y-%m-%dT%H:%M:%SZ') as observed_at
    from read_csv('{files}/weather/*.csv', header = true, types = {{'observed_at': 'VARCHAR'}})
) w on d.origin = w.origin and d.departed_at >= w.observed_at
"""
_AT = "strptime($at, '%Y-%m-%dT%H:%M:%SZ')"


def _inside(size: str) -> str:
    return f"departed_at between {_AT} - interval '{size}' and {_AT}"


def _count(size: str, condition: str = "true") -> str:
    return f"count(*) filter ({_inside(size)} and {condition})"


def _over(function: str, column: str, size: str) -> str:
    return f"{function}({column}) filter ({_inside(size)})"


CARRIER = {
    "departures_1h": _count("1 hour"),
    "departures_24h": _count("24 hours"),
    "departures_7d": _count("168 hours"),
    "late_24h": _count("24 hours", "delay_minutes > 15"),
    "avg_delay_1h": _over("avg", "delay_minutes", "1 hour"),
    "avg_delay_24h": _over("avg", "delay_minutes", "24 hours"),
    "min_delay_7d": _over("min", "delay_minutes", "168 hours"),
    "max_delay_7d": _over("max", "delay_minutes", "168 hours"),
    "distance_24h": _over("sum", "distance", "24 hours"),
    "windy_24h": _count("24 hours", "wind_speed >= 15"),
    "max_wind_24h": _over("max", "wind_speed", "24 hours"),
    "late_share_24h": f"{_count('24 hours', 'delay_minutes > 15')} / {_count('24 hours')}",
}
ORIGIN = {
    "departures_1h": _count("1 hour"),
    "departures_24h": _count("24 hours"),
    "departures_7d": _count("168 hours"),
    "avg_delay_1h": _over("avg", "delay_minutes", "1 hour"),
    "max_delay_24h": _over("max", "delay_minutes", "24 hours"),
    "miles_7d": _over("sum", "distance", "168 hours"),
}


NEWEST = {
    "last_destination_24h": ("destination", "24 hours", 1),
    "recent_origins_7d": ("origin", "168 hours", 3),
    "last_carrier_1h": ("carrier", "1 hour", 1),
    "recent_carriers_24h": ("carrier", "24 hours", 5),
}
"""Feature → column, window, and how many of the newest distinct values it holds."""


class Reference:
    """Answers from the raw files."""

    def __init__(self, files: Path) -> None:
        self._duckdb = duckdb.connect()
        self._duckdb.execute(_JOINED.format(files=files))

    def newest(self) -> str:
        """The newest departure, ISO 8601."""
        (newest,) = self._row("select strftime(max(departed_at), '%Y-%m-%dT%H:%M:%SZ') from joined", {})
        return str(newest)

    def features(self, key_column: str, key: str, at: str) -> dict[str, Any]:
        """Numeric features of a carrier or an origin at an instant."""
        columns = CARRIER if key_column == "carrier" else ORIGIN
        query = f"select {', '.join(columns.values())} from joined where {key_column} = $key"  # noqa: S608  # our own names
        return dict(zip(columns, self._row(query, {"key": key, "at": at}), strict=True))

    def differences(self, key_column: str, key: str, at: str, served: dict[str, Any]) -> list[str]:
        """Every served feature that is not what SQL says, or that is empty."""
        wanted = self.features(key_column, key, at)
        found = [
            f"{key} at {at}: {name} is {served.get(name)!r}, SQL says {value!r}"
            for name, value in wanted.items()
            if not _same(served.get(name), value)
        ]
        found += [
            f"{key} at {at}: {name} is {served[name]!r}, which are not the newest values"
            for name in NEWEST
            if name in served and not self._are_newest(name, (key_column, key, at), served[name])
        ]
        return found

    def _are_newest(self, name: str, of: tuple[str, str, str], served: Any) -> bool:
        # Several departures share a minute, and which was accepted later SQL cannot know: compare times.
        column, size, k = NEWEST[name]
        key_column, key, at = of
        query = f"""
            select {column}, max(departed_at) as newest from joined where {key_column} = $key and {_inside(size)}
            group by {column} order by newest desc
        """  # noqa: S608
        newest = dict(self._duckdb.execute(query, {"key": key, "at": at}).fetchall())
        values = served if isinstance(served, list) else [served]
        times = [newest.get(value) for value in values]
        return bool(values) and len(set(values)) == len(values) and times == list(newest.values())[:k]

    def _row(self, query: str, parameters: dict[str, Any]) -> tuple[Any, ...]:
        row = self._duckdb.execute(query, parameters).fetchone()
        assert row is not None
        return row


def _same(served: Any, wanted: Any) -> bool:
    """Equal to 1e-9 relative, and not empty: a demo that compares nothing with nothing proves nothing."""
    if served is None or wanted is None:
        return False
    return math.isclose(served, wanted, rel_tol=1e-9, abs_tol=1e-12)
