# SPDX-License-Identifier: Apache-2.0
"""kernel/bpf.py against this kernel: every map type, test runs, pins, constants, the ring buffer.

The programs and maps are those of tests/bpf/kernel.bpf.c.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from build_bpf import ROOT, compile_bpf
from pellicle.kernel.bpf import (
    BatchError,
    IncompatibleMap,
    Map,
    MapType,
    Object,
    RingBuffer,
    SkbContext,
    Update,
    VerifierError,
    ensure_bpffs,
    possible_cpus,
)

FRAME = bytes(12) + b"\x08\x00" + bytes(50)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bpf") / "kernel.bpf.o"
    return compile_bpf(ROOT / "tests" / "bpf" / "kernel.bpf.c", out)


@pytest.fixture(scope="module")
def shared(path: Path) -> Iterator[Object]:
    with Object.load(path) as loaded:
        yield loaded


@pytest.fixture
def obj(path: Path) -> Iterator[Object]:
    with Object.load(path) as loaded:
        yield loaded


@pytest.fixture
def pins() -> Iterator[Path]:
    directory = Path("/sys/fs/bpf") / f"pellicle-test-{os.getpid()}"
    ensure_bpffs(directory)
    yield directory
    for pin in directory.iterdir():
        pin.unlink()
    directory.rmdir()


def rows_of(name: str, obj: Object, count: int) -> list[tuple[bytes, bytes]]:
    """Valid rows for a map, all different."""
    sizes = obj.map(name)
    if name == "prefixes":
        return [(struct.pack("=I", 128) + n.to_bytes(16, "big"), u32(n)) for n in range(count)]
    values = possible_cpus() if name.startswith("per_cpu") else 1
    pad = bytes(sizes.value_size - 4)
    keys = [u32(n) + bytes(sizes.key_size - 4) for n in range(count)]
    if name == "guarded":  # the first word is the lock
        return [(key, bytes(4) + u32(n) + bytes(8)) for n, key in enumerate(keys)]
    return [(key, (u32(n) + pad) * values) for n, key in enumerate(keys)]


TYPES = {
    "numbers": (MapType.ARRAY, 8),
    "samples": (MapType.HASH, 40_000),
    "prefixes": (MapType.LPM_TRIE, 1000),
    "recent": (MapType.LRU_HASH, 100),
    "per_cpu": (MapType.PERCPU_ARRAY, 4),
    "per_cpu_hash": (MapType.PERCPU_HASH, 64),
    "guarded": (MapType.HASH, 1000),
}
MORTAL = ["samples", "prefixes", "recent", "per_cpu_hash", "guarded"]
"""Maps whose rows can be deleted."""


@pytest.mark.parametrize("name", TYPES)
def test_batches_write_and_read_every_row(obj: Object, name: str) -> None:
    kind, count = TYPES[name]
    rows = rows_of(name, obj, count)
    obj.map(name).update_batch(iter(rows))
    assert obj.map(name).type is kind
    assert sorted(obj.map(name).items()) == sorted(rows)
    assert sorted(obj.map(name).keys()) == sorted(key for key, _ in rows)


@pytest.mark.parametrize("name", TYPES)
def test_one_row_is_written_and_read(obj: Object, name: str) -> None:
    *_, (key, value) = rows_of(name, obj, 4)
    obj.map(name).update(key, value)
    assert obj.map(name).lookup(key) == value


def test_a_map_without_batches_behaves_the_same(obj: Object) -> None:
    devices, loopback = obj.map("devices"), u32(1)
    rows = [(u32(n), loopback) for n in range(10)]
    devices.update_batch(rows)
    assert sorted(devices.items()) == rows
    with pytest.raises(BatchError) as caught:
        devices.update_batch([*rows, (u32(11), u32(999_999))])
    assert (caught.value.done, caught.value.errno) == (10, errno.EINVAL)
    devices.delete_batch([u32(99), *(key for key, _ in rows[3:]), u32(98)])
    assert sorted(devices.items()) == rows[:3]


@pytest.mark.parametrize("name", MORTAL)
def test_a_deleted_row_is_gone_and_deleting_it_again_is_success(obj: Object, name: str) -> None:
    table, rows = obj.map(name), rows_of(name, obj, 20)
    table.update_batch(rows)
    assert table.delete(rows[0][0]) is True
    assert table.delete(rows[0][0]) is False
    assert table.lookup(rows[0][0]) is None
    table.delete_batch([key for key, _ in rows[:15]])
    assert sorted(table.items()) == sorted(rows[15:])
    table.delete_batch(key for key, _ in rows)
    assert table.items() == []


@pytest.mark.parametrize("name", ["samples", "recent", "per_cpu_hash", "guarded"])
def test_noexist_never_overwrites(obj: Object, name: str) -> None:
    table, rows = obj.map(name), rows_of(name, obj, 6)
    table.update(*rows[3], Update.NOEXIST)
    with pytest.raises(FileExistsError):
        table.update(*rows[3], Update.NOEXIST)
    with pytest.raises(BatchError) as caught:
        table.update_batch(rows, Update.NOEXIST)
    assert (caught.value.done, caught.value.errno) == (3, errno.EEXIST)
    assert sorted(table.items()) == sorted(rows[:4])


def test_exist_never_creates(obj: Object) -> None:
    row = rows_of("recent", obj, 1)[0]
    with pytest.raises(FileNotFoundError):
        obj.map("recent").update(*row, Update.EXIST)


def test_a_full_map_says_how_far_a_batch_came(obj: Object) -> None:
    table, rows = obj.map("guarded"), rows_of("guarded", obj, 1030)
    with pytest.raises(BatchError, match="row 1024") as caught:
        table.update_batch(rows)
    assert (caught.value.done, caught.value.errno) == (1024, errno.E2BIG)
    assert len(table.items()) == 1024


def test_a_bad_row_in_a_batch_is_found(obj: Object) -> None:
    table, rows = obj.map("prefixes"), rows_of("prefixes", obj, 10)
    rows[4] = (struct.pack("=I", 129) + bytes(16), u32(0))  # longer than an address
    for bad in (rows, rows[4:]):
        with pytest.raises(BatchError) as caught:
            table.update_batch(bad)
        assert caught.value.errno == errno.EINVAL
        assert bad[caught.value.done] == rows[4]


@pytest.mark.parametrize(("key", "value"), [(b"123", bytes(4)), (bytes(4), b"12345")])
def test_rows_of_another_size_never_reach_the_kernel(
    shared: Object, key: bytes, value: bytes
) -> None:
    with pytest.raises(ValueError, match="of map recent has 4 bytes"):
        shared.map("recent").update(key, value)
    with pytest.raises(ValueError, match="of map recent has 4 bytes"):
        shared.map("recent").update_batch([(key, value)])


def test_the_longest_prefix_wins(obj: Object) -> None:
    prefixes = obj.map("prefixes")
    net = bytes([10]) + bytes(15)
    prefixes.update(u32(8) + net, u32(1))
    prefixes.update(u32(16) + net, u32(2))
    assert prefixes.lookup(u32(128) + net) == u32(2)
    assert prefixes.lookup(u32(128) + bytes([10, 1]) + bytes(14)) == u32(1)
    assert prefixes.lookup(u32(128) + bytes([11]) + bytes(15)) is None


def test_per_cpu_values_come_apart_and_are_summed(obj: Object) -> None:
    table = obj.map("per_cpu")
    cpus = possible_cpus()
    table.update(u32(2), b"".join(struct.pack("=Q", cpu + 1) for cpu in range(cpus)))
    values = table.lookup_percpu(u32(2))
    assert values == [struct.pack("=Q", cpu + 1) for cpu in range(cpus)]
    assert table.values_summed()[u32(2)] == (cpus * (cpus + 1) // 2,)
    assert obj.map("per_cpu_hash").lookup_percpu(u32(0)) is None


def test_a_spin_lock_guards_a_value_and_reads_as_zero(obj: Object) -> None:
    table, key = obj.map("guarded"), u32(1)
    fields = obj.btf.struct("guarded")
    row = fields.pack(number=7, total=100)
    table.update(key, row, Update.NOEXIST)
    obj.program("add").test_run(FRAME, repeat=3)
    for lock in (False, True):
        assert table.items(lock=lock) == [(key, fields.pack(number=7, total=100 + 3 * 64))]
        assert table.lookup(key, lock=lock) == fields.pack(number=7, total=292)
    table.update(key, row, Update.LOCK | Update.EXIST)
    assert table.lookup(key, lock=True) == row
    table.update_batch([(key, fields.pack(total=1))], Update.LOCK)
    assert table.lookup(key) == fields.pack(total=1)


def test_a_lock_that_a_map_does_not_have_is_refused(obj: Object) -> None:
    with pytest.raises(OSError, match="map recent: looking up a key: Invalid argument"):
        obj.map("recent").lookup(u32(0), lock=True)


def test_a_run_shows_the_packet_and_its_context(shared: Object) -> None:
    ran = shared.program("measure").test_run(FRAME, ctx=SkbContext(mark=5, ifindex=1).pack())
    context = SkbContext.unpack(ran.ctx)
    assert ran.retval == len(FRAME) * 1 + 5
    assert (context.mark, context.cb[0], context.ifindex) == (6, 1, 1)
    assert ran.data == FRAME


def test_a_run_answers_the_changed_packet_and_negative_verdicts(obj: Object) -> None:
    obj.map("guarded").update(u32(1), bytes(16))
    assert obj.program("add").test_run(FRAME).data == FRAME[:-1] + b"\xff"
    assert obj.program("passing").test_run(FRAME).retval == -1


def test_a_run_measures_itself(shared: Object) -> None:
    assert 0 < shared.program("passing").test_run(FRAME, repeat=1000).duration_ns < 1_000_000


def test_a_packet_without_ethernet_header_is_refused(shared: Object) -> None:
    with pytest.raises(ValueError, match="13 bytes"):
        shared.program("measure").test_run(bytes(13))


def test_a_packet_that_outgrows_its_room_is_an_error(shared: Object) -> None:
    with pytest.raises(OSError, match="running measure") as caught:
        shared.program("measure").test_run(FRAME, out_size=20)
    assert caught.value.errno == errno.ENOSPC


def test_a_program_knows_its_size(shared: Object) -> None:
    program = shared.program("measure")
    assert program.is_jited
    assert 0 < program.verified_insns <= program.translated_insns * 2


def test_constants_are_set_by_name(path: Path) -> None:
    settings = struct.pack("=II", 3, 0)
    with Object.load(path, rodata={"settings": settings}) as obj:
        assert obj.program("measure").test_run(FRAME).retval == len(FRAME) * 3 + 5
    with Object.load(path, rodata={"offset": struct.pack("=Q", 9)}) as obj:
        assert obj.program("measure").test_run(FRAME).retval == len(FRAME) + 9


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("settings", bytes(7), "settings has 8 bytes, not 7"),
        ("settigns", bytes(8), "no const volatile variable settigns"),
    ],
)
def test_constants_that_do_not_fit_are_named(
    path: Path, name: str, value: bytes, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Object.load(path, rodata={name: value})


def test_a_map_can_be_sized_at_load(path: Path) -> None:
    with Object.load(path, sizes={"recent": 2048}) as obj:
        assert obj.map("recent").max_entries == 2048


def test_pinned_maps_outlive_the_object_and_are_found_again(path: Path, pins: Path) -> None:
    with Object.load(path, pin_dir=pins, pinned=["samples", "guarded"]) as first:
        row = rows_of("guarded", first, 2)[1]
        first.map("guarded").update(*row)
    with Object.load(path, pin_dir=pins, pinned=["samples", "guarded"]) as second:
        assert second.map("guarded").items() == [row]
        second.map("guarded").delete(row[0])
    with Map.open_pinned(pins / "guarded") as alone:
        assert (alone.name, alone.items()) == ("guarded", [])
    assert sorted(each.name for each in pins.iterdir()) == ["guarded", "samples"]


def test_what_is_not_pinned_is_not_found(pins: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Map.open_pinned(pins / "nothing")


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("__u32 number;", "__u32 renamed;", r"guarded.*value has other fields, number is gone"),
        ("__u64 total;\n};", "__u64 total;\n\t__u64 more;\n};", r"value size 16 .* 24 is declared"),
        ("max_entries, 1024", "max_entries, 2048", r"max entries 1024 is pinned, 2048"),
    ],
)
def test_a_pinned_map_of_another_shape_is_refused_by_name(
    path: Path, pins: Path, tmp_path: Path, old: str, new: str, difference: str
) -> None:
    source = (ROOT / "tests" / "bpf" / "kernel.bpf.c").read_text()
    assert old in source
    changed = tmp_path / "changed.bpf.c"
    changed.write_text(source.replace(old, new))
    other = compile_bpf(changed, tmp_path / "changed.bpf.o")
    Object.load(path, pin_dir=pins, pinned=["guarded"]).close()
    with pytest.raises(IncompatibleMap, match=difference) as caught:
        Object.load(other, pin_dir=pins, pinned=["guarded"])
    assert caught.value.name == "guarded"


def test_a_program_can_be_pinned_again(shared: Object, pins: Path) -> None:
    for _ in range(2):
        shared.program("passing").pin(pins / "passing")
    assert [each.name for each in pins.iterdir()] == ["passing"]


def test_a_refused_program_shows_the_tail_of_the_verifiers_log(tmp_path: Path) -> None:
    source = tmp_path / "bad.bpf.c"
    source.write_text(
        '#include "kernel.h"\n'
        'SEC("tc") int bad(struct __sk_buff *skb) { return *(int *)(long)skb->data; }\n'
        'char _license[] SEC("license") = "GPL";\n'
    )
    with pytest.raises(
        VerifierError, match=r"(?s)verifier refused .*invalid access to packet"
    ) as caught:
        Object.load(compile_bpf(source, tmp_path / "bad.bpf.o"))
    assert caught.value.errno == errno.EACCES
    assert "bad" in caught.value.log


def test_what_is_no_object_is_an_error(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Object.load(tmp_path / "absent.bpf.o")
    assert path.exists()


def test_the_ring_buffer_wakes_its_reader_and_keeps_order(obj: Object) -> None:
    async def read(ring: RingBuffer) -> list[bytes]:
        woken = asyncio.Event()
        asyncio.get_running_loop().add_reader(ring, woken.set)
        try:
            obj.program("measure").test_run(b"\x01\0\0\0" + FRAME[4:])
            obj.program("measure").test_run(b"\x02\0\0\0" + FRAME[4:])
            await asyncio.wait_for(woken.wait(), 5)
            return ring.consume()
        finally:
            asyncio.get_running_loop().remove_reader(ring)

    with RingBuffer(obj.map("events")) as ring:
        assert ring.consume() == []
        assert asyncio.run(read(ring)) == [u32(1), u32(2)]


def test_the_ring_buffer_is_read_in_portions(obj: Object) -> None:
    obj.program("measure").test_run(b"\x07\0\0\0" + FRAME[4:], repeat=100)
    with RingBuffer(obj.map("events")) as ring:
        assert [len(ring.consume(limit=40)) for _ in range(4)] == [40, 40, 20, 0]


def test_a_map_that_is_no_ring_is_refused(shared: Object) -> None:
    with pytest.raises(OSError, match="reading ring buffer numbers"):
        RingBuffer(shared.map("numbers"))


def test_a_bpf_file_system_is_mounted_where_none_is(tmp_path: Path) -> None:
    from pellicle.kernel import libc
    from pellicle.kernel.bpf.bpffs import is_bpffs

    place = tmp_path / "bpf"
    try:
        ensure_bpffs(place)
        ensure_bpffs(place)
        assert is_bpffs(place)
        assert not is_bpffs(tmp_path)
    finally:
        libc.unmount(place)
