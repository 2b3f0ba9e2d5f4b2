// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* What an authenticated packet says of the SA that it came by: that the peer has its keys; and, if
 * it is a probe, what the peer's agent asks or answers.  The agent is told, and concludes.
 */
#pragma once
#include "verdict.h"

static __always_inline void sa_event(struct scratch *s, __u32 kind, __u32 probe)
{
	struct event *event = event_reserve(kind);

	if (!event)
		return;
	event->number = s->number;
	event->pair = s->pair;
	event->probe = probe;
	event_submit(event);
}

/* For the report, and for whom the inner source must belong to. */
static __always_inline void sa_name(struct scratch *s, const struct sa_in *sa)
{
	s->pair = sa->pair;
	s->epoch = sa->peer_epoch;
	s->engine = sa->engine;
	s->number = sa->number;
	s->node = sa->node;
}

/* A packet has authenticated; the first one is news. */
static __always_inline void sa_confirm(struct scratch *s, struct sa_in *sa)
{
	if (!sa->first_seen &&
	    __sync_bool_compare_and_swap(&sa->first_seen, 0, bpf_ktime_get_boot_ns()))
		sa_event(s, EVENT_SA_CONFIRMED, 0);
}

/* From the node itself: a pod there may send what it likes, but not from its node's address. */
static __always_inline int is_probe(struct scratch *s)
{
	const struct packet *p = &s->packet;
	struct peer *peer;

	if (p->protocol != PROBE_PROTOCOL || !addr_is_self(&p->destination))
		return 0;
	peer = peer_find(&p->source);
	return peer && peer->flags & PEER_NODE && addr_equal(&peer->node, &s->node);
}

static __always_inline int probe_receive(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	struct probe probe = {};

	if (packet_load(skb, p, p->payload, &probe, sizeof(probe)))
		return DROP_MALFORMED;
	sa_event(s, EVENT_PROBE, swap32(probe.kind));
	return PROBE_RECEIVED;
}
