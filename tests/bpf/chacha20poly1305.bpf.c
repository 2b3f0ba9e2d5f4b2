// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Seals, tags or opens one packet per run: the test fills `scratch`, runs a program, reads it back.
 *
 * The frame given to BPF_PROG_TEST_RUN is not looked at; what counts is in the map, which is a plain
 * array here so that the test need not know the core.  The value returned is that of the function.
 */
#include "../../bpf/chacha20poly1305.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ccp);
} scratch SEC(".maps");

static __always_inline struct ccp *packet(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

SEC("tc")
int seal(struct __sk_buff *skb)
{
	return ccp_seal(packet());
}

SEC("tc")
int tag(struct __sk_buff *skb)
{
	return ccp_tag(packet());
}

SEC("tc")
int open(struct __sk_buff *skb)
{
	return ccp_open(packet());
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
