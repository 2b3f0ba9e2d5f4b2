# SPDX-License-Identifier: Apache-2.0
"""Secrets are read only from where nobody else could have seen or set them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pellicle.sources.secrets import MAX_SECRET, SecretFileError, read_secret

TEXT = b"0123456789abcdef" * 4 + b"\n"


def secret(path: Path, mode: int = 0o600, text: bytes = TEXT) -> Path:
    path.write_bytes(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret(tmp_path / "psk", mode)) == TEXT


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o777])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret(tmp_path / "psk", mode)
    with pytest.raises(SecretFileError, match=rf"has mode {mode:04o}, open to others: chmod 600"):
        read_secret(path)


def test_a_mounted_kubernetes_secret_is_a_link_and_is_read(tmp_path: Path) -> None:
    """psk -> ..data/psk, ..data -> ..2026_11_21: what counts is the file at the end."""
    (tmp_path / "..2026_11_21").mkdir()
    file = secret(tmp_path / "..2026_11_21" / "psk", 0o400)
    (tmp_path / "..data").symlink_to("..2026_11_21")
    (tmp_path / "psk").symlink_to("..data/psk")
    assert read_secret(tmp_path / "psk") == TEXT
    file.chmod(0o644)
    with pytest.raises(SecretFileError, match="has mode 0644, open to others"):
        read_secret(tmp_path / "psk")


def test_what_is_no_file_does_not_hold_the_agent_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SecretFileError, match="is not a regular file"):
            read_secret(path)


@pytest.mark.parametrize("text", [b"", b"\n", b"  \n"])
def test_an_empty_file_is_no_secret(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(SecretFileError, match="is empty: write the secret into it"):
        read_secret(secret(tmp_path / "psk", text=text))


def test_a_file_too_large_to_be_a_secret_is_refused(tmp_path: Path) -> None:
    assert read_secret(secret(tmp_path / "psk", text=b"x" * MAX_SECRET)) == b"x" * MAX_SECRET
    with pytest.raises(SecretFileError, match="is it the right file"):
        read_secret(secret(tmp_path / "psk", text=b"x" * (MAX_SECRET + 1)))


def test_a_file_that_is_not_there_is_the_worlds_answer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="psk"):
        read_secret(tmp_path / "psk")


def test_no_complaint_quotes_the_secret(tmp_path: Path) -> None:
    for path in (secret(tmp_path / "a", 0o644), secret(tmp_path / "b", text=TEXT * 100)):
        with pytest.raises(SecretFileError) as caught:
            read_secret(path)
        assert "0123456789" not in str(caught.value)
