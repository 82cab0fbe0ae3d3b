r"""Keyframes as text: one syntax for what changes over a clip, prompts and numbers alike. Pure.

    # a comment, also //
    head: masterpiece,              before every prompt; tail: after every prompt
    0: a forest, (in spring:1.2)    a frame, counted from 0; the prompt is the rest of the line
    8-15 = "a city, \"by night\""   held on these frames; in quotes also over several lines
    50%: a beach                    a part of the clip: 0% is its first frame, 100% its last
    -1: the moon                    counted from the end

The same with commas between entries, as JSON and as what is left of JSON without its braces: "0": "a", "16": "b". A JSON list
has a value for each frame. Without quotes a comment starts at a # or // behind white space, so that addresses stay whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .keyframes import Keyframe, NotFrames, Position, T, Where, parse_frames

HEAD, TAIL = "head", "tail"
PROMPT, NUMBER = "a prompt", "a number"
FRAME = "a frame (0, -1, 50% or 8-15)"
_SPACE = re.compile(r"(?:\s|(?:#|//).*)*")  # over lines
_GAP = re.compile(r"[^\S\n]*")
_BLANK = re.compile(r"[^\S\n]*(?:(?:#|//).*)?")  # in a line
_BARE_NAME = re.compile(r'[^:=,"\n{}\[\]]*')
_REST_OF_LINE = re.compile(r".*")
_UP_TO_COMMA = re.compile(r"[^,\n}\]#/]*")
_COMMENT = re.compile(r"(?:^|\s)(?:#|//).*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])')
_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ANOTHER_NAME = re.compile(r',\s*"?-?[0-9][0-9.%-]*"?\s*[:=](?:\s+\S|")')
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Prompts:
    """Keyframes of prompts, and what stands before and after each of them."""

    keyframes: tuple[Keyframe[str], ...]
    head: str = ""
    tail: str = ""


def parse_prompts(text: str) -> Prompts:
    """Raises ValueError with line and column where the text cannot be understood."""
    keyframes: list[Keyframe[str]] = []
    around: dict[str, str] = {}
    for number, entry in enumerate(prompt_entries(text)):
        if not entry.is_around:
            keyframes.append(_keyframe(entry, number, entry.value, f"{FRAME}, {HEAD} or {TAIL}"))
        elif (name := str(entry.name)) in around:
            raise entry.where.error(f"{name} once", "it again")
        else:
            around[name] = entry.value
    if not keyframes:
        raise Where(1, 1).error("a frame and its prompt, such as 0: a forest", "none")
    return Prompts(tuple(keyframes), around.get(HEAD, ""), around.get(TAIL, ""))


def parse_numbers(text: str) -> tuple[tuple[Keyframe[float], ...], tuple[float, ...]]:
    """Keyframes of numbers, or bare numbers where no frames are named: "0.8", "1, 0.5", "[1, 0.5]", also one in a line. One of both is empty.

    Raises ValueError with line and column where the text cannot be understood.
    """
    entries = list(number_entries(text))
    if not entries:
        raise Where(1, 1).error("a number, or a frame and its number, such as 0: 1", "none")
    if entries[0].name is None:
        return (), tuple(_number(entry) for entry in entries)
    return tuple(_keyframe(entry, number, _number(entry), FRAME) for number, entry in enumerate(entries)), ()


class Place(NamedTuple):
    """Letters of a text whose line ends are \\n, counted from 0."""

    start: int
    end: int


class Entry(NamedTuple):
    """A name and its value, as they are written."""

    name: str | None  # None: of a list
    where: Where
    value: str
    value_where: Where
    place: Place  # up to where its value ends, with quotes and parentheses
    name_place: Place | None  # without quotes
    value_place: Place  # without quotes and parentheses
    comma: int | None  # where the one behind it is
    until: int  # what belongs to it ends here: a comma, and a comment behind it

    @property
    def is_around(self) -> bool:
        return self.name in (HEAD, TAIL)


def prompt_entries(text: str) -> Iterator[Entry]:
    """What is written in a text of prompts, entry by entry. Raises ValueError as parse_prompts does."""
    return _entries(text, PROMPT)


def number_entries(text: str) -> Iterator[Entry]:
    """What is written in a text of numbers, entry by entry. Raises ValueError as parse_numbers does."""
    return _entries(text, NUMBER, is_list=not re.search("[:=]", re.sub("(?:#|//).*", "", text)))


def _keyframe(entry: Entry, number: int, value: T, expected: str) -> Keyframe[T]:
    """number: the frame of an entry of a list."""
    if entry.name is None:
        position = Position(number, False)
        return Keyframe(position, position, value, str(number), entry.where)
    try:
        return Keyframe(*parse_frames(entry.name), value, entry.name, entry.where)
    except NotFrames as error:
        raise entry.where.error(str(error) or expected, _shown(entry.name)) from None


def _number(entry: Entry) -> float:
    bare = entry.value.strip()
    if bare.startswith("(") and bare.endswith(")"):  # as other schedules write them
        bare = bare[1:-1].strip()
    if not _NUMBER.fullmatch(bare) or math.isinf(float(bare)):
        raise entry.value_where.error("a number", _shown(entry.value))
    return float(bare)


def _entries(text: str, what: str, is_list: bool = False) -> Iterator[Entry]:
    """what: PROMPT or NUMBER. is_list: there are no names, even where no bracket says so."""
    reader = _Reader(text.replace("\r\n", "\n"))
    reader.take(_SPACE)
    closing = {"{": "}", "[": "]"}.get(reader.next, "")
    reader.at += len(closing)
    while True:
        reader.take(_SPACE)
        if reader.next == closing:  # at the end, both are ""
            break
        start, where = reader.at, reader.where()
        name, name_place = (None, None) if is_list or closing == "]" else reader.name(what)
        value_at, value_where = reader.at, reader.where()
        value, end = reader.value(what, in_json=bool(closing))
        value_place = _inside(reader.text, what, value_at, end)
        yield Entry(
            name, where, value, value_where, Place(start, end), name_place, value_place, *_behind(reader.text, end)
        )
        reader.take(_BLANK)
        ends_line = reader.next == "\n"
        reader.take(_SPACE)
        if reader.next == ",":
            reader.at += 1
        elif not ends_line and reader.next != closing:
            raise reader.error("a comma or a new line" + (f' or "{closing}"' if closing else ""))
    reader.at += len(closing)
    reader.take(_SPACE)
    if reader.next:
        raise reader.error("the end of the text")


def _inside(text: str, what: str, start: int, end: int) -> Place:
    """Where a value is without its quotes and parentheses."""
    number = _NUMBER.search(text, start, end) if what == NUMBER else None
    if number:
        return Place(*number.span())
    return Place(start + 1, end - 1) if text.startswith('"', start) else Place(start, end)


def _behind(text: str, end: int) -> tuple[int | None, int]:
    """Of an entry whose value ends there: where its comma is, and where what belongs to it ends."""
    after = _end(_SPACE, text, end)
    comma = after if text[after : after + 1] == "," else None
    end = end if comma is None else comma + 1
    line_end = _end(_BLANK, text, end)
    return comma, line_end if text[line_end : line_end + 1] in ("", "\n") else end


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    assert match is not None  # they all match ""
    return match.end()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def next(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str]) -> str:
        start, self.at = self.at, _end(pattern, self.text, self.at)
        return self.text[start : self.at]

    def where(self, further: int = 0) -> Where:
        before = self.text[: self.at + further]
        return Where(before.count("\n") + 1, len(before) - before.rfind("\n"))

    def error(self, expected: str) -> ValueError:
        rest = self.text[self.at :].split("\n")[0]
        found = _shown(rest) if rest else "the end of the line" if self.next else "the end of the text"
        return self.where().error(expected, found)

    def quoted(self) -> str:
        match = _QUOTED.match(self.text, self.at)
        if match is None:
            raise self.where().error('closing quotes to these (quotes inside of a text are written \\")', "none")
        self.at = match.end()
        return _unescaped(match.group(1))

    def name(self, what: str) -> tuple[str, Place]:
        """What stands before a value, with what separates them; and where, without quotes."""
        start, quotes = self.at, self.next == '"'
        name = self.quoted() if quotes else self.take(_BARE_NAME)
        place = Place(start + quotes, self.at - quotes if quotes else start + len(name.rstrip()))
        self.take(_GAP)
        if self.next not in (":", "="):
            self.at = start
            raise self.error(f"{FRAME}, a colon and {what}")
        self.at += 1
        self.take(_GAP)
        return name.strip(), place

    def value(self, what: str, in_json: bool) -> tuple[str, int]:
        """A value, and where it ends; the reader goes on behind its line's comment where the value has no quotes."""
        start = self.at
        if self.next == '"':
            return self.quoted(), self.at
        if what == NUMBER:
            value = self.take(_UP_TO_COMMA)
            return value, start + len(value.rstrip())
        line = self.take(_REST_OF_LINE)
        value = _COMMENT.sub("", line).strip()
        another = _ANOTHER_NAME.search(value)
        if value and not in_json and not another:
            return value, start + len(value)
        self.at = start
        if another and not in_json:
            raise self.where(another.start() + 1).error(
                f"{what} alone in its line, or in quotes", _shown(value[another.start() + 1 :])
            )
        raise self.error(f"{what} in quotes" if in_json else f'{what} ("" for an empty one)')


def _unescaped(text: str) -> str:
    r"""JSON's escapes undone; others stay, so that \( and \) reach the text encoder as they are."""
    plain = _ESCAPE.sub(lambda match: _character(match.group(1)), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # two escapes can be one character


def _character(escape: str) -> str:
    return chr(int(escape[1:], 16)) if escape[0] == "u" else _CONTROLS.get(escape, escape)


def _shown(text: str) -> str:
    text = text.strip()
    return f'"{text if len(text) <= 40 else text[:37] + "..."}"' if text else "nothing"
