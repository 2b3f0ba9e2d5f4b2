// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* An opened packet goes on: to a pod of this node, or to the node itself, if its source is one that
 * belongs to the node whose keys it bore.
 */
#pragma once
#include "tunnel.h"
#include "verdict.h"

/* Where the opened packet goes: s->ifindex and the frame's addresses. */
static __always_inline int deliver_find(struct scratch *s)
{
	const struct packet *p = &s->packet;
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, &p->destination);
	struct ethhdr *eth = (void *)&s->ccp.head[CCP_HEAD - ETH_HLEN];
	struct peer *peer;

	s->ifindex = 0;
	if (endpoint) {
		__builtin_memcpy(eth->h_dest, endpoint->pod_mac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, endpoint->host_mac, ETH_ALEN);
		s->ifindex = endpoint->ifindex;
		return REASON_NONE;
	}
	peer = peer_find(&p->destination);
	if (!peer || !(peer->flags & PEER_LOCAL) || !(peer->flags & PEER_NODE))
		return DROP_NO_ENDPOINT;
	return REASON_NONE;
}

/* The inner source must be an address of the node whose keys the packet bore; then it crosses this
 * node as through a router: the outer ECN is taken over, and on the way to a pod the TTL sinks.
 */
static __always_inline int deliver(struct __sk_buff *skb, struct scratch *s, __u8 outer_tos)
{
	struct packet *p = &s->packet;
	struct peer *peer = peer_find(&p->source);
	int tos, reason;

	if (!peer || !addr_equal(&peer->node, &s->node))
		return DROP_SPOOFED_SOURCE;
	reason = deliver_find(s);
	if (reason)
		return reason;
	tos = ecn_decapsulate(outer_tos, p->tos);
	if (tos < 0)
		return DROP_CONGESTED_ECN;
	if (s->ifindex) {
		if (p->ttl <= 1)
			return DROP_TTL_EXCEEDED;
		p->ttl--;
		if (bpf_skb_store_bytes(skb, 0, &s->ccp.head[CCP_HEAD - ETH_HLEN], 2 * ETH_ALEN,
					BPF_F_INVALIDATE_HASH))
			return DROP_ESP_MALFORMED;
	}
	if (tunnel_rewrite(skb, &s->ccp, p->ethertype == swap16(ETH_P_IP), tos, p->ttl))
		return DROP_ESP_MALFORMED;
	return OPENED;
}
