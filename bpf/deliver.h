// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* An opened packet goes on: to a pod of this node, or to the node itself, if its source is one that
 * belongs to the node whose keys it bore.
 */
#pragma once
#include "overlay.h"
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

/* It crosses this node as through a router: on the way to a pod the TTL sinks. */
static __always_inline int deliver_rewrite(struct __sk_buff *skb, struct scratch *s, __u8 tos)
{
	struct packet *p = &s->packet;

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

/* An overlay packet for this node: what is in it must be from an address of the node that sent it, under
 * the identity that it has there, and for somebody here.  The overlay's device then takes it.
 */
static __always_inline int deliver_overlay(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	int reason = overlay_enter(skb, s);
	struct peer *peer;

	if (reason)
		return reason;
	peer = peer_find(&p->source);
	if (!peer || !addr_equal(&peer->node, &s->node))
		return DROP_SPOOFED_SOURCE;
	if (s->vni != (peer->flags & PEER_NODE ? IDENTITY_REMOTE_NODE : peer->identity))
		return DROP_WRONG_IDENTITY;
	reason = deliver_find(s);
	if (reason)
		return reason;
	if (s->ifindex && p->ttl <= 1)
		return DROP_TTL_EXCEEDED;
	s->ifindex = 0;
	return OPENED;
}

/* The inner source must be an address of the node whose keys the packet bore. */
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
	if (s->ifindex && config.overlay_port)
		return DROP_WRONG_ROUTING;
	tos = ecn_decapsulate(outer_tos, p->tos);
	if (tos < 0)
		return DROP_CONGESTED_ECN;
	reason = deliver_rewrite(skb, s, tos);
	if (reason != OPENED || s->ifindex || !is_overlay(p))
		return reason;
	return peer->flags & PEER_NODE ? deliver_overlay(skb, s) : DROP_FORGED_OVERLAY;
}
