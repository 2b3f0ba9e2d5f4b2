// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* How a peer is reached: its row in the encryption table, the SA for one flow, and that SA's next
 * sequence number, which is also the nonce and therefore never given out twice.
 */
#pragma once
#include "peer.h"

static __always_inline struct encrypt_row *encrypt_find(const struct addr *node)
{
	struct encrypt_key key = { .node = *node };

	return bpf_map_lookup_elem(&encrypt, &key);
}

static __always_inline struct sa_out *sa_out_find(__u64 pair, __u32 number)
{
	struct sa_out_key key = { .pair = pair, .number = number };

	return bpf_map_lookup_elem(&sa_out, &key);
}

/* The SA's next sequence number, or 0: it is spent.  Cores that race past the limit each take a
 * number above it and give it up; the look before the leap keeps such overshoot to one a core.
 */
static __always_inline __u64 sa_out_next(struct sa_out *sa)
{
	__u64 limit = sa->sequence_limit, sequence;

	if (sa->expires && bpf_ktime_get_boot_ns() >= sa->expires)
		return 0;
	if (*(volatile __u64 *)&sa->sequence >= limit)
		return 0;
	sequence = __sync_fetch_and_add(&sa->sequence, 1) + 1;
	return sequence <= limit ? sequence : 0;
}
