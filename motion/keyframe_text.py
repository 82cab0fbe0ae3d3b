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
    for number, entry in enumerate(_entries(text, PROMPT)):
        if entry.name not in (HEAD, TAIL):
            keyframes.append(_keyframe(entry, number, entry.value, f"{FRAME}, {HEAD} or {TAIL}"))
        elif entry.name in around:
            raise entry.where.error(f"{entry.name} once", "it again")
        else:
            around[entry.name] = entry.value
    if not keyframes:
        raise Where(1, 1).error("a frame and its prompt, such as 0: a forest", "none")
    return Prompts(tuple(keyframes), around.get(HEAD, ""), around.get(TAIL, ""))


def parse_numbers(text: str) -> tuple[tuple[Keyframe[float], ...], tuple[float, ...]]:
    """Keyframes of numbers, or bare numbers where no frames are named: "0.8", "1, 0.5", "[1, 0.5]", also one in a line. One of both is empty.

    Raises ValueError with line and column where the text cannot be understood.
    """
    is_list = not re.search("[:=]", re.sub("(?:#|//).*", "", text))
    entries = list(_entries(text, NUMBER, is_list))
    if not entries:
        raise Where(1, 1).error("a number, or a frame and its number, such as 0: 1", "none")
    if entries[0].name is None:
        return (), tuple(_number(entry) for entry in entries)
    return tuple(_keyframe(entry, number, _number(entry), FRAME) for number, entry in enumerate(entries)), ()


class _Entry(NamedTuple):
    name: str | None  # None: of a list
    where: Where
    value: str
    value_where: Where


def _keyframe(entry: _Entry, number: int, value: T, expected: str) -> Keyframe[T]:
    """number: the frame of an entry of a list."""
    if entry.name is None:
        position = Position(number, False)
        return Keyframe(position, position, value, str(number), entry.where)
    try:
        return Keyframe(*parse_frames(entry.name), value, entry.name, entry.where)
    except NotFrames as error:
        raise entry.where.error(str(error) or expected, _shown(entry.name)) from None


def _number(entry: _Entry) -> float:
    bare = entry.value.strip()
    if bare.startswith("(") and bare.endswith(")"):  # as other schedules write them
        bare = bare[1:-1].strip()
    if not _NUMBER.fullmatch(bare) or math.isinf(float(bare)):
        raise entry.value_where.error("a number", _shown(entry.value))
    return float(bare)


def _entries(text: str, what: str, is_list: bool = False) -> Iterator[_Entry]:
    """what: PROMPT or NUMBER. is_list: there are no names, even where no bracket says so."""
    reader = _Reader(text.replace("\r\n", "\n"))
    reader.take(_SPACE)
    closing = {"{": "}", "[": "]"}.get(reader.next, "")
    reader.at += len(closing)
    while True:
        reader.take(_SPACE)
        if reader.next == closing:  # at the end, both are ""
            break
        where = reader.where()
        name = None if is_list or closing == "]" else reader.name(what)
        value_where, value = reader.where(), reader.value(what, in_json=bool(closing))
        yield _Entry(name, where, value, value_where)
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


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def next(self) -> str:
        """The next character, "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None  # they all match ""
        self.at = match.end()
        return match.group()

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

    def name(self, what: str) -> str:
        """What stands before a value, with what separates them."""
        start = self.at
        name = (self.quoted() if self.next == '"' else self.take(_BARE_NAME)).strip()
        self.take(_GAP)
        if self.next not in (":", "="):
            self.at = start
            raise self.error(f"{FRAME}, a colon and {what}")
        self.at += 1
        self.take(_GAP)
        return name

    def value(self, what: str, in_json: bool) -> str:
        if self.next == '"':
            return self.quoted()
        if what == NUMBER:
            return self.take(_UP_TO_COMMA)
        start, line = self.at, self.take(_REST_OF_LINE)
        value = _COMMENT.sub("", line).strip()
        another = _ANOTHER_NAME.search(value)
        if value and not in_json and not another:
            return value
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
