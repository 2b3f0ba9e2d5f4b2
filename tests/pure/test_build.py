# SPDX-License-Identifier: Apache-2.0
"""The build needs pip alone, makes the same bytes anywhere, and ships what belongs in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build_bpf import ROOT, CompileError, compile_bpf


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout in another directory, whose only BPF object is the test program."""
    for name in ("pyproject.toml", "build_bpf.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bpf").mkdir()
    shutil.copy(ROOT / "bpf" / "kernel.h", tmp_path / "bpf")
    shutil.copy(ROOT / "tests" / "bpf" / "kernel.bpf.c", tmp_path / "bpf")
    (tmp_path / "src" / "pellicle").mkdir(parents=True)
    shutil.copy(ROOT / "src" / "pellicle" / "__init__.py", tmp_path / "src" / "pellicle")
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni" / "pellicle-cni").write_text("#!/usr/bin/env python3\n")
    (tmp_path / "cni" / "pellicle-cni").chmod(0o755)
    return tmp_path


def build(tree: Path, *words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=tree, check=True, capture_output=True, text=True)


def test_the_wheel_holds_the_objects_and_the_plugin(tree: Path) -> None:
    build(tree, "-m", "hatchling", "build", "-t", "wheel", "-d", "out")
    (wheel,) = (tree / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("pellicle/_bpf/kernel.bpf.o").startswith(b"\x7fELF")
        assert archive.read("pellicle/_cni/pellicle-cni").startswith(b"#!")
        plugin = archive.getinfo("pellicle/_cni/pellicle-cni")
        assert plugin.external_attr >> 16 & 0o111, "the plugin must be executable"


def test_objects_are_the_same_in_any_directory(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "deeper" / "still"
    shutil.copytree(tree, other, ignore=shutil.ignore_patterns("deeper"))
    objects = []
    for place in (tree, other):
        build(place, "build_bpf.py")
        objects.append((place / "src" / "pellicle" / "_bpf" / "kernel.bpf.o").read_bytes())
    assert objects[0] == objects[1]
    assert str(tmp_path).encode() not in objects[0]


def test_a_source_that_does_not_compile_is_named_and_leaves_no_object(tmp_path: Path) -> None:
    source = tmp_path / "broken.bpf.c"
    source.write_text("int f(void) { return missing; }\n")
    out = tmp_path / "out" / "broken.bpf.o"
    with pytest.raises(CompileError, match=r"(?s)broken\.bpf\.c does not compile.*missing"):
        compile_bpf(source, out)
    assert list(out.parent.iterdir()) == []
