// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The last door: whatever leaves by the uplink for a pod or a node of the cluster, is not our ESP and
 * not exempt, is a leak, and stops here.  It trusts nothing that happened before.
 *
 * It stands twice: backstop is attached in another way than to_net, behind it.  A packet that bears
 * the seal of this life of the datapath has been looked at; one without finds to_net gone.
 */
#pragma once
#include "border.h"
#include "verdict.h"

/* Outer headers as tunnel.h writes them: DF always, ECN as in the normal mode of RFC 6040 §4.1. The
 * kernel copies DF from the inner packet and hides congestion that was marked before (RFC 3168).
 */
static __always_inline int xfrm_finish_ipv4(struct __sk_buff *skb, const struct packet *p, __u8 tos)
{
	__u16 words[4]; /* version and TOS, length, id, fragment */
	__u16 old_tos, old_frag;

	if (bpf_skb_load_bytes(skb, p->start, words, sizeof(words)))
		return DROP_MALFORMED;
	old_tos = words[0];
	old_frag = words[3];
	words[0] = (old_tos & 0x00ff) | (__u16)tos << 8;
	words[3] = old_frag | swap16(0x4000);
	if (words[0] == old_tos && words[3] == old_frag)
		return REASON_NONE;
	if (bpf_l3_csum_replace(skb, p->start + 10, old_tos, words[0], 2) ||
	    bpf_l3_csum_replace(skb, p->start + 10, old_frag, words[3], 2) ||
	    bpf_skb_store_bytes(skb, p->start, words, sizeof(words), 0))
		return DROP_MALFORMED;
	return REASON_NONE;
}

static __always_inline int xfrm_finish_ipv6(struct __sk_buff *skb, const struct packet *p, __u8 tos)
{
	__u8 head[2];

	if (tos == p->tos)
		return REASON_NONE;
	if (bpf_skb_load_bytes(skb, p->start, head, sizeof(head)))
		return DROP_MALFORMED;
	head[1] = (head[1] & 0x0f) | tos << 4;
	return bpf_skb_store_bytes(skb, p->start, head, sizeof(head), 0) ? DROP_MALFORMED :
									   REASON_NONE;
}

/* A shared state sends to a placeholder (encryption/states.py); the peer is whom the slot names. */
static __always_inline int xfrm_readdress(struct __sk_buff *skb, const struct packet *p)
{
	struct ethhdr eth = { .h_proto = p->ethertype }; /* bpf_redirect_neigh takes no multicast */
	struct addr *sharer = sharer_find(skb);
	struct addr outer;

	if (p->start != ETH_HLEN)
		return DROP_MALFORMED; /* it would leave by another device than this */
	if (!sharer)
		return DROP_UNKNOWN_SLOT;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return DROP_MALFORMED;
	outer = *sharer;
	if (addr_is_ipv4(&outer) != (p->ethertype == swap16(ETH_P_IP)))
		return DROP_UNKNOWN_SLOT;
	if (!addr_is_ipv4(&outer))
		return bpf_skb_store_bytes(skb, p->start + __builtin_offsetof(struct ipv6hdr, daddr), &outer,
					   sizeof(outer), 0) ? DROP_MALFORMED : REASON_NONE;
	if (bpf_l3_csum_replace(skb, p->start + __builtin_offsetof(struct iphdr, check),
				p->destination.words[3], outer.words[3], sizeof(__be32)) ||
	    bpf_skb_store_bytes(skb, p->start + __builtin_offsetof(struct iphdr, daddr), &outer.words[3],
				sizeof(__be32), 0))
		return DROP_MALFORMED;
	return REASON_NONE;
}

/* ESP of the kernel's IPsec, which bears the mark of the SA still. */
static __always_inline int xfrm_finish(struct __sk_buff *skb, const struct packet *p)
{
	__u8 tos = (p->tos & ~MARK_ECN) | (skb->mark & MARK_ECN);
	int reason;

	if (p->is_fragment)
		return DROP_TOO_BIG; /* the peer would refuse it */
	if (skb->gso_size)
		return DROP_SEAL_FAILED; /* cut while it is encrypted, segments may share a nonce */
	if (p->ethertype == swap16(ETH_P_IP))
		reason = xfrm_finish_ipv4(skb, p, tos);
	else
		reason = xfrm_finish_ipv6(skb, p, tos);
	if (!reason && skb->mark & MARK_SHARED) {
		reason = xfrm_readdress(skb, p);
		skb->mark = MARK_OUT;
	} else {
		skb->mark = 0;
	}
	return reason;
}

/* The door's mark says that it has reported this already. */
static __always_inline int to_net_clear(struct __sk_buff *skb, struct scratch *s)
{
	const struct packet *p = &s->packet;
	int reason = border_judge(s, &p->destination, &p->source, DROP_CLEAR_TO_CLUSTER);
	int is_known = skb->mark == MARK_OUT;

	if (is_known)
		skb->mark = 0;
	if (is_known && (reason == CLEAR_EXEMPT || config.monitor))
		return REASON_NONE;
	return reason;
}

static __always_inline int to_net_judge(struct __sk_buff *skb, struct scratch *s)
{
	if (!is_own_esp(&s->packet))
		return to_net_clear(skb, s);
	if ((skb->mark & MARK_MASK) != MARK_OUT)
		return REASON_NONE; /* somebody else's */
	if (skb->mark != MARK_OUT)
		return xfrm_finish(skb, &s->packet);
	skb->mark = 0;
	return REASON_NONE;
}

static __always_inline int last_door(struct __sk_buff *skb)
{
	struct scratch *s;
	int reason;

	if (!config.encrypt) /* from_pod has reported what it let pass */
		return TC_ACT_OK;
	s = scratch_begin();
	if (!s)
		return TC_ACT_SHOT;
	reason = packet_parse(skb, &s->packet, 1);
	if (reason == DROP_NOT_IP)
		return TC_ACT_OK;
	if (!reason)
		reason = to_net_judge(skb, s);
	if (reason && is_overlay(&s->packet) && addr_is_node(&s->packet.destination))
		overlay_enter(skb, s); /* it is reported under the pods' names */
	if (reason)
		return verdict(skb, HOOK_TO_NET, reason);
	if (skb->mark == MARK_OUT) /* readdressed: by another route, to another neighbour */
		return bpf_redirect_neigh(config.uplink_ifindex, 0, 0, 0);
	return TC_ACT_OK;
}

SEC("tc")
int to_net(struct __sk_buff *skb)
{
	int action = last_door(skb);

	if (action != TC_ACT_OK)
		return action;
	skb->cb[0] = config.seal;
	skb->cb[1] = config.seal >> 32;
	return TC_ACT_UNSPEC; /* whoever is attached behind it is asked, too */
}

SEC("tc")
int backstop(struct __sk_buff *skb)
{
	if (skb->cb[0] == (__u32)config.seal && skb->cb[1] == (__u32)(config.seal >> 32)) {
		skb->cb[0] = 0;
		return TC_ACT_OK;
	}
	return last_door(skb);
}
