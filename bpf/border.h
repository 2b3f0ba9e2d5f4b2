// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Cleartext at the uplink: who may say what to whom across it. */
#pragma once
#include "encrypt.h"
#include "link.h"
#include "overlay.h"

/* The rule by which nodes may say this to each other in the clear, or 0.  Of fragments only the first
 * has ports, so none is exempt by them.
 */
static __always_inline __u32 exempt_find(const struct packet *p)
{
	struct exempt_key key = { .protocol = p->protocol };
	struct exempt_row *row = bpf_map_lookup_elem(&exempt, &key);

	if (!row && has_ports(p) && !p->is_fragment) {
		key.port = p->destination_port;
		row = bpf_map_lookup_elem(&exempt, &key);
		if (!row) {
			key.port = p->source_port;
			row = bpf_map_lookup_elem(&exempt, &key);
		}
	}
	return row ? row->rule : 0;
}

/* Sealed here, by whomsoever: between nodes, so never for a pod. */
static __always_inline int is_own_esp(const struct packet *p)
{
	struct peer *peer;

	if (p->protocol != IPPROTO_ESP || !addr_is_self(&p->source))
		return 0;
	peer = peer_find(&p->destination);
	return !peer || peer->flags & PEER_NODE;
}

/* Neighbours must find each other before anything can be encrypted; and ESP, whosever it is, is. */
static __always_inline int border_between_nodes(struct scratch *s, int drop)
{
	if (is_overlay(&s->packet))
		return drop; /* a pod's packet is in it */
	if (!config.nodes || s->packet.protocol == IPPROTO_ESP ||
	    is_neighbour_discovery(&s->packet))
		return REASON_NONE;
	s->rule = exempt_find(&s->packet);
	return s->rule ? CLEAR_EXEMPT : drop;
}

static __always_inline int is_icmp_error(const struct packet *p)
{
	__u8 type = p->source_port; /* its first byte */

	if (p->protocol == IPPROTO_ICMP)
		return type == 3 || type == 11 || type == 12; /* RFC 792 */
	return p->protocol == IPPROTO_ICMPV6 && type >= 1 && type <= 4; /* RFC 4443 */
}

/* Routers stand among the nodes, and nobody could do without their word on a packet that they could
 * not forward.  It tells nothing of what is the cluster's.
 */
static __always_inline int is_routers_word(const struct packet *p)
{
	return is_icmp_error(p) && !peer_find(&p->source) && addr_is_node(&p->source);
}

/* This node's own addresses are always among the cluster's.  Where they are not, somebody has taken
 * the rows away, and then nobody is known for a stranger; only the link itself is.
 */
static __always_inline int is_cluster_lost(const struct addr *there)
{
	struct addr self = config.self4;

	if (addr_is_zero(&self))
		self = config.self6;
	return !addr_is_link(there) && !addr_is_zero(there) && !cluster_has(&self);
}

/* The same, between members, but for what policies let pass. */
static __always_inline int border_members(struct scratch *s, const struct member *there,
					  const struct member *here, int drop)
{
	if (!there->is_node)
		return drop;
	if (here->is_node)
		return border_between_nodes(s, drop);
	return here->is_known ? drop : REASON_NONE;
}

/* What becomes of cleartext between `there`, beyond the uplink, and `here`: `drop` if a pod or a node
 * is there, and this node or its pod here, and no policy lets it pass.  REASON_NONE: it is nobody's
 * business.
 */
static __always_inline int border_judge(struct scratch *s, const struct addr *there,
					const struct addr *here, int drop)
{
	struct member theirs = member_find(there), ours;
	const struct packet *p = &s->packet;
	int reason;

	if (!theirs.is_known && !theirs.is_node && !is_cluster_lost(there))
		return REASON_NONE;
	ours = member_find(here);
	reason = border_members(s, &theirs, &ours, drop);
	if (reason != drop || is_overlay(p))
		return reason;
	if (is_exempt(s, policy_find(p, theirs.group, ours.group), theirs.is_node && ours.is_node))
		return CLEAR_EXEMPT;
	return drop;
}
