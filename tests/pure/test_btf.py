# SPDX-License-Identifier: Apache-2.0
"""Layouts, enums and maps as C declares them (tests/bpf/kernel.bpf.c) are what Python sees."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build_bpf import ROOT, compile_bpf
from pellicle.wire.btf import Btf, BtfError
from pellicle.wire.layout import Integer, Layout, Raw


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("bpf") / "kernel.bpf.o"
    return compile_bpf(ROOT / "tests" / "bpf" / "kernel.bpf.c", out).read_bytes()


@pytest.fixture(scope="session")
def btf(image: bytes) -> Btf:
    return Btf.parse(image)


@pytest.fixture(scope="session")
def sample(btf: Btf) -> Layout:
    return btf.struct("sample")


CASES: list[tuple[str, Any, int, bytes, Any]] = [
    # field, packed value, offset, its bytes, value as read back
    ("tiny", 255, 0, b"\xff", 255),
    ("small", -2, 1, b"\xfe", -2),
    ("two", 0x1234, 2, b"\x34\x12", 0x1234),
    ("port", 0x1234, 4, b"\x12\x34", 0x1234),
    ("below", -1, 8, b"\xff\xff\xff\xff", -1),
    ("address", 0x0A000001, 12, b"\x0a\x00\x00\x01", 0x0A000001),
    ("eight", 1 << 63, 16, b"\0\0\0\0\0\0\0\x80", 1 << 63),
    ("network", 1, 24, b"\0\0\0\0\0\0\0\x01", 1),
    ("yes", True, 32, b"\x01", True),
    ("name", b"abc", 33, b"abc\0\0\0\0", b"abc\0\0\0\0"),
    ("numbers", [1, 2, 3], 40, b"\1\0\0\0\2\0\0\0\3\0\0\0", [1, 2, 3]),
    ("ports", (80, 443), 52, b"\x00\x50\x01\xbb", [80, 443]),
    ("inner", {"port": 80}, 56, b"\0\x50\0\0\0\0\0\0", {"port": 80, "mac": bytes(6)}),
    ("inner", b"\0\x50\1\2\3\4\5\6", 56, b"\0\x50\1\2\3\4\5\6",
     {"port": 80, "mac": b"\1\2\3\4\5\6"}),
    ("pair", [{"port": 1}, {"mac": b"abcdef"}], 64, b"\0\1\0\0\0\0\0\0\0\0abcdef",
     [{"port": 1, "mac": bytes(6)}, {"port": 0, "mac": b"abcdef"}]),
    ("either", {"bytes": bytes(range(16))}, 80, bytes(range(16)), {"bytes": bytes(range(16))}),
    ("either", {"words": [1, 2, 3, 4]}, 80, b"\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4",
     {"bytes": b"\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4"}),
    ("colour", 7, 96, b"\7\0\0\0", 7),
    ("named", {"part": 5}, 100, b"\5\0\0\0", {"whole": 5}),
    ("low", 15, 104, b"\x0f\0", 15),
    ("high", 0xABC, 104, b"\xc0\xab", 0xABC),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "offset", "raw", "read"), CASES)
def test_a_field_lies_where_c_puts_it(
    sample: Layout, name: str, value: Any, offset: int, raw: bytes, read: Any
) -> None:
    packed = sample.pack(**{name: value})
    expected = bytearray(sample.size)
    expected[offset : offset + len(raw)] = raw
    assert packed == bytes(expected)
    assert sample.unpack(packed)[name] == read


def test_what_is_not_given_is_zero(sample: Layout) -> None:
    assert sample.pack() == bytes(sample.size) == bytes(112)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tiny", 256, "sample.tiny: 256 does not fit 8 unsigned bits"),
        ("tiny", -1, "sample.tiny"),
        ("small", 128, "sample.small: 128 does not fit 8 signed bits"),
        ("port", 65536, "sample.port"),
        ("eight", 1 << 64, "sample.eight"),
        ("eight", "1", "sample.eight"),
        ("yes", 2, "sample.yes: 2 is not true or false"),
        ("name", b"too long", "sample.name: 8 bytes for a field of 7"),
        ("numbers", [1, 2], "sample.numbers: 2 items for an array of 3"),
        ("inner", {"mac": b"short"}, "sample.inner: inner.mac: 5 bytes for a field of 6"),
        ("inner", {"prot": 1}, "struct inner has no field prot"),
        ("inner", b"short", "sample.inner: 5 bytes for a field of 8"),
        ("low", 16, "sample.low: 16 does not fit 4 bits"),
        ("nothing", 1, "struct sample has no field nothing"),
    ],
)
def test_what_does_not_fit_is_named(sample: Layout, name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample.pack(**{name: value})


def test_members_of_a_union_must_agree(btf: Btf) -> None:
    either = btf.struct("either")
    assert either.pack(bytes=bytes(16), words=[0, 0, 0, 0]) == bytes(16)
    with pytest.raises(ValueError, match="overlaps"):
        either.pack(bytes=bytes(16), words=[0, 0, 0, 1])


def test_bit_fields_share_their_bytes(sample: Layout) -> None:
    both = sample.pack(low=0x5, high=0x678)
    assert both[104:106] == (0x678 << 4 | 0x5).to_bytes(2, "little")
    assert sample.unpack(both)["low"] == 0x5
    assert sample.unpack(both)["high"] == 0x678


@given(raw=st.binary(min_size=112 * 3, max_size=112 * 3))
def test_any_bytes_survive_unpacking_and_packing(btf: Btf, raw: bytes) -> None:
    layout = btf.struct("sample")
    for start in range(0, len(raw), layout.size):
        row = bytearray(raw[start : start + layout.size])
        values = layout.unpack(row)
        again = layout.pack(**values)
        assert layout.unpack(again) == values


@given(raw=st.binary(min_size=24 * 4, max_size=24 * 4))
def test_rows_in_bulk_are_the_rows_one_by_one(btf: Btf, raw: bytes) -> None:
    for name in ("guarded", "either", "inner", "settings"):
        layout = btf.struct(name)
        rows = raw[: len(raw) // layout.size * layout.size]
        one_by_one = [
            layout.unpack(rows[at : at + layout.size]) for at in range(0, len(rows), layout.size)
        ]
        assert list(layout.unpack_many(rows)) == one_by_one
        assert b"".join(layout.pack(**row) for row in one_by_one) == rows
        if name == "inner":
            values = [tuple(row.values()) for row in one_by_one]
            assert [tuple(row) for row in layout.unpack_values(rows)] == values


@pytest.mark.parametrize("name", ["guarded", "either", "sample"])
def test_only_flat_structs_are_read_as_plain_values(btf: Btf, name: str) -> None:
    layout = btf.struct(name)
    with pytest.raises(ValueError, match="is not flat"):
        layout.unpack_values(bytes(layout.size))
    with pytest.raises(ValueError, match="no whole number"):
        layout.unpack_values(bytes(layout.size + 1))


def test_bytes_of_another_size_are_refused(btf: Btf) -> None:
    inner = btf.struct("inner")
    with pytest.raises(ValueError, match="7 bytes are not one struct inner of 8"):
        inner.unpack(bytes(7))
    with pytest.raises(ValueError, match="no whole number"):
        inner.unpack_many(bytes(9))


def test_enums_keep_their_words_and_numbers(btf: Btf) -> None:
    assert btf.enum("colour") == {"RED": 1, "GREEN": 2, "BLUE": 7}
    assert btf.enum("big") == {"BIG": 1 << 40}
    assert btf.int_enum("colour")(7).name == "BLUE"


def test_maps_are_read_as_declared(btf: Btf) -> None:
    samples = btf.maps["samples"]
    assert (samples.type, samples.max_entries, samples.flags) == (1, 100000, 1)
    assert isinstance(samples.key, Layout)
    assert samples.key.name == "either"
    assert samples.value is btf.struct("sample")
    assert btf.maps["numbers"].value == Integer(8, typedef="__u64")
    assert btf.maps["events"].key is None
    names = "devices events guarded numbers per_cpu per_cpu_hash prefixes recent samples"
    assert sorted(btf.maps) == names.split()


def test_constants_are_found_in_their_section(btf: Btf) -> None:
    constants = btf.variables[".rodata"]
    assert constants["settings"].kind is btf.struct("settings")
    assert {each.offset for each in constants.values()} == {0, 8}


@pytest.mark.parametrize("ask", [Btf.struct, Btf.enum, Btf.int_enum])
def test_what_is_not_there_is_named(btf: Btf, ask: Any) -> None:
    with pytest.raises(BtfError, match="absent"):
        ask(btf, "absent")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a little-endian ELF64"),
        (b"\x7fELF\x02\x01", "ends within its ELF header"),
        (Path("/bin/true").read_bytes(), "no .BTF section"),
    ],
)
def test_what_is_no_bpf_object_is_named(data: bytes, words: str) -> None:
    with pytest.raises(BtfError, match=words):
        Btf.parse(data)


def test_a_struct_that_contains_itself_is_refused() -> None:
    strings = b"\0loop\0me\0"
    types = struct.pack("<IIIIII", 1, 4 << 24 | 1, 8, 6, 1, 0)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    with pytest.raises(BtfError, match="contains itself"):
        Btf.from_section(header + types + strings).struct("loop")


def explore(types: Btf) -> None:
    """Everything that can be asked of an object."""
    for name in types.structs:
        layout = types.struct(name)
        if layout.size < 1 << 16:
            layout.unpack(layout.pack())
    for name in types.enums:
        types.enum(name)
    assert types.maps is not None
    assert types.variables is not None


def test_the_real_object_can_be_explored(btf: Btf) -> None:
    explore(btf)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_btf_never_raises_anything_but_btf_error(image: bytes, data: st.DataObject) -> None:
    start = image.index(b"\x9f\xeb\x01\x00")
    size = int.from_bytes(image[start + 12 : start + 16], "little") + 24
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 6))):
        # The ELF header, the BTF types, or the section headers at the end.
        where = data.draw(
            st.one_of(
                st.integers(0, 63),
                st.integers(start, start + size),
                st.integers(len(image) - 2000, len(image) - 1),
            )
        )
        damaged[where] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))
    with contextlib.suppress(BtfError):
        explore(Btf.parse(bytes(damaged[:cut])))


@given(data=st.binary(max_size=400))
def test_noise_never_raises_anything_but_btf_error(data: bytes) -> None:
    for read in (Btf.parse, Btf.from_section):
        with pytest.raises(BtfError):
            read(data)


def test_text_and_bytes_are_told_apart(btf: Btf) -> None:
    fields = btf.struct("sample").by_name
    assert fields["name"].kind == Raw(7, is_text=True)
    assert btf.struct("inner").by_name["mac"].kind == Raw(6)
