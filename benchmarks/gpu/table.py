"""The rows as a table on the terminal: one line for each case and mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["HEADER", "lines", "trouble"]

WIDTHS = (34, 7, 9, 9, 6, 6, 6)
NAMES = ("case", "mode", "dense us", "ours us", "ratio", "share", "error")
HEADER = "  ".join(f"{name:<{width}}" if i < 2 else f"{name:>{width}}" for i, (name, width) in enumerate(zip(NAMES, WIDTHS, strict=True)))  # fmt: skip  # noqa: E501
OURS = ("ours", "planner")

Row = Mapping[str, Any]


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Dense torch's time, ours (the better one of two), dense over ours, the share of the ceiling, ours over torch's
    error, and the peers' times; then a line for whatever did not run."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        mine = [row for row in rows if row["mode"] == mode and row["provider"] not in ("inputs", "all")]
        timed = {row["provider"]: row for row in mine if row["median_us"] not in ("", None)}
        if timed:
            yield _line(mode, timed)
        elif any(row["bytes"] not in ("", None) for row in mine):
            shown = ", ".join(f"{row['provider']} {row['bytes']:,} bytes" for row in mine)
            yield f"{mine[0]['case']}: {shown}, {float(mine[-1]['ratio']):.2f} times less"
    yield from (f"  {line}" for line in trouble(rows))


def best(rows: Mapping[str, Row]) -> Row | None:
    """The fastest of this library's providers."""
    ours = [row for name, row in rows.items() if name.startswith(OURS)]
    return min(ours, key=lambda row: float(row["median_us"]), default=None)


def _line(mode: str, timed: Mapping[str, Row]) -> str:
    any_row = next(iter(timed.values()))
    dense, ours = timed.get("dense"), best(timed)
    peers = [f"{name} {float(row['median_us']):.1f}" for name, row in timed.items() if row not in (dense, ours)]
    words = [
        str(any_row["case"]).removesuffix("-bfloat16"),
        mode,
        "-" if dense is None else f"{float(dense['median_us']):.1f}",
        "-" if ours is None else f"{float(ours['median_us']):.1f}",
        _number(ours, "ratio", ".2f"),
        _number(ours, "share", ".0%"),
        _number(ours, "error_ratio", ".2f"),
    ]
    padded = [f"{word:<{WIDTHS[i]}}" if i < 2 else f"{word:>{WIDTHS[i]}}" for i, word in enumerate(words)]
    return "  ".join([*padded, *filter(None, (", ".join(peers),))]).rstrip()


def _number(row: Row | None, name: str, style: str) -> str:
    return "-" if row is None or row[name] in ("", None) else format(float(row[name]), style)


def trouble(rows: Sequence[Row]) -> Iterator[str]:
    """What was skipped, failed or wrong; the same words of several modes once."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            said.setdefault((row["case"], row["provider"], row["status"]), []).append(row["mode"])
    for (case, provider, status), modes in said.items():
        yield f"{case}: {provider}, {' '.join(modes)}: {status}"
