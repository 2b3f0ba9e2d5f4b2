// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Behind the host device: whatever the stack routes here is sealed for the node that holds its
 * destination and leaves by the uplink, or is dropped.  Nothing passes.
 *
 * Packets come as they would go on a wire: segmented, checksummed, at most as long as the route's
 * MTU says.  The agent's probes come as frames of an EtherType of their own.
 */
#pragma once
#include "link.h"
#include "tunnel.h"
#include "verdict.h"

/* Seals the len bytes in scratch with this SA; SEALED or PROBE_SENT, or why not. */
static __always_inline int door_seal(struct __sk_buff *skb, struct scratch *s, __u64 pair,
				     __u32 number, __u32 len, __u32 next_header)
{
	struct sa_out *sa = sa_out_find(pair, number);
	int reason;

	s->pair = pair;
	if (!sa)
		return DROP_NO_KEY;
	s->spi = sa->spi;
	s->epoch = sa->local_epoch;
	if (next_header == ESP_DUMMY) {
		s->packet.source = sa->source;
		s->packet.destination = sa->destination;
	}
	reason = tunnel_seal(skb, s, sa, len, next_header);
	if (reason)
		return reason;
	__sync_fetch_and_add(&sa->packets, 1);
	if (next_header == ESP_DUMMY)
		return PROBE_SENT;
	__sync_fetch_and_add(&sa->bytes, len);
	return SEALED;
}

static __always_inline int door_packet(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	__u32 len = p->len, next_header;
	struct encrypt_row *row;
	struct peer *peer;

	if (addr_is_link(&p->destination))
		return CLEAR_LINK;
	peer = peer_find(&p->destination);
	if (!peer || peer->flags & PEER_LOCAL)
		return DROP_UNKNOWN_PEER;
	row = encrypt_find(&peer->node);
	if (!row)
		return DROP_NO_KEY;
	if (len > ESP_LONGEST)
		return DROP_TOO_BIG;
	if (skb->gso_size || bpf_skb_load_bytes(skb, ETH_HLEN, s->ccp.data, bounded(len, CCP_MAX)))
		return DROP_SEAL_FAILED;
	next_header = p->ethertype == swap16(ETH_P_IP) ? IPPROTO_IPIP : IPPROTO_IPV6;
	return door_seal(skb, s, row->pair, p->hash & (SAS_PER_PAIR - 1), len, next_header);
}

/* The dummy's payload is the kind of probe, in network order: peers need not share a byte order. */
static __always_inline int door_probe(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct probe probe;
	int reason;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &probe, sizeof(probe)))
		return DROP_MALFORMED;
	p->protocol = IPPROTO_ESP;
	*(__be32 *)s->ccp.data = swap32(probe.kind);
	reason = door_seal(skb, s, probe.pair, probe.number, sizeof(probe.kind), ESP_DUMMY);
	p->len = skb->len - ETH_HLEN; /* as the peer will count it */
	return reason;
}

SEC("tc")
int door(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	struct packet *p;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	p = &s->packet;
	reason = packet_parse(skb, p);
	if (p->start != ETH_HLEN)
		reason = DROP_NOT_IP;
	else if (!reason)
		reason = door_packet(skb, s);
	else if (reason == DROP_NOT_IP && p->ethertype == swap16(PROBE_ETHERTYPE))
		reason = door_probe(skb, s);
	else if (reason == DROP_NOT_IP && p->ethertype == swap16(ETH_P_ARP))
		reason = CLEAR_LINK; /* and goes no further */
	verdict(skb, HOOK_DOOR, reason);
	if (reason != SEALED && reason != PROBE_SENT)
		return TC_ACT_SHOT;
	skb->mark = 0; /* or the route to the peer would lead here again */
	return bpf_redirect_neigh(config.uplink_ifindex, 0, 0, 0);
}
