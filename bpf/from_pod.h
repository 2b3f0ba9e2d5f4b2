// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* A pod sends.  Its address must be its own; then the destination decides: this node or the world
 * take it in the clear, another node's pod gets it through the door, to which the mark routes it.
 */
#pragma once
#include "encrypt.h"
#include "link.h"
#include "overlay.h"
#include "verdict.h"

static __always_inline int is_own_address(struct __sk_buff *skb, const struct addr *source)
{
	struct endpoint *endpoint = bpf_map_lookup_elem(&endpoints, source);

	return endpoint && endpoint->ifindex == skb->ifindex;
}

/* A piece of which headers hide what is in it may be one of ESP: RFC 7112 wants them all in the first. */
static __always_inline int may_be_esp(const struct packet *p)
{
	return p->protocol == IPPROTO_ESP || (p->is_fragment && is_extension(p->protocol));
}

/* No peer: a neighbour, the world, or a cluster address that may appear at any moment. */
static __always_inline int from_pod_unknown(struct scratch *s)
{
	struct packet *p = &s->packet;
	struct cidr_row *cidr = cluster_find(&p->destination);

	if (!cidr)
		return CLEAR_WORLD;
	if (is_neighbour_discovery(p))
		return CLEAR_LINK;
	if (is_exempt(s, policy_find(p, group_of(&p->source), cidr->group), 0))
		return CLEAR_EXEMPT;
	return DROP_UNKNOWN_PEER;
}

/* What has no key goes in the clear then, but in an overlay packet all the same: the door sees to both. */
static __always_inline int may_pass_in_overlay(void)
{
	return config.monitor && config.overlay_port;
}

/* REASON_NONE: the door takes it from here and reports it. */
static __always_inline int from_pod_judge(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	int is_own = is_own_address(skb, &p->source);
	struct policy *policy;
	struct peer *peer;

	if (addr_is_link(&p->destination) &&
	    (is_own || addr_is_link(&p->source) || addr_is_zero(&p->source)))
		return CLEAR_LINK;
	if (!is_own)
		return DROP_SPOOFED_POD;
	peer = peer_find(&p->destination);
	if (peer && peer->flags & PEER_NODE && is_overlay(p))
		return DROP_FORGED_OVERLAY;
	if (!config.encrypt)
		return CLEAR_DISABLED;
	if (!peer)
		return from_pod_unknown(s);
	if (peer->flags & PEER_NODE && may_be_esp(p))
		return DROP_POD_ESP;
	if (peer->flags & PEER_LOCAL)
		return CLEAR_LOCAL;
	policy = policy_find(p, group_of(&p->source), peer->group);
	if (is_exempt(s, policy, 0))
		return CLEAR_EXEMPT;
	if (!encrypt_find(s, policy, &peer->node) && !may_pass_in_overlay())
		return DROP_NO_KEY;
	skb->mark = MARK_ENCRYPT; /* and no more: kube-proxy drops or masquerades by 0x8000, 0x4000 */
	return REASON_NONE;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	int reason, action;

	if (!s)
		return TC_ACT_SHOT;
	reason = packet_parse_own(skb, &s->packet);
	if (skb->vlan_present)
		reason = DROP_NOT_IP; /* no pod is on a VLAN */
	if (!reason)
		reason = from_pod_judge(skb, s);
	if (!reason)
		return TC_ACT_OK;
	action = verdict(skb, HOOK_FROM_POD, reason);
	if (reason == CLEAR_EXEMPT || (reason >= DROP_FIRST && action == TC_ACT_OK))
		skb->mark = MARK_OUT; /* past the door, and to_net need not report it again */
	return action;
}
