"""Text files read with line numbers, plain or gzipped: tables, tagged sentences, plain texts."""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrdrop.lab.errors import InputError, bad_byte, check_name, is_text, listed

Cell = Any  # a text, or a list of them; of JSON whatever else it holds, which no column that counts may
Content = tuple[list[str], list[tuple[int, dict[str, Cell]]]]  # names of columns; rows with their line


@dataclass(frozen=True)
class Table:
    """The rows of one file as strings, or lists of them where the file holds lists, with the line each came from."""

    path: Path
    columns: list[str]
    rows: list[dict[str, Cell]]
    lines: list[int]

    def column(self, name: str, option: str) -> list[str]:
        """A column of texts; `option` is the command-line option a message about a missing column names."""
        return list(self._cells(name, option, str))

    def words(self, name: str, option: str) -> list[list[str]]:
        """A column that holds lists."""
        return list(self._cells(name, option, list))

    def _cells(self, name: str, option: str, kind: type) -> Iterator:
        if name not in self.columns:
            raise InputError(
                f"{option}: {self.path} has no column {name!r}; its columns are {listed(self.columns, 50)}."
            )
        for line, row in zip(self.lines, self.rows, strict=True):
            where, cell = f"{self.path}, line {line}: column {name!r}", row[name]
            if not cell or (isinstance(cell, str) and not cell.strip()):
                raise InputError(f"{where} is empty; it must be filled in every row.")
            if not isinstance(cell, kind):
                raise InputError(f"{where} holds {_REFUSALS[type(cell)]}: {_shortened(cell)}.")
            for part in cell if isinstance(cell, list) else [cell]:
                if not isinstance(part, str):
                    raise InputError(f"{where} holds a list that does not contain only words: {_shortened(part)}.")
                if not part.strip():
                    raise InputError(f"{where} holds an empty word.")
                if not is_text(part):
                    half = next(mark for mark in part if not is_text(mark))
                    raise InputError(
                        f"{where} holds {half!r}, half of a character, as if the text was cut; remove it or complete "
                        "the pair."
                    )
            yield cell


@dataclass(frozen=True)
class Format:
    """How a kind of file is read, and what one holds, for messages."""

    read: Callable[[Path, io.TextIOBase], Content]
    holds: str


def read_table(path: Path, option: str, formats: Mapping[str, Format], encoding: str = "utf-8") -> Table:
    """Read one data file in the format of its ending, with or without .gz: TABLES, SENTENCES or TEXTS.

    Raises InputError with the option, the file and the line at fault.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    suffix = "".join((suffixes[:-1] if gzipped else suffixes)[-1:])
    *some, last = formats
    if not path.is_file():
        raise InputError(
            f"{option}: there is no file {path}; it takes a {', '.join(some)} or {last} file, also with .gz."
        )
    if suffix not in formats:
        raise InputError(f"{option}: {path} is not a {', '.join(some)} or {last} file, with or without .gz.")
    check_name(path, option)
    try:
        with _text(gzip.open(path) if gzipped else path.open("rb"), encoding) as stream:
            columns, numbered = formats[suffix].read(path, stream)
    except UnicodeError as error:
        raise InputError(
            f"{option}: {path} is not in {encoding}: {_misfit(path, gzipped, encoding) or error}; name its encoding "
            "with --encoding, for instance cp1252 (Windows) or utf-16."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{option}: {path} cannot be read{' as gzip' if gzipped else ''}: {error}.") from None
    if not numbered:
        raise InputError(f"{option}: {path} holds no rows; it needs {formats[suffix].holds}.")
    lines, rows = zip(*numbered, strict=True)
    return Table(path, columns, list(rows), list(lines))


def _misfit(path: Path, gzipped: bool, encoding: str) -> str:
    """Which byte of a file the encoding does not have, and its line; readers know of a part of it only."""
    try:
        (gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes()).decode(encoding)
    except UnicodeDecodeError as error:
        return bad_byte(error)
    except UnicodeError:
        pass
    return ""


def _text(stream: Any, encoding: str) -> io.TextIOWrapper:
    """A binary stream as text, without the mark that Windows puts before UTF-8."""
    try:
        name = codecs.lookup(encoding).name
        return io.TextIOWrapper(stream, encoding="utf-8-sig" if name == "utf-8" else name, newline="")
    except LookupError:
        stream.close()
        raise InputError(
            f"--encoding: {encoding!r} is not a text encoding that Python knows, such as utf-8, cp1252 or utf-16."
        ) from None


def _read_csv(path: Path, stream: io.TextIOBase) -> Content:
    """Commas stand between the columns, or what else the line of their names is parted by where it has none."""
    begun: list[str] = []
    while not (begun and begun[-1].strip()) and (line := stream.readline()):
        begun.append(line)
    between = next((mark for mark in ",;\t|" if begun and mark in begun[-1]), ",")
    return _read_cells(path, _csv_rows(path, itertools.chain(begun, stream), between))


def _read_tsv(path: Path, stream: io.TextIOBase) -> Content:
    lines = (line.rstrip("\r\n") for line in stream)
    columns, rows = _read_cells(path, enumerate((line.split("\t") if line else [] for line in lines), start=1))
    if len(columns) == 1 and {",", ";"} & {*columns[0]}:
        raise InputError(f"{path}, line 1: no tabs in {columns[0]!r}; a file with other separators is a .csv.")
    return columns, rows


def _csv_rows(path: Path, stream: Iterable[str], between: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, with the line in which it begins: cells in quotes may hold line ends."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    taken: list[str] = []  # lines of the row

    def lines() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line

    first = 1
    try:
        for cells in csv.reader(lines(), delimiter=between, strict=True):
            yield first, cells
            first += len(taken)
            taken.clear()
    except csv.Error as error:
        last = first + len(taken) - 1
        if "end of data" in str(error):
            line = first + (_open_quote(taken, between) or 0)
            raise InputError(f"{path}, line {line}: not valid csv: a quote that begins here does not end.") from None
        opened = _open_quote(taken[:-1], between)
        hint = "" if opened is None else f"; a quote has been open since line {first + opened}"
        raise InputError(f"{path}, line {last}: not valid csv: {error}{hint}.") from None


def _open_quote(lines: list[str], between: str) -> int | None:
    """Index of the line in which the quote begins that is open after these lines of a row, if one is."""
    opened: int | None = None
    before: int | None = None
    for number, line in enumerate(lines):
        closed = -2
        for place in (place for place, mark in enumerate(line) if mark == '"'):
            if opened is not None:
                before, opened, closed = opened, None, place
            elif place == closed + 1:  # two quotes within quotes are one that is meant
                opened = before
            elif place == 0 or line[place - 1] == between:
                opened = number
    return opened


def _read_cells(path: Path, numbered: Iterator[tuple[int, list[str]]]) -> Content:
    line, columns = next((row for row in numbered if row[1]), (1, []))
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}, line {line}: two columns have the same name: {listed(columns, 50)}.")
    return columns, list(_checked_rows(path, numbered, columns))


def _checked_rows(
    path: Path, numbered: Iterator[tuple[int, list[str]]], columns: list[str]
) -> Iterator[tuple[int, dict[str, Cell]]]:
    for line, cells in numbered:
        if not cells:
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {line}: {len(cells)} fields where the header names {len(columns)} "
                f"({listed(columns, 50)})."
            )
        yield line, dict(zip(columns, cells, strict=True))


def _read_json(path: Path, stream: io.TextIOBase) -> Content:
    columns: list[str] = []
    rows = []
    for number, line in _filled(stream):
        try:
            record = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON: {error.msg} (column {error.colno}).") from None
        except (ValueError, RecursionError) as error:  # a name twice; brackets within brackets
            raise InputError(f"{path}, line {number}: not usable JSON: {error}.") from None
        if not isinstance(record, dict):
            what = "list" if isinstance(record, list) else "single value"
            raise InputError(f"{path}, line {number}: a {what} instead of a JSON object.")
        columns = columns or list(record)
        if missing := [name for name in columns if name not in record]:
            raise InputError(f"{path}, line {number}: no {', '.join(map(repr, missing))}, which the first line has.")
        rows.append((number, {name: _cell(record[name]) for name in columns}))
    return columns, rows


def _cell(value: Any) -> Cell:
    return [_simple(part) for part in value] if isinstance(value, list) else _simple(value)


def _simple(value: Any) -> Any:
    """A scalar as JSON spells it, "" for null; lists and objects as they are."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, float) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a JSON object, in which no name stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has the same name twice, of {', '.join(repr(name) for name, _ in pairs)}")
    return found


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=str,  # of any length
    parse_constant=lambda name: None if name == "NaN" else name,  # pandas and others write it for what is missing
)
_REFUSALS: dict[type, str] = {
    str: "a text instead of the list that token-classification needs",
    list: "a list, which only token-classification takes",
    dict: "a JSON object instead of a text",
}


def _read_conll(path: Path, stream: io.TextIOBase) -> Content:
    """One word a line, its tag in the last column; blank lines and -DOCSTART- stand between sentences.

    Where tabs part the columns, a word may hold spaces.
    """
    rows: list[tuple[int, dict[str, Cell]]] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(stream, start=1):
        line = line.rstrip()
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if not fields or fields[0] == "-DOCSTART-":
            words, tags = [], []
            continue
        if len(fields) < 2:
            raise InputError(f"{path}, line {number}: {fields[0]!r} stands alone instead of a word and its tag.")
        if not words:
            rows.append((number, {"tokens": words, "tags": tags}))
        words.append(fields[0])
        tags.append(fields[-1])
    _check_first_column(path, rows)
    return ["tokens", "tags"], rows


def _check_first_column(path: Path, rows: list[tuple[int, dict[str, Cell]]]) -> None:
    """Refuse word numbers or document names where words are expected."""
    steps = [(line, *pair) for line, row in rows for pair in itertools.pairwise(row["tokens"])]
    odd = [(line, a, b) for line, a, b in steps if a == b or _counts(a, b)]
    if len(odd) > len(steps) / 2:
        line, *pair = odd[0]
        what = "running numbers" if _counts(*pair) else "the same value again and again"
        raise InputError(
            f"{path}, line {line}: the first column holds {what} ({', '.join(map(repr, pair))}) where the words are "
            "needed; leave out what stands before them."
        )


def _counts(before: str, after: str) -> bool:
    """Whether two words are alike but for a number that goes on, as 1 and 2, w1 and w2, or CoNLL-U's 1-2 and 1."""
    found = [re.fullmatch(r"(\D*)(\d{1,9})(?:\D\d*)?", word) for word in (before, after)]
    first, second = (match and (match[1], int(match[2])) for match in found)
    return first is not None and second is not None and second in (first, (first[0], first[1] + 1))


def _read_lines(path: Path, stream: io.TextIOBase) -> Content:
    return ["text"], [(number, {"text": line.strip()}) for number, line in _filled(stream)]


def _filled(stream: Iterable[str]) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(stream, start=1) if line.strip())


_JSON = Format(_read_json, "one example a row")
_CONLL = Format(_read_conll, "one word and its tag per line")
_HEADED = "one example per row below a header of column names"
TABLES = {".csv": Format(_read_csv, _HEADED), ".tsv": Format(_read_tsv, _HEADED), ".jsonl": _JSON}
SENTENCES = {".jsonl": _JSON, ".conll": _CONLL, ".txt": _CONLL}
TEXTS = TABLES | {".txt": Format(_read_lines, "one text per line")}
