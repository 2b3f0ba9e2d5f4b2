// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* At pellicle_xfrm: what the kernel's IPsec has opened.  from_net has let its ESP through with the
 * mark of an SA; here the packet must come from the node that holds that SA's keys, and goes on as
 * if the bpf engine had opened it.
 */
#pragma once
#include "deliver.h"
#include "probe.h"

/* The row of the SA that the kernel used: it keeps a record of that with the packet.  A shared state
 * knows of no sender: from_net did, and left its slot in the mark.
 */
static __always_inline struct sa_in *xfrm_sa(struct __sk_buff *skb, struct scratch *s)
{
	struct bpf_xfrm_state state = {};
	struct sa_in_key key = {};
	struct addr *sharer;

	if (bpf_skb_get_xfrm_state(skb, 0, &state, sizeof(state), 0))
		return 0;
	s->spi = state.spi;
	key.spi = state.spi;
	if (state.family == AF_INET) {
		set_ipv4(&key.source, state.remote_ipv4);
		key.destination = config.self4;
	} else {
		__builtin_memcpy(&key.source, state.remote_ipv6, sizeof(key.source));
		key.destination = config.self6;
	}
	if (addr_is_nobody(&key.source)) {
		sharer = sharer_find(skb);
		if (!sharer)
			return 0;
		key.source = *sharer;
	}
	return bpf_map_lookup_elem(&sa_in, &key);
}

static __always_inline int from_xfrm_packet(struct __sk_buff *skb, struct scratch *s)
{
	__u8 outer_tos = skb->mark & MARK_ECN;
	struct packet *p = &s->packet;
	struct sa_in *sa = xfrm_sa(skb, s);
	int reason = packet_parse(skb, p, 1);

	if (!sa || sa->engine != ENGINE_XFRM)
		return DROP_UNKNOWN_SPI;
	sa_name(s, sa);
	if (reason)
		return reason;
	if (sa->mark & MARK_SHARED) {
		__sync_fetch_and_add(&sa->packets, 1);
		__sync_fetch_and_add(&sa->bytes, p->len);
	}
	if (p->start != ETH_HLEN)
		return DROP_MALFORMED; /* the header of the frame that brought the ESP, rebuilt */
	sa_confirm(s, sa);
	if (is_probe(s))
		return probe_receive(skb, s);
	/* deliver() rewrites the head of the header in scratch */
	if (bpf_skb_load_bytes(skb, ETH_HLEN, s->ccp.data, sizeof(struct iphdr)))
		return DROP_MALFORMED;
	return deliver(skb, s, outer_tos);
}

SEC("tc")
int from_xfrm(struct __sk_buff *skb)
{
	struct scratch *s = scratch_begin();
	int reason, action;

	if (!s)
		return TC_ACT_SHOT;
	reason = from_xfrm_packet(skb, s);
	action = verdict(skb, HOOK_FROM_NET, reason);
	if (reason != OPENED)
		return TC_ACT_SHOT;
	skb->mark = s->is_overlay ? MARK_OVERLAY : 0;
	/* not to its peer at once: kernels before 6.16 would check there, too, who has decrypted it */
	return s->ifindex ? bpf_redirect(s->ifindex, 0) : action;
}
