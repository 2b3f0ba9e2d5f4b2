// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* At the overlay's device, on the way in: what from_net or from_xfrm has judged, and said so by a mark,
 * is freed of the overlay packet here and goes to its pod.  Nothing else comes out of it, wherever
 * it may have got in: another device, loopback, a pod.
 */
#pragma once
#include "deliver.h"

/* Reported under the names of those who sent the overlay packet: what is inside may say anything. */
static __always_inline int overlay_forged(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_tunnel_key key = {};

	__builtin_memset(p, 0, sizeof(*p));
	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		set_ipv4(&p->source, swap32(key.remote_ipv4));
		set_ipv4(&p->destination, swap32(key.local_ipv4));
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(&p->source, key.remote_ipv6, sizeof(p->source));
		__builtin_memcpy(&p->destination, key.local_ipv6, sizeof(p->destination));
	}
	p->protocol = IPPROTO_UDP;
	p->destination_port = config.overlay_port;
	return DROP_FORGED_OVERLAY;
}

static __always_inline int from_overlay_packet(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	int reason;

	if (skb->mark != MARK_OVERLAY)
		return overlay_forged(skb, p);
	skb->mark = 0;
	reason = packet_parse(skb, p, 1);
	if (reason)
		return reason;
	if (p->start != ETH_HLEN || skb->vlan_present)
		return DROP_NOT_IP;
	reason = deliver_find(s);
	if (reason)
		return reason;
	/* deliver_rewrite() rewrites the head of the header in scratch; ECN the kernel has seen to */
	if (bpf_skb_load_bytes(skb, ETH_HLEN, s->ccp.data, sizeof(struct iphdr)))
		return DROP_MALFORMED;
	return deliver_rewrite(skb, s, p->tos);
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	reason = from_overlay_packet(skb, s);
	if (reason != OPENED) {
		verdict(skb, HOOK_FROM_NET, reason);
		return TC_ACT_SHOT;
	}
	return s->ifindex ? bpf_redirect_peer(s->ifindex, 0) : TC_ACT_OK;
}
