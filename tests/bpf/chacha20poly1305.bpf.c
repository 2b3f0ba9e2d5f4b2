// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Seals, tags or opens one packet per run: the test fills `packet`, runs a program, reads it back.
 *
 * A plain array, so that the test need not know which CPU ran it.  What the frame of the run says does
 * not matter; a program returns what the function did.  `authenticate` takes the key of Poly1305 from
 * the test, so that its arithmetic can be driven into corners that no cipher key is known to reach.
 */
#include "chacha20poly1305.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ccp);
} packet SEC(".maps");

static __always_inline struct ccp *packet_of_test(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&packet, &zero);
}

SEC("tc")
int seal(struct __sk_buff *skb)
{
	return ccp_seal(packet_of_test());
}

SEC("tc")
int tag(struct __sk_buff *skb)
{
	return ccp_tag(packet_of_test());
}

SEC("tc")
int open(struct __sk_buff *skb)
{
	return ccp_open(packet_of_test());
}

SEC("tc")
int authenticate(struct __sk_buff *skb)
{
	return ccp_poly(packet_of_test());
}

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	return ccp_seal(0) == -1 && ccp_tag(0) == -1 && ccp_open(0) == -1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
