# SPDX-License-Identifier: Apache-2.0
"""bpf/chacha20poly1305.h in the kernel, against the RFCs, `cryptography` and plain integers.

Every length is sealed, tagged and opened. Poly1305 keeps its number in limbs that overlap, so
its corners (longest carries, numbers around 2^130 - 5) are sought out with chosen keys.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from build_bpf import ROOT, compile_bpf
from pellicle.kernel.bpf import Object
from pellicle.wire import elf
from pellicle.wire.layout import Layout

FRAME = bytes(64)
LONGEST = 2048
TAG = 16
ROOM = LONGEST + 64
PRIME = 2**130 - 5
CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
"""RFC 8439 §2.5: the only bits of r that may be set."""


@dataclass(frozen=True)
class Case:
    """A packet, and what becomes of it."""

    says: str
    key: bytes
    nonce: bytes
    aad: bytes
    plain: bytes
    sealed: bytes
    """Ciphertext and tag."""


RFC8439 = Case(
    says="RFC 8439 §2.8.2",
    key=bytes(range(0x80, 0xA0)),
    nonce=bytes.fromhex("070000004041424344454647"),
    aad=bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
    plain=b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
    b"the future, sunscreen would be it.",
    sealed=bytes.fromhex(
        "d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6"
        "3dbea45e8ca9671282fafb69da92728b 1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58 fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b 61161ae10b594f09e26a7e902ecbd0600691"
    ),
)
RFC7634 = Case(
    says="RFC 7634 appendix A, an ESP packet",
    key=bytes(range(0x80, 0xA0)),
    nonce=bytes.fromhex("a0a1a2a3 1011121314151617"),
    aad=bytes.fromhex("0102030400000005"),
    plain=bytes.fromhex(
        "45000054a6f200004001e778c6336405 c000020508005b7a3a080000553bec10"
        "0007362708090a0b0c0d0e0f10111213 1415161718191a1b1c1d1e1f20212223"
        "2425262728292a2b2c2d2e2f30313233 3435363701020204"
    ),
    sealed=bytes.fromhex(
        "24039428b97f417e3c13753a4f05087b 67c352e6a7fab1b982d466ef407ae5c6"
        "14ee8099d52844eb61aa95dfab4c02f7 2aa71e7c4c4f64c9befe2facc638e8f3"
        "cbec163fac469b502773f6fb94e664da 9165b82829f641e0"
        "76aaa8266b7fb0f7b11b369907e1ad43"
    ),
)


def drawn(length: int) -> Case:
    """A random packet of that length, always the same one."""
    draw = random.Random(length)
    key, nonce, plain = draw.randbytes(32), draw.randbytes(12), draw.randbytes(length)
    aad = draw.randbytes(8 if length & 1 else 12)
    sealed = ChaCha20Poly1305(key).encrypt(nonce, plain, aad)
    return Case(f"{length} bytes", key, nonce, aad, plain, sealed)


def words(raw: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(raw) // 4}I", raw))


class Core:
    """The functions under test, on the one packet in their map."""

    def __init__(self, loaded: Object) -> None:
        self.loaded = loaded
        self.layout: Layout = loaded.btf.struct("ccp")

    def run(self, program: str, **fields: object) -> dict[str, object]:
        """Runs a program on a packet whose other bytes are rubbish; the packet afterwards."""
        draw = random.Random(program)
        before = self.layout.unpack(draw.randbytes(self.layout.size)) | fields
        table = self.loaded.map("packet")
        table.update(bytes(4), self.layout.pack(**before))
        assert self.loaded.program(program).test_run(FRAME).retval == 0
        after = table.lookup(bytes(4))
        assert after is not None
        unpacked = self.layout.unpack(after)
        assert unpacked["head"] == before["head"], "the headers were touched"
        return unpacked

    def on(self, program: str, case: Case, data: bytes) -> tuple[bytes, bytes]:
        """Runs a program on a case; the whole of data[] afterwards, and the tag."""
        pad = bytes([0xAA]) * (16 - len(case.aad))  # must not count
        after = self.run(
            program,
            key=words(case.key),
            nonce=words(case.nonce),
            len=len(case.plain),
            aad_len=len(case.aad),
            aad=words(case.aad + pad),
            data=data.ljust(ROOM, b"\x55"),
        )
        assert isinstance(after["data"], bytes)
        assert isinstance(after["tag"], list)
        return after["data"], struct.pack("<4I", *after["tag"])

    def refuses(self, program: str, **fields: int) -> bool:
        """Whether a program turns a packet down and leaves it as it is."""
        table = self.loaded.map("packet")
        before = self.layout.pack(**{"len": 64, "aad_len": 12} | fields)
        table.update(bytes(4), before)
        refused = self.loaded.program(program).test_run(FRAME).retval == -1
        return refused and table.lookup(bytes(4)) == before


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bpf") / "chacha20poly1305.bpf.o"
    return compile_bpf(ROOT / "tests" / "bpf" / "chacha20poly1305.bpf.c", out)


@pytest.fixture(scope="module")
def core(path: Path) -> Iterator[Core]:
    with Object.load(path) as loaded:
        yield Core(loaded)


def check(core: Core, case: Case) -> None:
    length, end = len(case.plain), (len(case.plain) + 63) // 64 * 64
    ciphertext, expected = case.sealed[:-TAG], case.sealed[-TAG:]

    data, tag = core.on("seal", case, case.plain)
    assert (data[:length], tag) == (ciphertext, expected)
    assert set(data[end:]) == {0x55}, "sealing wrote past the last block"

    data, tag = core.on("tag", case, case.sealed)
    assert tag == expected
    assert data == case.sealed.ljust(ROOM, b"\x55"), "tagging changed the packet"


def check_open(core: Core, case: Case) -> None:
    """Opening goes on where tagging ended, on the same packet."""
    core.on("tag", case, case.sealed)
    assert core.loaded.program("open").test_run(FRAME).retval == 0
    after = core.loaded.map("packet").lookup(bytes(4))
    assert after is not None
    data = core.layout.unpack(after)["data"]
    end = max((len(case.plain) + 63) // 64 * 64, len(case.sealed))
    assert data[: len(case.plain)] == case.plain
    assert set(data[end:]) <= {0x55}, "opening wrote past the last block"


@pytest.mark.parametrize("case", [RFC8439, RFC7634], ids=lambda case: case.says)
def test_the_vectors_of_the_rfcs(core: Core, case: Case) -> None:
    check(core, case)
    check_open(core, case)


def test_every_length_is_what_cryptography_makes_of_it(core: Core) -> None:
    for length in range(1, LONGEST + 1):
        case = drawn(length)
        check(core, case)
        check_open(core, case)


def test_every_bit_of_packet_and_key_counts_for_the_tag(core: Core) -> None:
    case = drawn(77)
    _, good = core.on("tag", case, case.sealed)
    tags = {good}
    for bit in range(77 * 8):
        flipped = bytearray(case.sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        tags.add(core.on("tag", case, bytes(flipped))[1])
    for name in ("key", "nonce", "aad"):
        whole = getattr(case, name)
        for bit in range(len(whole) * 8):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            other = Case(**{**vars(case), name: bytes(flipped)})
            tags.add(core.on("tag", other, case.sealed)[1])
    assert len(tags) == 1 + 8 * (77 + 32 + 12 + len(case.aad))


@dataclass(frozen=True)
class Sum:
    """What Poly1305 is given: its key, and what it authenticates."""

    r: int
    s: int
    aad: bytes
    data: bytes

    @property
    def blocks(self) -> list[int]:
        """RFC 8439 §2.8: all padded to 16, then the lengths; each block with its 2^128."""
        whole = self.aad.ljust(16, b"\0") + self.data.ljust((len(self.data) + 15) // 16 * 16, b"\0")
        whole += struct.pack("<QQ", len(self.aad), len(self.data))
        return [
            int.from_bytes(whole[at : at + 16], "little") + 2**128
            for at in range(0, len(whole), 16)
        ]

    @property
    def residue(self) -> int:
        """The number before s is added."""
        h = 0
        for block in self.blocks:
            h = (h + block) * self.r % PRIME
        return h


def authenticated(core: Core, given: Sum) -> int:
    after = core.run(
        "authenticate",
        len=len(given.data),
        aad_len=len(given.aad),
        aad=words(given.aad.ljust(16, b"\xaa")),
        r=words(given.r.to_bytes(16, "little")),
        s=words(given.s.to_bytes(16, "little")),
        data=given.data.ljust(ROOM, b"\xff"),
    )
    assert isinstance(after["tag"], list)
    return int.from_bytes(struct.pack("<4I", *after["tag"]), "little")


ONES = 2**128 - 1
CORNERS = [0, 1, 5, ONES, 2**32 - 1, ONES ^ (2**32 - 1), 0xFFFFFFFB, 2**127]


def test_the_longest_carries_of_poly1305(core: Core) -> None:
    draw = random.Random(1305)
    keys = [CLAMP, 0, 1, 4 << 32, CLAMP ^ 1, CLAMP & (2**64 - 1), CLAMP & ~(2**64 - 1)]
    keys += [draw.getrandbits(128) & CLAMP for _ in range(20)]
    for r in keys:
        for corner in CORNERS:
            block = corner.to_bytes(16, "little")
            for count in (1, 2, 3, 64, 128):
                given = Sum(r, draw.choice(CORNERS), block[:12], block * count)
                assert authenticated(core, given) == (given.residue + given.s) % 2**128, given


def summing_to(target: int) -> Sum:
    """With r = 1 Poly1305 only adds, so that blocks can be chosen for any sum below 2^130 - 5."""
    for count in range(5, 12):
        aad, zeros = bytes(8), bytes(16 * count)
        missing = (target - Sum(1, 0, aad, zeros).residue) % PRIME
        blocks = [min(ONES, max(0, missing - ONES * at)) for at in range(count)]
        if sum(blocks) == missing:
            return Sum(1, 0, aad, b"".join(each.to_bytes(16, "little") for each in blocks))
    raise AssertionError(f"no blocks for {target}")


EDGES = [PRIME, *(top * 2**128 + 2**low for top in (0, 1, 3) for low in (32, 64, 96, 128))]


@pytest.mark.parametrize("below", range(12))
@pytest.mark.parametrize("edge", EDGES)
def test_numbers_around_the_prime_and_the_limbs_are_reduced(
    core: Core, edge: int, below: int
) -> None:
    for target in {(edge - below) % PRIME, (edge + below) % PRIME}:
        given = summing_to(target)
        assert given.residue == target
        assert authenticated(core, given) == target % 2**128


@pytest.mark.parametrize("program", ["seal", "tag", "open"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("len", 0), ("len", LONGEST + 1), ("len", 2**32 - 1), ("aad_len", 0), ("aad_len", 17)],
)
def test_lengths_out_of_range_are_refused(core: Core, program: str, field: str, value: int) -> None:
    assert core.refuses(program, **{field: value})


def test_a_null_pointer_is_refused(core: Core) -> None:
    assert core.loaded.program("nothing").test_run(FRAME).retval == 1


def test_head_and_data_are_one_frame(core: Core) -> None:
    fields = {field.name: field for field in core.layout.fields}
    head, data = fields["head"], fields["data"]
    assert head.kind.size >= 64, "Ethernet, IPv6 and ESP headers and an IV"
    assert head.offset + head.kind.size == data.offset
    assert data.kind.size >= LONGEST + TAG


@pytest.mark.parametrize("program", ["seal", "tag", "open"])
def test_the_verifier_is_soon_done(core: Core, program: str) -> None:
    assert 0 < core.loaded.program(program).verified_insns < 50_000


JUMP, EXIT, CALL, ALWAYS, LOAD_64 = (0x05, 0x06), 0x95, 0x85, 0x05, 0x18


def successors(code: bytes, at: int) -> list[tuple[int, bool]]:
    """Where an instruction leads in its function, and whether a loop may be closed that way."""
    opcode, offset = (
        code[at * 8],
        int.from_bytes(code[at * 8 + 2 : at * 8 + 4], "little", signed=True),
    )
    if opcode == EXIT:
        return []
    if opcode & 7 not in JUMP or opcode == CALL:
        return [(at + (2 if opcode == LOAD_64 else 1), False)]
    target = (at + 1 + offset, True)
    return [target] if opcode == ALWAYS else [(at + 1, True), target]


def falls_into_a_loop(code: bytes, start: int) -> list[int]:
    """The instructions of a function that fall back into the head of a loop being walked."""
    found, open_, done = [], {start}, set[int]()
    path = [(start, iter(successors(code, start)))]
    while path:
        at, left = path[-1]
        for to, may_loop in left:
            if to in open_ and not may_loop:
                found.append(at)
            elif to not in open_ and to not in done:
                open_.add(to)
                path.append((to, iter(successors(code, to))))
                break
        else:
            path.pop()
            open_.discard(at)
            done.add(at)
    return found


def test_older_verifiers_see_no_endless_loop(path: Path) -> None:
    """Linux 6.1 takes a loop only if it is closed by a jump; how it is closed, compilers choose."""
    parts = elf.sections(path.read_bytes())
    text = parts[".text"]
    starts = [each for each in elf.symbols(parts) if each.section == text.index and each.size]
    assert {"ccp_block", "ccp_poly", "ccp_open"} <= {each.name for each in starts}
    for each in starts:
        assert falls_into_a_loop(text.data, each.offset // 8) == [], each.name
