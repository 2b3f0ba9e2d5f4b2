# SPDX-License-Identifier: Apache-2.0
"""Programs: their facts, and running one on a packet without any device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pellicle.kernel.bpf import bpffs
from pellicle.kernel.bpf.libbpf import check, ffi, lib

_ETHERNET_HEADER = 14


@dataclass(frozen=True, slots=True)
class SkbContext:
    """The fields of struct __sk_buff that a test run takes and answers; the kernel makes the rest.

    The protocol is that of the packet's Ethernet header. `ifindex` 0 means loopback.
    """

    mark: int = 0
    priority: int = 0
    ingress_ifindex: int = 0
    ifindex: int = 0
    cb: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    tstamp: int = 0
    wire_len: int = 0
    gso_segs: int = 0
    gso_size: int = 0

    def pack(self) -> bytes:
        """As `ctx` of `Program.test_run`."""
        row = ffi.new("struct __sk_buff *")
        for name in self.__slots__:
            setattr(row, name, getattr(self, name))
        return bytes(ffi.buffer(row))

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """From `TestRun.ctx`."""
        row = ffi.cast("struct __sk_buff *", ffi.from_buffer(raw))
        values: dict[str, Any] = {name: getattr(row, name) for name in cls.__slots__}
        return cls(**{**values, "cb": tuple(row.cb)})


@dataclass(frozen=True, slots=True)
class TestRun:
    """What came of a test run."""

    __test__ = False  # no test case, whatever its name

    retval: int
    """As the program returned it: TC_ACT_UNSPEC is -1."""
    data: bytes
    ctx: bytes
    duration_ns: int
    """Of one run, averaged over `repeat`."""


class Program:
    """One loaded program."""

    def __init__(self, fd: int, name: str | None = None) -> None:
        row: Any = bpffs.info(fd, "prog")
        self.fd = fd
        self.id: int = row.id
        self.name = name or ffi.string(row.name).decode()
        self.translated_insns: int = row.xlated_prog_len // 8
        self.jited_bytes: int = row.jited_prog_len
        self.verified_insns: int = row.verified_insns
        """How many instructions the verifier walked; 0 before Linux 5.16."""

    def __repr__(self) -> str:
        return f"<Program {self.name} id {self.id} fd {self.fd}>"

    @property
    def is_jited(self) -> bool:
        """Whether it runs as machine code."""
        return self.jited_bytes > 0

    def pin(self, path: Path) -> None:
        """Names the program in a BPF file system; replaces an older pin."""
        bpffs.pin(self.fd, path)

    def test_run(
        self, data: bytes, *, ctx: bytes | None = None, repeat: int = 1, out_size: int | None = None
    ) -> TestRun:
        """Runs the program on a packet, at least an Ethernet header long.

        `data` of the answer is the packet as the last of `repeat` runs left it, which began
        where the run before it ended. A packet that outgrows `out_size` (default: 1 KiB more
        than went in) raises OSError ENOSPC.
        """
        if len(data) < _ETHERNET_HEADER:
            raise ValueError(f"a packet of {len(data)} bytes has no Ethernet header")
        out = bytearray(len(data) + 1024 if out_size is None else out_size)
        out_ctx = bytearray(ffi.sizeof("struct __sk_buff"))
        given, context = ffi.from_buffer(data), ffi.from_buffer(ctx or b"")
        options = ffi.new("struct bpf_test_run_opts *")
        options.sz = ffi.sizeof(options[0])
        options.data_in, options.data_size_in = given, len(data)
        options.data_out, options.data_size_out = ffi.from_buffer(out), len(out)
        if ctx is not None:
            options.ctx_in, options.ctx_size_in = context, len(ctx)
        options.ctx_out, options.ctx_size_out = ffi.from_buffer(out_ctx), len(out_ctx)
        options.repeat = repeat
        check(lib.bpf_prog_test_run_opts(self.fd, options), f"running {self.name}")
        return TestRun(
            retval=int(ffi.cast("__s32", options.retval)),
            data=bytes(out[: options.data_size_out]),
            ctx=bytes(out_ctx[: options.ctx_size_out]),
            duration_ns=options.duration,
        )
