# SPDX-License-Identifier: Apache-2.0
"""Objects: a compiled file becomes maps and programs in the kernel.

Maps named in `pinned` are found again in `pin_dir` when they are there, so that a new version
of the programs goes on with the rows of the old. A pinned map whose rows this object would read
otherwise is refused by name: reusing it would make nonsense of every row.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pellicle.kernel import Held
from pellicle.kernel.bpf.libbpf import check, check_pointer, ffi, lib, said
from pellicle.kernel.bpf.maps import Map
from pellicle.kernel.bpf.programs import Program
from pellicle.wire.btf import Btf, BtfError
from pellicle.wire.layout import Kind

_TAIL_LINES = 40


class VerifierError(OSError):
    """The kernel's verifier refused a program; the text ends with the tail of its log."""

    log: str = ""


class IncompatibleMap(Exception):  # noqa: N818  the map is, it is no accident
    """A pinned map is not what this object declares under that name."""

    def __init__(self, name: str, difference: str) -> None:
        super().__init__(f"pinned map {name} does not fit this version: {difference}")
        self.name = name
        self.difference = difference


class Object(Held):
    """An opened and loaded BPF object; closing it closes its descriptors, not what is pinned."""

    def __init__(self, pointer: Any, btf: Btf) -> None:
        self._pointer = pointer
        self.btf = btf
        self._maps: dict[str, Map] = {}
        self._programs: dict[str, Program] = {}

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        rodata: Mapping[str, bytes] = MappingProxyType({}),
        pin_dir: Path | None = None,
        pinned: Collection[str] = (),
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> Self:
        """Loads every map and program of an object file.

        `rodata` gives `const volatile` variables their values, `sizes` maps their max_entries.
        Maps in `pinned` are pinned at `pin_dir`/name, and reused from there.
        """
        if pinned and pin_dir is None:
            raise ValueError("maps to pin, but no directory to pin them in")
        btf = Btf.parse(path.read_bytes())
        with said() as lines:
            pointer = lib.bpf_object__open_file(str(path).encode(), ffi.NULL)
            check_pointer(pointer, f"opening {path}{_last(lines)}")
        loaded = cls(pointer, btf)
        try:
            loaded._prepare(rodata, sizes)
            reused = loaded._reuse(pin_dir, pinned) if pin_dir else set()
            loaded._load(path)
            for name in pinned:
                if pin_dir and name not in reused:
                    loaded.map(name).pin(pin_dir / name)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def close(self) -> None:
        """Closes the maps and programs; their Python objects are dead from here on."""
        if self._pointer is not None:
            lib.bpf_object__close(self._pointer)
            self._pointer = None

    def map(self, name: str) -> Map:
        """The map of that name in the source; KeyError when there is none."""
        return self._maps[name]

    def program(self, name: str) -> Program:
        """The program of that name in the source; KeyError when there is none."""
        return self._programs[name]

    @property
    def maps(self) -> Mapping[str, Map]:
        """All maps by name."""
        return MappingProxyType(self._maps)

    @property
    def programs(self) -> Mapping[str, Program]:
        """All programs by name."""
        return MappingProxyType(self._programs)

    def _prepare(self, rodata: Mapping[str, bytes], sizes: Mapping[str, int]) -> None:
        pointers = self._map_pointers()
        for name, size in sizes.items():
            check(lib.bpf_map__set_max_entries(pointers[name], size), f"sizing map {name}")
        if not rodata:
            return
        variables = self.btf.variables.get(".rodata", {})
        sections = [pointers[name] for name in pointers if name.endswith(".rodata")]
        if not sections:
            raise ValueError("the object has no const volatile variables")
        size = ffi.new("size_t *")
        start = lib.bpf_map__initial_value(sections[0], size)
        image = bytearray(ffi.buffer(start, size[0]))
        for name, value in rodata.items():
            variable = variables.get(name)
            if variable is None:
                raise ValueError(f"the object has no const volatile variable {name}")
            if len(value) != variable.kind.size:
                raise ValueError(f"{name} has {variable.kind.size} bytes, not {len(value)}")
            image[variable.offset : variable.offset + len(value)] = value
        answer = lib.bpf_map__set_initial_value(sections[0], ffi.from_buffer(image), len(image))
        check(answer, "setting constants")

    def _reuse(self, pin_dir: Path, pinned: Collection[str]) -> set[str]:
        """Takes over the maps that are pinned already; answers their names."""
        pointers, reused = self._map_pointers(), set()
        for name in pinned:
            try:
                found = Map.open_pinned(pin_dir / name)
            except FileNotFoundError:
                continue
            with found:
                difference = self._difference(name, pointers[name], found)
                if difference:
                    raise IncompatibleMap(name, difference)
                check(lib.bpf_map__reuse_fd(pointers[name], found.fd), f"reusing map {name}")
            reused.add(name)
        return reused

    def _difference(self, name: str, declared: Any, found: Map) -> str | None:
        facts = {
            "type": (found.type, lib.bpf_map__type(declared)),
            "key size": (found.key_size, lib.bpf_map__key_size(declared)),
            "value size": (found.value_size, lib.bpf_map__value_size(declared)),
            "max entries": (found.max_entries, lib.bpf_map__max_entries(declared)),
            "flags": (found.flags, lib.bpf_map__map_flags(declared)),
        }
        for what, (old, new) in facts.items():
            if old != new:
                return f"{what} {int(old)} is pinned, {new} is declared"
        spec = self.btf.maps[name]
        old_key, old_value = _kinds_of(found)
        for what, before, now in (("key", old_key, spec.key), ("value", old_value, spec.value)):
            if before is not None and now is not None and before != now:
                return f"its {what} has other fields, {_first_difference(before, now)}"
        return None

    def _load(self, path: Path) -> None:
        with said() as lines:
            answer = lib.bpf_object__load(self._pointer)
        if answer < 0:
            raise _load_error(-answer, path, "".join(lines))
        for name, pointer in self._map_pointers().items():
            self._maps[name] = Map(lib.bpf_map__fd(pointer), name)
        pointer = ffi.NULL
        while (pointer := lib.bpf_object__next_program(self._pointer, pointer)) != ffi.NULL:
            name = ffi.string(lib.bpf_program__name(pointer)).decode()
            self._programs[name] = Program(lib.bpf_program__fd(pointer), name)

    def _map_pointers(self) -> dict[str, Any]:
        found, pointer = {}, ffi.NULL
        while (pointer := lib.bpf_object__next_map(self._pointer, pointer)) != ffi.NULL:
            found[ffi.string(lib.bpf_map__name(pointer)).decode()] = pointer
        return found


def _kinds_of(found: Map) -> tuple[Kind | None, Kind | None]:
    """What a map in the kernel says of its key and value; nothing when it was made without BTF."""
    btf_id, key, value = found.types
    if not btf_id:
        return None, None
    fd = check(lib.bpf_btf_get_fd_by_id(btf_id), f"types of map {found.name}")
    try:
        row = ffi.new("struct bpf_btf_info *")
        size = ffi.new("__u32 *", ffi.sizeof(row[0]))
        check(lib.bpf_obj_get_info_by_fd(fd, row, size), f"types of map {found.name}")
        image = bytearray(row.btf_size)
        pointer, length = ffi.from_buffer(image), len(image)
        row = ffi.new("struct bpf_btf_info *")
        row.btf, row.btf_size = int(ffi.cast("uintptr_t", pointer)), length
        check(lib.bpf_obj_get_info_by_fd(fd, row, size), f"types of map {found.name}")
    finally:
        os.close(fd)
    try:
        types = Btf.from_section(bytes(image))
        return (types.kind(key) if key else None), (types.kind(value) if value else None)
    except BtfError as error:
        raise IncompatibleMap(found.name, f"its types cannot be read ({error})") from None


def _first_difference(old: Kind, new: Kind) -> str:
    before = {each.name: each for each in getattr(old, "fields", ())}
    after = {each.name: each for each in getattr(new, "fields", ())}
    for name in {**before, **after}:
        if name not in before:
            return f"{name} is new"
        if name not in after:
            return f"{name} is gone"
        if before[name] != after[name]:
            return f"{name} is another"
    return "in their types"


def _load_error(number: int, path: Path, text: str) -> OSError:
    if "PROG LOAD LOG" not in text:
        return OSError(number, f"loading {path}: {os.strerror(number)}: {text.strip()}")
    tail = "\n".join(text.rstrip().splitlines()[-_TAIL_LINES:])
    error = VerifierError(number, f"the verifier refused {path}: {os.strerror(number)}\n{tail}")
    error.log = text
    return error


def _last(lines: list[str]) -> str:
    return f" ({lines[-1].strip()})" if lines else ""
