// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The door: whatever the stack routes to its devices is sealed for the node that holds its
 * destination and leaves by the uplink, or is dropped.  Nothing passes but what is exempt, and in
 * monitor mode what cannot be sealed: that goes by ordinary routes.
 *
 *     stack ─▶ pellicle_host ═ pellicle_net ─▶ door: the bpf engine seals it
 *     stack ─▶ pellicle_xfrm: door_xfrm chooses the SA, by a mark; the kernel's IPsec encrypts
 *
 * At pellicle_net they come as they would go on a wire: segmented, checksummed, at most as long as
 * the route's MTU says.  At pellicle_xfrm the kernel does that between door_xfrm and its IPsec, since
 * the device has no offloads; the segments inherit the mark, and to_net sees to it.  Routes lead to
 * the door of the engine whose pair is in use; on a pair of the bpf engine that door_xfrm meets
 * meanwhile, packets go over to the other door.
 */
#pragma once
#include "border.h"
#include "tunnel.h"
#include "verdict.h"

/* --- which SA --------------------------------------------------------------------------------- */

/* What came is what is sealed, whatever is in it. */
static __always_inline void door_keep(struct scratch *s)
{
	s->len = s->packet.len;
	s->ethertype = s->packet.ethertype;
}

/* An overlay packet is judged by what a pod says in it.  Only the overlay's device may send such to a
 * node: to_overlay has marked it, which no ordinary process can.
 */
static __always_inline int door_enter(struct __sk_buff *skb, struct scratch *s)
{
	const struct packet *p = &s->packet;

	if (!is_overlay(p) || !addr_is_node(&p->destination))
		return REASON_NONE;
	if (skb->mark != MARK_ENCRYPT || !addr_is_self(&p->source))
		return DROP_FORGED_OVERLAY;
	return overlay_enter(skb, s);
}

/* The agent's own: nobody else may send from this node's address (from_pod sees to it). */
static __always_inline int is_own_probe(const struct scratch *s)
{
	const struct packet *p = &s->packet;

	return p->protocol == PROBE_PROTOCOL && addr_is_self(&p->source) && !s->is_overlay;
}

/* A probe names its SA itself: it asks whether the peer has keys that nothing else uses yet. */
static __always_inline int door_probe(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct probe probe;

	if (packet_load(skb, p, p->payload, &probe, sizeof(probe)))
		return DROP_MALFORMED;
	s->pair = swap64(probe.pair);
	s->number = swap32(probe.number);
	return REASON_NONE;
}

/* s->pair and s->number for the packet; else why it goes nowhere. */
static __always_inline int door_choose(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct encrypt_row *row;
	struct policy *policy;
	struct peer *peer;
	int reason = door_enter(skb, s), is_between_nodes;

	if (reason)
		return reason;
	if (addr_is_link(&p->destination))
		return CLEAR_LINK; /* and goes no further */
	peer = peer_find(&p->destination);
	if (!peer || peer->flags & PEER_LOCAL)
		return DROP_UNKNOWN_PEER;
	if (is_own_probe(s))
		return door_probe(skb, s);
	is_between_nodes = peer->flags & PEER_NODE && addr_is_node(&p->source) && !s->is_overlay;
	if (is_between_nodes) {
		s->rule = exempt_find(p);
		if (s->rule)
			return CLEAR_EXEMPT;
	}
	policy = policy_find(p, group_of(&p->source), peer->group);
	if (is_exempt(s, policy, is_between_nodes))
		return CLEAR_EXEMPT;
	row = encrypt_find(s, policy, &peer->node);
	if (!row)
		return DROP_NO_KEY;
	s->pair = row->pair;
	/* without the overlay, the kernel's policies know a node's own addresses for one SA only */
	if (row->engine != ENGINE_XFRM || !(peer->flags & PEER_NODE) || config.overlay_port)
		s->number = p->hash & row->sa_mask;
	return REASON_NONE;
}

/* The SA that s->pair and s->number name, and what the report will say of it. */
static __always_inline struct sa_out *door_sa(struct scratch *s)
{
	struct sa_out *sa = sa_out_find(s->pair, s->number);

	if (sa) {
		s->spi = sa->spi;
		s->epoch = sa->local_epoch;
		s->engine = sa->engine;
	}
	return sa;
}

static __always_inline int door_done(const struct scratch *s)
{
	return is_own_probe(s) ? PROBE_SENT : SEALED;
}

/* --- the bpf engine --------------------------------------------------------------------------- */

static __always_inline int door_seal(struct __sk_buff *skb, struct scratch *s)
{
	int reason = door_choose(skb, s);
	__u32 len, next_header;
	struct sa_out *sa;

	if (reason)
		return reason;
	len = s->len;
	sa = door_sa(s);
	if (!sa)
		return DROP_NO_KEY;
	if (sa->engine != ENGINE_BPF)
		return DROP_WRONG_DOOR;
	if (len > ESP_LONGEST)
		return DROP_TOO_BIG;
	if (skb->gso_size || bpf_skb_load_bytes(skb, ETH_HLEN, s->ccp.data, bounded(len, CCP_MAX)))
		return DROP_SEAL_FAILED;
	next_header = s->ethertype == swap16(ETH_P_IP) ? IPPROTO_IPIP : IPPROTO_IPV6;
	reason = tunnel_seal(skb, s, sa, len, next_header);
	if (reason)
		return reason;
	__sync_fetch_and_add(&sa->packets, 1);
	__sync_fetch_and_add(&sa->bytes, len);
	return door_done(s);
}

SEC("tc")
int door(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	reason = packet_parse_own(skb, &s->packet);
	door_keep(s);
	if (!reason && is_own_esp(&s->packet))
		return let_out(skb); /* another's tunnel; as at to_net, nobody's business */
	if (!reason)
		reason = door_seal(skb, s);
	return verdict_at_door(skb, reason);
}

/* --- the kernel's IPsec ----------------------------------------------------------------------- */

/* The ifindex of pellicle_host, for which the packet gets an Ethernet header: this device has none,
 * and bpf_redirect_neigh would drop it.  The addresses are nobody's: door takes every frame.  0: there
 * is no such device.
 */
static __always_inline __u32 door_hand_over(struct __sk_buff *skb, const struct scratch *s)
{
	struct ethhdr eth = { .h_proto = s->ethertype };
	struct doors *there;
	__u32 zero = 0;

	there = bpf_map_lookup_elem(&doors, &zero);
	if (!there || !there->host)
		return 0;
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) ||
	    bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return 0;
	return there->host;
}

/* What a shared state counts is everybody's. */
static __always_inline void door_count(struct __sk_buff *skb, const struct packet *p,
				       struct sa_out *sa)
{
	if (!(sa->mark & MARK_SHARED))
		return;
	__sync_fetch_and_add(&sa->packets, skb->gso_segs > 1 ? skb->gso_segs : 1);
	__sync_fetch_and_add(&sa->bytes, packet_bytes(skb, p));
}

/* Whatever the kernel then refuses it counts by itself: /proc/net/xfrm_stat. */
SEC("tc")
int door_xfrm(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	struct sa_out *sa = 0;
	struct packet *p;
	int reason, is_others;
	__u32 host;

	if (!s)
		return TC_ACT_SHOT;
	p = &s->packet;
	reason = packet_parse(skb, p, 0);
	door_keep(s);
	is_others = !reason && is_own_esp(p);
	if (!reason && !is_others)
		reason = door_choose(skb, s);
	if (!reason && !is_others) {
		sa = door_sa(s);
		if (!sa)
			reason = DROP_NO_KEY;
	}
	if (is_others || (sa && sa->engine == ENGINE_BPF) || reason == CLEAR_EXEMPT ||
	    may_let_through(reason)) {
		host = door_hand_over(skb, s);
		if (host)
			return bpf_redirect(host, 0); /* door judges it, and counts */
		sa = 0;
		reason = DROP_WRONG_DOOR;
	}
	if (sa) {
		skb->mark = sa->mark | (p->tos & MARK_ECN);
		door_count(skb, p, sa);
		reason = door_done(s);
	}
	verdict(skb, HOOK_DOOR, reason);
	return reason == SEALED || reason == PROBE_SENT ? TC_ACT_OK : TC_ACT_SHOT;
}
