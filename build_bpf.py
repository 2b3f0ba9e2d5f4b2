# SPDX-License-Identifier: Apache-2.0
"""Compiles every bpf/*.bpf.c into the package: pellicle/_bpf/<name>.bpf.o.

The wheel is built with the C compiler inside the `ziglang` wheel, which also carries the kernel's
UAPI headers: no clang, no kernel headers and no libbpf headers are needed.  The objects are the
same byte for byte wherever they are built.  Three ways in: hatch (wheel and editable install),
`python build_bpf.py [--cc clang-19]` for a quick rebuild beside the sources, and `compile_bpf`
for the tests' own programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
IN_PLACE = ROOT / "src" / "pellicle" / "_bpf"
CNI_PLUGIN = ROOT / "cni" / "pellicle-cni"
CNI_IN_WHEEL = "pellicle/_cni/pellicle-cni"
ZIG = (sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding")
FLAGS = (
    "-O2", "-g", "-mcpu=v3", "-fno-unwind-tables", "-fno-stack-protector", "-std=gnu11",
    "-Wall", "-Wextra", "-Werror", "-Wno-missing-declarations", "-Wno-unused-parameter",
)  # fmt: skip


class CompileError(Exception):
    """A BPF source did not compile; the text is the compiler's own."""


def uapi_directories() -> tuple[Path, Path]:
    """The kernel's UAPI headers in the ziglang wheel; arm64's <asm/> is plain 64-bit, like BPF."""
    import ziglang  # noqa: PLC0415  only a build needs it

    include = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
    return include / "aarch64-linux-any", include / "any-linux-any"


def command(source: Path, out: Path, cc: str | None, include: Iterable[Path]) -> list[str]:
    """How one source is compiled: only relative paths and mapped prefixes reach the object."""
    uapi = uapi_directories()
    compiler = (cc, "-target", "bpf") if cc else ZIG
    shown = [(ROOT, "."), *((path, f"/uapi/{path.name}") for path in uapi)]
    return [
        *compiler,
        *FLAGS,
        "-nostdinc",
        *(f"-ffile-prefix-map={path}={name}" for path, name in shown),
        "-fdebug-compilation-dir=.",
        *(f"-I{os.path.relpath(path, ROOT)}" for path in include),
        *(word for path in uapi for word in ("-isystem", str(path))),
        "-c", os.path.relpath(source, ROOT),
        "-o", str(out),
    ]  # fmt: skip


def compile_bpf(
    source: Path, out: Path, *, cc: str | None = None, include: Iterable[Path] = (ROOT / "bpf",)
) -> Path:
    """Compiles one source; `out` appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bpf-", dir=out.parent) as scratch:
        fresh = Path(scratch) / out.name
        words = command(source.resolve(), fresh, cc, include)
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"{source} does not compile:\n{done.stderr or done.stdout}")
        sys.stderr.write(done.stderr)
        fresh.replace(out)
    return out


def build_all(into: Path, *, cc: str | None = None) -> list[Path]:
    """Compiles bpf/*.bpf.c; answers the objects."""
    sources = sorted((ROOT / "bpf").glob("*.bpf.c"))
    return [compile_bpf(source, into / f"{source.stem}.o", cc=cc) for source in sources]


class BpfBuildHook(BuildHookInterface[Any]):
    """What hatch calls: objects into the wheel, or beside the package when editable."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, and tells hatch where the results belong."""
        if self.target_name != "wheel":
            return
        if version == "editable":
            build_all(IN_PLACE)
            return
        self.scratch = Path(tempfile.mkdtemp(prefix="pellicle-bpf-"))
        data = {str(path): f"pellicle/_bpf/{path.name}" for path in build_all(self.scratch)}
        if CNI_PLUGIN.exists():
            data[str(CNI_PLUGIN)] = CNI_IN_WHEEL
        build_data["force_include"].update(data)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Takes the scratch directory away."""
        if hasattr(self, "scratch"):
            shutil.rmtree(self.scratch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuilds the objects beside the sources."""
    parser = argparse.ArgumentParser(description="compile bpf/*.bpf.c into src/pellicle/_bpf")
    parser.add_argument("--cc", help="another compiler than ziglang's, for example clang-19")
    parser.add_argument("--into", type=Path, default=IN_PLACE, help="directory of the objects")
    chosen = parser.parse_args(arguments)
    try:
        objects = build_all(chosen.into, cc=chosen.cc)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    for path in objects:
        print(f"{path}  {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
