# SPDX-License-Identifier: Apache-2.0
"""The secrets' file, followed through all that administrators and kubelets do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from pellicle.keys.secret import Secret, SecretError, parse, read_line
from pellicle.sources import secrets
from pellicle.sources.secrets import SecretFile, SecretFileError

ONE, TWO = (bytes(range(start, start + 32)).hex() for start in (0, 64))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "LOOK_SECONDS", 0.005)


def put(path: Path, text: str) -> Path:
    """As an editor does: another file takes its place."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    return fresh.rename(path)


def names(found: tuple[Secret, ...]) -> list[str]:
    return [each.fingerprint for each in found]


ONES, TWOS = ([parse(text).fingerprint] for text in (ONE, TWO))


async def soon_after(changes: AsyncIterator[tuple[Secret, ...]]) -> list[str]:
    return names(await asyncio.wait_for(anext(changes), 5))


async def rejected(file: SecretFile) -> str:
    for _ in range(1000):
        if file.rejected:
            return file.rejected[0].why
        await asyncio.sleep(0.005)
    raise AssertionError("nothing was rejected")


async def test_another_file_another_content_and_a_link_that_is_turned_over(tmp_path: Path) -> None:
    path = put(tmp_path / "psk", ONE)
    file = SecretFile(path, read_line)
    assert names(file.now) == ONES
    async with aclosing(file.changes()) as changes:
        put(path, f"{TWO}\n{ONE}")
        assert await soon_after(changes) == TWOS + ONES
        path.write_text(ONE)
        assert await soon_after(changes) == ONES
        # What the kubelet does: psk ─▶ ..data/psk, and ..data is turned over.
        for folder, text in (("v1", TWO), ("v2", ONE)):
            (tmp_path / folder).mkdir()
            put(tmp_path / folder / "psk", text)
        (tmp_path / "..data").symlink_to("v1")
        path.unlink()
        path.symlink_to("..data/psk")
        assert await soon_after(changes) == TWOS
        (tmp_path / "..new").symlink_to("v2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        assert await soon_after(changes) == ONES


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: put(path, "nothing of use"), "stay in use"),
        (lambda path: put(path, ""), "is empty"),
        (lambda path: path.chmod(0o644), "open to others"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: put(path, "x" * 5000), "more than 4096 bytes"),
    ],
)
async def test_what_cannot_be_used_changes_nothing_and_is_named(
    tmp_path: Path, spoil: object, why: str
) -> None:
    path = put(tmp_path / "psk", ONE)
    file = SecretFile(path, read_line)
    async with aclosing(file.changes()) as changes:
        later = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        spoil(path)  # type: ignore[operator]
        assert why in await rejected(file)
        assert names(file.now) == ONES
        assert not later.done()
        put(path, TWO)
        assert names(await asyncio.wait_for(later, 5)) == TWOS
        assert file.rejected == ()


async def test_a_wrong_line_is_named_and_the_others_count(tmp_path: Path) -> None:
    path = put(tmp_path / "psk", ONE)
    file = SecretFile(path, read_line)
    async with aclosing(file.changes()) as changes:
        put(path, f"{TWO}\n0011\n{ONE}")
        assert await soon_after(changes) == TWOS + ONES
    (row,) = file.rejected
    assert (row.source, "line 2" in row.why) == (str(path), True)


def test_there_must_be_something_to_begin_with(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        SecretFile(tmp_path / "psk", read_line)
    with pytest.raises(SecretFileError, match="is empty"):
        SecretFile(put(tmp_path / "psk", ""), read_line)
    with pytest.raises(SecretError, match="line 1"):
        SecretFile(put(tmp_path / "psk", "0011"), read_line)
