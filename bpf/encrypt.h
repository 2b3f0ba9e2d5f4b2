// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Must it be encrypted, and how: what encryption policies say, the peer's row in the encryption table,
 * the SA for one flow, and that SA's next sequence number, which is also the nonce and therefore
 * never given out twice.
 *
 *     policies[groups] ─▶ policy_ports[either port] ─▶ encrypt[context, node]: at most four look-ups
 *
 * however many policies there are.
 */
#pragma once
#include "peer.h"

/* --- policies --------------------------------------------------------------------------------- */

static __always_inline __u64 group_of(const struct addr *addr)
{
	return member_find(addr).group;
}

static __always_inline struct policy *policy_on_ports(const struct packet *p, __u64 ports)
{
	struct policy_port_key key = {
		.ports = ports, .port = p->destination_port, .protocol = p->protocol
	};
	struct policy *to = bpf_map_lookup_elem(&policy_ports, &key), *from;

	key.port = p->source_port;
	from = bpf_map_lookup_elem(&policy_ports, &key);
	return !to || (from && from->action > to->action) ? from : to;
}

static __always_inline int has_ports(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP ||
	       p->protocol == IPPROTO_SCTP;
}

/* What the policies say of a packet between these groups; 0: nothing, it is encrypted. */
static __always_inline struct policy *policy_find(const struct packet *p, __u64 one, __u64 other)
{
	struct policy_key key = { .groups = { one < other ? one : other,
					      one < other ? other : one } };
	struct policy_row *row = bpf_map_lookup_elem(&policies, &key);
	struct policy *policy;

	if (!row || !row->ports)
		return row ? &row->rest : 0;
	if (p->is_fragment)
		return &row->fragments;
	policy = has_ports(p) ? policy_on_ports(p, row->ports) : 0;
	return policy ? policy : &row->rest;
}

/* Does a policy let it go in the clear?  Then s->rule names it.  Pods' packets never do where they
 * need the overlay: other networks than the nodes' do not know them.
 */
static __always_inline int is_exempt(struct scratch *s, const struct policy *policy,
				     int is_between_nodes)
{
	if (!policy || policy->action != POLICY_EXEMPT)
		return 0;
	if (config.overlay_port && !is_between_nodes)
		return 0;
	s->rule = policy->rule;
	return 1;
}

/* --- keys ------------------------------------------------------------------------------------- */

/* The row for what the policy is about; s->rule names the policy. */
static __always_inline struct encrypt_row *encrypt_find(struct scratch *s,
							const struct policy *policy,
							const struct addr *node)
{
	struct encrypt_key key = { .node = *node };

	if (policy) {
		s->rule = policy->rule;
		if (policy->action == POLICY_OWN_KEYS)
			key.context = policy->rule;
	}
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
