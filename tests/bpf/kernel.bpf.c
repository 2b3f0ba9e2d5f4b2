// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* One of every map and layout that kernel/bpf.py and wire/btf.py promise to handle. */
#include <linux/pkt_cls.h>

#include "kernel.h"

enum colour { RED = 1, GREEN, BLUE = 7 };
enum big { BIG = 1ULL << 40 };

struct inner {
	__be16 port;
	__u8 mac[6];
};
struct either {
	union {
		__u8 bytes[16];
		__be32 words[4];
	};
};
struct sample {
	__u8 tiny;
	__s8 small;
	__u16 two;
	__be16 port;
	__s32 below;
	__be32 address;
	__u64 eight;
	__be64 network;
	_Bool yes;
	char name[7];
	__u32 numbers[3];
	__be16 ports[2];
	struct inner inner;
	struct inner pair[2];
	struct either either;
	enum colour colour;
	union {
		__u32 whole;
		__u8 part;
	} named;
	__u32 low : 4, high : 12;
};
struct exported {
	struct sample sample;
	enum big big;
	enum colour colour;
};
const struct exported *exported __attribute__((used));

struct guarded {
	struct bpf_spin_lock lock;
	__u32 number;
	__u64 total;
};
struct prefix {
	__u32 prefixlen;
	__u8 address[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 100000);
	__type(key, struct either);
	__type(value, struct sample);
} samples SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, __u32);
} prefixes SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} recent SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu_hash SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct guarded);
} guarded SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps"); /* of a type that the kernel does no batches for */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} events SEC(".maps");

struct settings {
	__u32 factor;
	__be32 address;
};
const volatile struct settings settings = {.factor = 1};
const volatile __u64 offset = 5;

/* The packet's first four bytes become an event; answers length * factor + offset. */
SEC("tc")
int measure(struct __sk_buff *skb)
{
	__u32 zero = 0, event = 0;
	__u64 *count = bpf_map_lookup_elem(&per_cpu, &zero);

	if (count)
		*count += 1;
	bpf_skb_load_bytes(skb, 0, &event, sizeof(event));
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	skb->mark += 1;
	skb->cb[0] = skb->ifindex;
	return skb->len * settings.factor + offset;
}

/* Adds the packet's length to row 1 under its lock, and writes 0xff over the packet's last byte. */
SEC("tc")
int add(struct __sk_buff *skb)
{
	__u32 one = 1;
	__u8 last = 0xff;
	struct guarded *row = bpf_map_lookup_elem(&guarded, &one);

	if (!row)
		return TC_ACT_SHOT;
	bpf_spin_lock(&row->lock);
	row->total += skb->len;
	bpf_spin_unlock(&row->lock);
	bpf_skb_store_bytes(skb, skb->len - 1, &last, sizeof(last), 0);
	return TC_ACT_OK;
}

/* Counts the packets that really pass a device. */
SEC("tc")
int passing(struct __sk_buff *skb)
{
	__u32 three = 3;
	__u64 *count = bpf_map_lookup_elem(&numbers, &three);

	if (count)
		__sync_fetch_and_add(count, settings.factor);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
