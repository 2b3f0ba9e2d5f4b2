// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* A router on the way says that our ESP to a node was too big: the agent is told, and judges.  The
 * stack is not: the kernel's IPsec would cut ESP to fit, which peers refuse, long after the route has
 * the right MTU again.
 */
#pragma once
#include "verdict.h"

static __always_inline int pmtu_event(struct scratch *s, __u32 mtu, const struct addr *source,
				      const struct addr *destination, __be32 spi)
{
	struct peer *peer = peer_find(destination);
	struct event *event;

	if (!addr_is_self(source) || !peer || !(peer->flags & PEER_NODE) || is_of_others(destination, spi))
		return REASON_NONE;
	event = event_reserve(EVENT_PMTU);
	if (!event)
		return PATH_MTU_RECEIVED;
	event->number = mtu;
	event->key.source = *source;
	event->key.destination = *destination;
	event->key.protocol = IPPROTO_ESP;
	event->key.hook = HOOK_FROM_NET;
	event_submit(event);
	return PATH_MTU_RECEIVED;
}

struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 check;
	union {
		__be32 mtu; /* ICMPv6 packet too big, RFC 4443 §3.2 */
		struct {
			__be16 unused;
			__be16 mtu4; /* fragmentation needed, RFC 1191 §4 */
		};
	};
};

static __always_inline int pmtu_ipv4(struct __sk_buff *skb, struct scratch *s)
{
	struct {
		struct icmp_error icmp;
		struct iphdr quoted; /* RFC 792: and at least 8 bytes more */
		__be32 spi;
	} *error = (void *)s->ccp.data;
	struct packet *p = &s->packet;
	struct addr source, destination;

	if (packet_load(skb, p, p->payload, error, sizeof(*error)) || error->icmp.type != 3 ||
	    error->icmp.code != 4 || error->quoted.version != 4 ||
	    error->quoted.protocol != IPPROTO_ESP)
		return REASON_NONE;
	set_ipv4(&source, error->quoted.saddr);
	set_ipv4(&destination, error->quoted.daddr);
	return pmtu_event(s, swap16(error->icmp.mtu4), &source, &destination, error->spi);
}

static __always_inline int pmtu_ipv6(struct __sk_buff *skb, struct scratch *s)
{
	struct {
		struct icmp_error icmp;
		struct ipv6hdr quoted;
		__be32 spi;
	} *error = (void *)s->ccp.data;
	struct packet *p = &s->packet;

	if (packet_load(skb, p, p->payload, error, sizeof(*error)) || error->icmp.type != 2 ||
	    error->quoted.version != 6 || error->quoted.nexthdr != IPPROTO_ESP)
		return REASON_NONE;
	return pmtu_event(s, swap32(error->icmp.mtu), (struct addr *)&error->quoted.saddr,
			  (struct addr *)&error->quoted.daddr, error->spi);
}
