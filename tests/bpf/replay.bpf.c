// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The replay window alone: a packet is one 64-bit number behind its Ethernet header, and the answer
 * is what replay_accept says of it.
 */
#include <linux/pkt_cls.h>

#include "replay.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sa_in);
} row SEC(".maps");

const struct exported_enums *exported_enums __attribute__((used));

SEC("tc")
int accept(struct __sk_buff *skb)
{
	__u64 sequence = 0;
	__u32 zero = 0;
	struct sa_in *sa = bpf_map_lookup_elem(&row, &zero);

	if (!sa || bpf_skb_load_bytes(skb, 14, &sequence, sizeof(sequence)))
		return -1;
	return replay_accept(sa, sequence);
}

char _license[] SEC("license") = "Dual BSD/GPL";
