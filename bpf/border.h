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

/* A node, known or not. */
static __always_inline int addr_is_node(const struct addr *addr)
{
	struct cidr_row *cidr;
	struct peer *peer;

	if (addr_is_self(addr))
		return 1;
	peer = peer_find(addr);
	if (peer)
		return (peer->flags & PEER_NODE) != 0;
	cidr = cluster_find(addr);
	return cidr && cidr->flags & CIDR_NODE;
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

/* The same, but for what policies let pass. */
static __always_inline int border_members(struct scratch *s, const struct addr *there,
					  const struct addr *here, int drop)
{
	if (!addr_is_node(there))
		return peer_find(there) || cluster_has(there) || is_cluster_lost(there) ?
			       drop :
			       REASON_NONE;
	if (addr_is_node(here))
		return border_between_nodes(s, drop);
	return cluster_has(here) || peer_find(here) ? drop : REASON_NONE;
}

/* What becomes of cleartext between `there`, beyond the uplink, and `here`: `drop` if a pod or a node
 * is there, and this node or its pod here, and no policy lets it pass.  REASON_NONE: it is nobody's
 * business.
 */
static __always_inline int border_judge(struct scratch *s, const struct addr *there,
					const struct addr *here, int drop)
{
	int reason = border_members(s, there, here, drop);
	const struct packet *p = &s->packet;

	if (reason != drop || is_overlay(p))
		return reason;
	if (is_exempt(s, policy_find(p, group_of(there), group_of(here)),
		      addr_is_node(there) && addr_is_node(here)))
		return CLEAR_EXEMPT;
	return drop;
}
