"""CSV tables to which rows are added, keeping what others wrote."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from thess_agg_dagster.lake.publish import staged_file
from thess_agg_dagster.storage.paths import open_text


class Table:
    """A table's cells as they are, row by row, including columns that others added and rows that are too short or too
    long."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Raises ``OSError``, ``UnicodeDecodeError`` and ``csv.Error``; a missing table is an empty one."""
        self.path = path
        self.header: list[str] = []
        self.rows: list[list[str]] = []
        try:
            with open_text(path) as file:
                rows = [row for row in csv.reader(file, skipinitialspace=True) if any(cell.strip() for cell in row)]
        except FileNotFoundError:
            rows = []
        self.is_there = bool(rows)
        if rows:
            self.header, self.rows = [name.strip() for name in rows[0]], rows[1:]
        self.header += [column for column in columns if column not in self.header]
        self.changed = False

    def get(self, row: Sequence[str], column: str) -> str:
        number = self.header.index(column)
        return row[number].strip() if number < len(row) else ""

    def set(self, row: list[str], values: Mapping[str, object]) -> None:
        row += [""] * (len(self.header) - len(row))
        for column, value in values.items():
            row[self.header.index(column)] = str(value)
        self.changed = True

    def add(self, values: Mapping[str, object]) -> None:
        row: list[str] = []
        self.set(row, values)
        self.rows.append(row)

    def write(self) -> None:
        """Write the table in one step, only if something changed."""
        if self.changed:
            with staged_file(self.path) as file, file.open("w", newline="", encoding="utf-8") as out:
                writer = csv.writer(out, lineterminator="\n")
                writer.writerows([self.header, *self.rows])
