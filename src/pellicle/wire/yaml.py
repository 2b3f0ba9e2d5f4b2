# SPDX-License-Identifier: Apache-2.0
"""YAML text → plain trees of text, lists and mappings; nothing in it can surprise.

Scalars stay the text they are, so `no`, `1e5` or `12:34:56:07:08:09` are never taken for
a boolean, a float or a number of seconds: whoever reads a tree knows what he wants.
Anchors, aliases and tags are refused (they are what YAML bombs are made of), and so
are repeated keys and deep nesting. The text is read event by event: what stands before
a fault is still good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml

Tree: TypeAlias = "str | list[Tree] | dict[str, Tree]"

MAX_DEPTH = 16
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """The text cannot be read as YAML, or says something in a way that is refused."""


def documents(text: str) -> Iterator[Tree]:
    """Each document of `text`; `YamlError` at the first fault, after those that precede it."""
    try:
        loader = _Loader(text)
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(_cause(error, text)) from None
    try:
        while not isinstance(event := loader.get_event(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                yield _value(loader, loader.get_event(), 0)
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError(_cause(error, text)) from None
    finally:
        loader.dispose()


def _value(loader: Any, event: Any, depth: int) -> Tree:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise YamlError(
            f"{_line(event)}: anchors and aliases (& and *) are not allowed: repeat the value"
        )
    if event.tag is not None:
        raise YamlError(f"{_line(event)}: tags ({event.tag}) are not allowed: leave the tag away")
    if depth > MAX_DEPTH:
        raise YamlError(f"{_line(event)}: nested more than {MAX_DEPTH} deep")
    if isinstance(event, yaml.ScalarEvent):
        return str(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_items(loader, depth))
    return _mapping(loader, depth)


def _items(loader: Any, depth: int) -> Iterator[Tree]:
    while not isinstance(event := loader.get_event(), yaml.SequenceEndEvent):
        yield _value(loader, event, depth + 1)


def _mapping(loader: Any, depth: int) -> dict[str, Tree]:
    tree: dict[str, Tree] = {}
    while not isinstance(event := loader.get_event(), yaml.MappingEndEvent):
        key = _value(loader, event, depth + 1)
        if not isinstance(key, str):
            raise YamlError(f"{_line(event)}: a key must be plain text")
        if key in tree:
            raise YamlError(f'{_line(event)}: "{key}" is given twice')
        tree[key] = _value(loader, loader.get_event(), depth + 1)
    return tree


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"


def _cause(error: Exception, text: str) -> str:
    """What is wrong, in words that lead to the mistake."""
    if isinstance(error, UnicodeError):
        return "holds text that is not UTF-8"
    if isinstance(error, yaml.reader.ReaderError):
        return "holds a control character; is it a text file at all?"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"not YAML: {error}"
    lines = text.splitlines()
    at = error.problem_mark.line
    context = f" {error.context}" if error.context else ""
    if (at < len(lines) and lines[at].startswith("\t")) or "'\\t'" in str(error.problem):
        return f"line {at + 1}: a tab in the indentation; YAML allows only spaces there"
    if at >= len(lines):
        return f"ends in the middle{context}: cut off, or a quote or bracket is left open"
    return f"line {at + 1}: not YAML:{context} {error.problem}"
