// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The only exit: every packet that ends here or passes a border is counted by reason, and its flow
 * reported: at once when it is new, then at most every config.flow_interval_ms.  Rows count from
 * the flow's first packet, so an event that finds the ring buffer full loses no count.
 */
#pragma once
#include "peer.h"

/* Anybody on the wire can cause these, as many as he likes. */
static __always_inline int event_is_cheap(__u32 kind)
{
	return kind == EVENT_FLOW || kind == EVENT_PMTU;
}

/* Room for an event, all zero but for its kind; a full ring buffer is counted.  The last of it is
 * for what peers have authenticated: keys are agreed on under any flood.
 */
static __always_inline struct event *event_reserve(__u32 kind)
{
	struct event *event = 0;
	__u32 zero = 0;
	__u64 *lost;

	if (!event_is_cheap(kind) || bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < EVENTS_CHEAP)
		event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (event) {
		__builtin_memset(event, 0, sizeof(*event));
		event->kind = kind;
		return event;
	}
	lost = bpf_map_lookup_elem(&lost_events, &zero);
	if (lost)
		*lost += 1;
	return 0;
}

/* What peers have authenticated wakes the agent.  For the rest it looks by itself, ten times a second,
 * and is woken when much is waiting, by a few events about there: each time takes ten times as long as
 * all else that is done for a new flow.
 */
static __always_inline void event_submit(struct event *event)
{
	__u64 waiting, flags = BPF_RB_FORCE_WAKEUP;

	if (event_is_cheap(event->kind)) {
		waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
		if (waiting - EVENTS_WAITING >= 8 * sizeof(*event))
			flags = BPF_RB_NO_WAKEUP;
	}
	bpf_ringbuf_submit(event, flags);
}

static __always_inline void flow_emit(const struct flow_key *key, const struct flow_row *row)
{
	struct event *event = event_reserve(EVENT_FLOW);

	if (!event)
		return;
	event->key = *key;
	event->row = *row;
	event_submit(event);
}

/* Identities may change while a flow lasts: they are looked up for each report. */
static __always_inline void flow_name(struct flow_row *row, const struct scratch *s)
{
	row->source_identity = peer_identity(&s->flow.source);
	row->destination_identity = peer_identity(&s->flow.destination);
	row->pair = s->pair;
	row->spi = s->spi;
	row->epoch = s->epoch;
	row->engine = s->engine;
	row->rule = s->rule;
}

static __always_inline int flow_begin(struct scratch *s, __u64 now)
{
	s->row.first = now;
	s->row.last = now;
	s->row.reported = now;
	flow_name(&s->row, s);
	if (bpf_map_update_elem(&flows, &s->flow, &s->row, BPF_NOEXIST))
		return -1;
	flow_emit(&s->flow, &s->row);
	return 0;
}

static __always_inline void flow_continue(struct scratch *s, struct flow_row *row, __u64 now)
{
	__u64 reported = row->reported;

	__sync_fetch_and_add(&row->packets, s->row.packets);
	__sync_fetch_and_add(&row->bytes, s->row.bytes);
	row->last = now;
	if (now - reported < config.flow_interval_ms * 1000000ULL || now < reported)
		return;
	if (!__sync_bool_compare_and_swap(&row->reported, reported, now))
		return; /* another core reports it */
	flow_name(row, s);
	flow_emit(&s->flow, row);
}

/* Wants s->flow, and packets and bytes in s->row. */
static __always_inline void flow_report(struct scratch *s)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct flow_row *row = bpf_map_lookup_elem(&flows, &s->flow);

	if (!row && flow_begin(s, now))
		row = bpf_map_lookup_elem(&flows, &s->flow); /* another core began it meanwhile */
	if (row)
		flow_continue(s, row, now);
}

/* Would monitor mode let this pass: was it dropped for being clear, and for nothing else? */
static __always_inline int may_let_through(__u32 reason)
{
	if (!config.monitor)
		return 0;
	switch (reason) {
	case DROP_UNKNOWN_PEER:
	case DROP_NO_KEY:
	case DROP_SA_EXPIRED:
	case DROP_TOO_BIG:
	case DROP_CLEAR_FROM_CLUSTER:
	case DROP_CLEAR_TO_CLUSTER:
		return 1;
	}
	return 0;
}

static __always_inline void count_packet(__u32 reason, __u64 packets, __u64 bytes)
{
	struct count *count = bpf_map_lookup_elem(&counts, &reason);

	if (!count)
		return;
	count->packets += packets;
	count->bytes += bytes;
}

/* Of all the IP packets that one skb stands for: each segment gets the headers anew. */
static __always_inline __u64 packet_bytes(struct __sk_buff *skb, const struct packet *p)
{
	__u32 segments = skb->gso_segs, headers = p->payload - p->start;
	__u8 offset;

	if (!p->len)
		return skb->len;
	if (segments <= 1)
		return p->len;
	if (p->protocol == IPPROTO_UDP)
		headers += 8;
	else if (p->protocol == IPPROTO_TCP &&
		 !bpf_skb_load_bytes(skb, p->payload + 12, &offset, sizeof(offset)))
		headers += (offset >> 4) * 4;
	return p->len + (segments - 1) * headers;
}

/* What the packet in scratch comes to at this hook: TC_ACT_SHOT for the drops that monitor mode does
 * not let through, else TC_ACT_OK.  It finds scratch itself: only so may verifiers before Linux 6.3 see a map's key in it.
 */
__noinline int verdict(struct __sk_buff *skb, __u32 hook, __u32 reason)
{
	struct scratch *s = scratch_find();
	const struct packet *p;
	__u32 audited;

	if (!s)
		return TC_ACT_SHOT;
	p = &s->packet;
	audited = may_let_through(reason) && !(hook == HOOK_TO_NET && reason == DROP_TOO_BIG);
	s->row.packets = skb->gso_segs > 1 ? skb->gso_segs : 1;
	s->row.bytes = packet_bytes(skb, p);
	count_packet(audited ? reason + REASON_COUNT : reason, s->row.packets, s->row.bytes);
	s->flow.source = p->source;
	s->flow.destination = p->destination;
	s->flow.source_port = p->source_port;
	s->flow.destination_port = p->destination_port;
	s->flow.protocol = p->protocol;
	s->flow.hook = hook;
	s->flow.reason = reason;
	s->flow.audited = audited;
	flow_report(s);
	return reason >= DROP_FIRST && !audited ? TC_ACT_SHOT : TC_ACT_OK;
}

/* Past the door, by ordinary routes: without the mark, the route to the peer would lead there again. */
static __always_inline int let_out(struct __sk_buff *skb)
{
	skb->mark = MARK_OUT;
	return bpf_redirect_neigh(config.uplink_ifindex, 0, 0, 0);
}

/* The verdict at a door's device, from where what is the link's goes no further. */
static __always_inline int verdict_at_door(struct __sk_buff *skb, __u32 reason)
{
	int action = verdict(skb, HOOK_DOOR, reason);

	return action != TC_ACT_OK || reason == CLEAR_LINK ? TC_ACT_SHOT : let_out(skb);
}
