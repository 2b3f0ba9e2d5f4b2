# SPDX-License-Identifier: Apache-2.0
"""libbpf.so.1 as the system has it, called through cffi; 1.1 (Debian 12) is enough.

libbpf answers a negative errno, or NULL with errno set, and prints the reason. `check` and
`check_pointer` make OSErrors of these; `said` collects what is printed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from typing import Any

import cffi

from pellicle.kernel import Unsupported, libc

ffi: Any = cffi.FFI()
ffi.cdef("""
typedef uint8_t __u8; typedef uint32_t __u32; typedef uint64_t __u64; typedef int32_t __s32;

struct bpf_object; struct bpf_map; struct bpf_program; struct ring_buffer;
typedef int (*print_fn)(int level, const char *format, void *arguments);
print_fn libbpf_set_print(print_fn fn);
int libbpf_num_possible_cpus(void);

struct bpf_object *bpf_object__open_file(const char *path, const void *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__type(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
__u32 bpf_map__max_entries(const struct bpf_map *map);
__u32 bpf_map__map_flags(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
const void *bpf_map__initial_value(struct bpf_map *map, size_t *size);
int bpf_map__set_initial_value(struct bpf_map *map, const void *data, size_t size);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj,
                                             struct bpf_program *prog);
const char *bpf_program__name(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);

struct bpf_map_batch_opts { size_t sz; __u64 elem_flags; __u64 flags; };
int bpf_map_lookup_elem_flags(int fd, const void *key, void *value, __u64 flags);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values,
                         __u32 *count, const struct bpf_map_batch_opts *opts);
int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count,
                         const struct bpf_map_batch_opts *opts);

int bpf_obj_pin(int fd, const char *path);
int bpf_obj_get(const char *path);
int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *info_len);
int bpf_btf_get_fd_by_id(__u32 id);
struct bpf_map_info {
    __u32 type; __u32 id; __u32 key_size; __u32 value_size; __u32 max_entries; __u32 map_flags;
    char name[16]; __u32 ifindex; __u32 btf_vmlinux_value_type_id; __u64 netns_dev;
    __u64 netns_ino; __u32 btf_id; __u32 btf_key_type_id; __u32 btf_value_type_id; __u32 pad;
    __u64 map_extra;
};
struct bpf_prog_info {
    __u32 type; __u32 id; __u8 tag[8]; __u32 jited_prog_len; __u32 xlated_prog_len;
    __u64 jited_prog_insns; __u64 xlated_prog_insns; __u64 load_time; __u32 created_by_uid;
    __u32 nr_map_ids; __u64 map_ids; char name[16]; __u32 ifindex; __u32 gpl_compatible;
    __u64 netns_dev; __u64 netns_ino; __u32 nr_jited_ksyms; __u32 nr_jited_func_lens;
    __u64 jited_ksyms; __u64 jited_func_lens; __u32 btf_id; __u32 func_info_rec_size;
    __u64 func_info; __u32 nr_func_info; __u32 nr_line_info; __u64 line_info;
    __u64 jited_line_info; __u32 nr_jited_line_info; __u32 line_info_rec_size;
    __u32 jited_line_info_rec_size; __u32 nr_prog_tags; __u64 prog_tags; __u64 run_time_ns;
    __u64 run_cnt; __u64 recursion_misses; __u32 verified_insns; __u32 attach_btf_obj_id;
    __u32 attach_btf_id; __u32 pad;
};
struct bpf_btf_info { __u64 btf; __u32 btf_size; __u32 id; __u64 name; __u32 name_len;
                      __u32 kernel_btf; };
struct bpf_link_info { __u32 type; __u32 id; __u32 prog_id; __u32 pad; __u32 ifindex;
                       __u32 attach_type; __u64 rest[4]; };

struct __sk_buff {
    __u32 len; __u32 pkt_type; __u32 mark; __u32 queue_mapping; __u32 protocol;
    __u32 vlan_present; __u32 vlan_tci; __u32 vlan_proto; __u32 priority; __u32 ingress_ifindex;
    __u32 ifindex; __u32 tc_index; __u32 cb[5]; __u32 hash; __u32 tc_classid; __u32 data;
    __u32 data_end; __u32 napi_id; __u32 family; __u32 remote_ip4; __u32 local_ip4;
    __u32 remote_ip6[4]; __u32 local_ip6[4]; __u32 remote_port; __u32 local_port;
    __u32 data_meta; __u64 flow_keys; __u64 tstamp; __u32 wire_len; __u32 gso_segs; __u64 sk;
    __u32 gso_size; __u32 tstamp_type; __u64 hwtstamp;
};
struct bpf_test_run_opts {
    size_t sz; const void *data_in; void *data_out; __u32 data_size_in; __u32 data_size_out;
    const void *ctx_in; void *ctx_out; __u32 ctx_size_in; __u32 ctx_size_out; __u32 retval;
    int repeat; __u32 duration; __u32 flags; __u32 cpu; __u32 batch_size;
};
int bpf_prog_test_run_opts(int fd, struct bpf_test_run_opts *opts);

int bpf_link_create(int prog_fd, int target_fd, int attach_type, const void *opts);
int bpf_link_update(int link_fd, int new_prog_fd, const void *opts);
int bpf_link_detach(int link_fd);
int bpf_prog_query(int target_fd, int type, __u32 query_flags, __u32 *attach_flags,
                   __u32 *prog_ids, __u32 *prog_cnt);
int bpf_prog_get_fd_by_id(__u32 id);

typedef int (*sample_fn)(void *context, void *data, size_t size);
struct ring_buffer *ring_buffer__new(int map_fd, sample_fn fn, void *context, const void *opts);
void ring_buffer__free(struct ring_buffer *ring);
int ring_buffer__consume(struct ring_buffer *ring);
int ring_buffer__epoll_fd(const struct ring_buffer *ring);
""")

try:
    lib: Any = ffi.dlopen("libbpf.so.1")
except OSError as error:
    raise Unsupported("loading BPF programs", "libbpf.so.1 (Debian: package libbpf1)") from error

_DEBUG = 2
_printed = threading.local()


def _on_print(level: int, template: Any, arguments: Any) -> int:
    """Collects one line of libbpf's for the thread that is in `said`; others fall silent."""
    lines = getattr(_printed, "lines", None)
    if lines is None or level >= _DEBUG:
        return 0
    text = libc.ffi.new("char **")
    pointers = [
        libc.ffi.cast("void *", int(ffi.cast("uintptr_t", each))) for each in (template, arguments)
    ]
    if libc.lib.vasprintf(text, *pointers) >= 0:
        lines.append(libc.ffi.string(text[0]).decode("utf-8", "replace"))
        libc.lib.free(text[0])
    return 0


_print = ffi.callback("print_fn", _on_print)
lib.libbpf_set_print(_print)


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What libbpf prints in this thread meanwhile."""
    before = getattr(_printed, "lines", None)
    _printed.lines = []
    try:
        yield _printed.lines
    finally:
        _printed.lines = before


def check(answer: int, what: str) -> int:
    """`answer`, unless it is a negative errno: then OSError about `what`."""
    if answer < 0:
        raise error_about(-answer, what)
    return answer


def check_pointer(pointer: Any, what: str) -> Any:
    """`pointer`, unless it is NULL: then OSError about `what`."""
    if pointer == ffi.NULL:
        raise error_about(ffi.errno, what)
    return pointer


def error_about(number: int, what: str) -> OSError:
    """An OSError that says what it is about; its class follows the errno, as always."""
    words = "Not supported" if number == ENOTSUPP else os.strerror(number)
    return OSError(number, f"{what}: {words}")


ENOTSUPP = 524
"""The kernel's own, which leaks out of some map operations."""
NO_SUCH_OPERATION = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP})
