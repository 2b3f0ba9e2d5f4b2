// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* At the overlay's device, on the way out: which node holds the destination.  The kernel puts the
 * overlay packet around it and sends that to the node; there is no key to it here, the door has them.
 */
#pragma once
#include "border.h"
#include "verdict.h"

#define OVERLAY_TTL 64

/* As others know the sender: every node is a remote one there. */
static __always_inline __u32 overlay_identity(const struct addr *source)
{
	struct peer *peer = peer_find(source);

	if (!peer)
		return 0;
	return peer->flags & PEER_NODE ? IDENTITY_REMOTE_NODE : peer->identity;
}

/* DF, because the route's MTU is exact; a checksum only where IP itself has none. */
static __always_inline int overlay_address(struct __sk_buff *skb, const struct packet *p,
					   const struct addr *outer)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = overlay_identity(&p->source),
		.tunnel_tos = p->tos,
		.tunnel_ttl = OVERLAY_TTL,
	};
	__u64 flags = BPF_F_DONT_FRAGMENT;
	struct addr own;

	if (addr_is_ipv4(outer)) {
		flags |= BPF_F_ZERO_CSUM_TX;
		key.remote_ipv4 = swap32(outer->words[3]);
		key.local_ipv4 = swap32(config.self4.words[3]);
	} else {
		flags |= BPF_F_TUNINFO_IPV6;
		__builtin_memcpy(key.remote_ipv6, outer, sizeof(key.remote_ipv6));
		own = config.self6;
		__builtin_memcpy(key.local_ipv6, &own, sizeof(key.local_ipv6));
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

static __always_inline int to_overlay_judge(struct __sk_buff *skb, const struct packet *p)
{
	const __u8 nobody[ETH_ALEN] = {};
	struct remote *remote;
	struct peer *peer;

	if (addr_is_link(&p->destination))
		return CLEAR_LINK; /* and goes no further */
	peer = peer_find(&p->destination);
	if (!peer || peer->flags & PEER_LOCAL)
		return DROP_UNKNOWN_PEER;
	remote = bpf_map_lookup_elem(&remotes, &peer->node);
	if (!remote)
		return DROP_UNKNOWN_PEER;
	/* the peer's device has the same address as this one, and takes no frame from that */
	if (overlay_address(skb, p, &remote->outer) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, nobody, ETH_ALEN, 0))
		return DROP_SEAL_FAILED;
	skb->mark = config.encrypt ? MARK_ENCRYPT : 0; /* the overlay packet inherits it */
	return REASON_NONE;
}

/* REASON_NONE: the door reports it. */
SEC("tc")
int to_overlay(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	reason = packet_parse_own(skb, &s->packet);
	if (!reason)
		reason = to_overlay_judge(skb, &s->packet);
	return reason ? verdict_at_door(skb, reason) : TC_ACT_OK;
}
