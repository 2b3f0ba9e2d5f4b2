// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The last door: whatever leaves by the uplink for a pod, or from a pod for a node, and is not our
 * ESP, is a leak, and stops here.  It trusts nothing that happened before.
 */
#pragma once
#include "verdict.h"

/* Sealed here: between nodes, so never for a pod. */
static __always_inline int is_own_esp(const struct packet *p)
{
	struct peer *peer;

	if (p->protocol != IPPROTO_ESP || !addr_is_self(&p->source))
		return 0;
	peer = peer_find(&p->destination);
	return !peer || peer->flags & PEER_NODE;
}

SEC("tc")
int to_net(struct __sk_buff *skb)
{
	struct scratch *s;
	int reason;

	if (!config.encrypt) /* from_pod has reported what it let pass */
		return TC_ACT_OK;
	s = scratch_begin();
	if (!s)
		return TC_ACT_SHOT;
	reason = packet_parse(skb, &s->packet);
	if (reason == DROP_NOT_IP)
		return TC_ACT_OK;
	if (!reason) {
		if (is_own_esp(&s->packet) ||
		    !peer_must_be_encrypted(&s->packet.destination, &s->packet.source))
			return TC_ACT_OK;
		reason = DROP_CLEAR_TO_CLUSTER;
	}
	return verdict(skb, HOOK_TO_NET, reason);
}
