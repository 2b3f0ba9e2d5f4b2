# SPDX-License-Identifier: Apache-2.0
"""BPF objects, maps, programs, attachments and ring buffers, through the system's libbpf.

    with Object.load(path, rodata={"config": row}, pin_dir=pins, pinned=["ipcache"]) as obj:
        obj.map("ipcache").update_batch(rows)
        attach_tc(ifindex, obj.program("from_net"), "ingress", pin=pins / "from_net")

Everything pinned or attached outlives the Object and the process.
"""

from pellicle.kernel import Unsupported
from pellicle.kernel.bpf.attach import Attachment, attach_tc, attached_tc, detach_tc
from pellicle.kernel.bpf.bpffs import ensure_bpffs
from pellicle.kernel.bpf.maps import BatchError, Map, MapType, Update, possible_cpus, summed
from pellicle.kernel.bpf.objects import IncompatibleMap, Object, VerifierError
from pellicle.kernel.bpf.programs import Program, SkbContext, TestRun
from pellicle.kernel.bpf.ring import RingBuffer

__all__ = [
    "Attachment",
    "BatchError",
    "IncompatibleMap",
    "Map",
    "MapType",
    "Object",
    "Program",
    "RingBuffer",
    "SkbContext",
    "TestRun",
    "Unsupported",
    "Update",
    "VerifierError",
    "attach_tc",
    "attached_tc",
    "detach_tc",
    "ensure_bpffs",
    "possible_cpus",
    "summed",
]
