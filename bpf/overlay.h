// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The overlay packet, in which a device of the kernel's brings pods' packets from node to node:
 *
 *     +------------------+---------------+-------+---+-----+---+----------+---------------+
 *     | IP, node to node | UDP 4789/6081 | first | … | VNI | 0 | Ethernet | a pod's packet |
 *     +------------------+---------------+-------+---+-----+---+----------+---------------+
 *
 * VXLAN (RFC 7348 §5) and Geneve without options (RFC 8926 §3.4) differ in the first four bytes of
 * eight.  The VNI is the identity of who sent the pod's packet.
 */
#pragma once
#include "packet.h"

#define UDP_HLEN 8

struct overlay {
	__u8 first;
	__u8 rest[3];
	__be32 vni; /* and a byte of zero */
};

/* By its port; whose it really is, others must know. */
static __always_inline int is_overlay(const struct packet *p)
{
	return config.overlay_port && p->protocol == IPPROTO_UDP && !p->is_fragment &&
	       p->destination_port == config.overlay_port;
}

/* From here on the packet in scratch is the one inside. */
static __always_inline int overlay_enter(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	__u32 at = p->payload + UDP_HLEN;
	struct overlay head;
	int reason;

	if (packet_load(skb, p, at, &head, sizeof(head)) || head.first != config.overlay_first)
		return DROP_MALFORMED;
	at += sizeof(head);
	s->vni = swap32(head.vni) >> 8;
	s->is_overlay = 1;
	reason = packet_parse_at(skb, p, at, 1);
	if (!reason && p->start != at + ETH_HLEN)
		return DROP_NOT_IP; /* tagged: no pod is on a VLAN */
	return reason;
}
