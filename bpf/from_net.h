// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* From the wire: ESP for this node is authenticated, opened, checked against the node whose keys
 * it bore, and handed to its pod; cleartext that claims to be a pod's is refused; the rest passes.
 *
 * An SA changes only by packets that authenticate: refused ones leave nothing but a count.
 */
#pragma once
#include <linux/if_packet.h>

#include "border.h"
#include "deliver.h"
#include "pmtu.h"
#include "probe.h"

/* --- the SA ----------------------------------------------------------------------------------- */

static __always_inline struct sa_in *sa_in_find(const struct packet *p, __be32 spi)
{
	struct sa_in_key key = { .source = p->source, .destination = p->destination, .spi = spi };

	return bpf_map_lookup_elem(&sa_in, &key);
}

/* Counted in the SA under why: all that a refused packet changes there. */
static __always_inline int sa_in_refuse(struct sa_in *sa, int reason)
{
	if (reason == DROP_AUTH_FAILED)
		__sync_fetch_and_add(&sa->auth_failed, 1);
	else
		__sync_fetch_and_add(&sa->replayed, 1);
	return reason;
}

/* What an authentic and fresh packet changes. */
static __always_inline int sa_in_accept(struct scratch *s, struct sa_in *sa, __u64 sequence)
{
	int reason = replay_accept(sa, sequence);

	if (reason)
		return sa_in_refuse(sa, reason);
	__sync_fetch_and_add(&sa->packets, 1);
	sa_confirm(s, sa);
	return REASON_NONE;
}

/* --- opening ---------------------------------------------------------------------------------- */

/* The stack, which would see to it, never meets the outer IPv4 header: RFC 1122 §3.2.1.2. */
static __always_inline int outer_is_intact(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	__u32 len = p->payload - p->start;
	__be32 *header = (__be32 *)&s->ccp.head;

	if (p->ethertype != swap16(ETH_P_IP))
		return 1;
	len = bounded(len, IPV4_LONGEST);
	if (bpf_skb_load_bytes(skb, p->start, header, len))
		return 0;
	return fold(bpf_csum_diff(0, 0, header, len, 0)) == 0xffff;
}

/* The packet into scratch: ESP header, ciphertext and ICV. */
static __always_inline int esp_load(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	__u32 len = p->len - (p->payload - p->start);

	if (!outer_is_intact(skb, s))
		return DROP_MALFORMED;
	if (p->is_fragment)
		return DROP_ESP_FRAGMENT;
	if (len < ESP_HEAD + 4 + ESP_ICV || len & 3)
		return DROP_ESP_MALFORMED;
	len -= ESP_HEAD + ESP_ICV;
	opaque(len);
	if (len > CCP_MAX)
		return DROP_TOO_BIG;
	if (bpf_skb_load_bytes(skb, p->payload, esp_head(&s->ccp), ESP_HEAD) ||
	    bpf_skb_load_bytes(skb, p->payload + ESP_HEAD, s->ccp.data,
			       bounded(len, CCP_MAX) + ESP_ICV))
		return DROP_ESP_MALFORMED;
	s->ccp.len = len;
	return REASON_NONE;
}

static __always_inline int esp_authenticate(struct scratch *s, struct sa_in *sa)
{
	__u64 top = *(volatile __u64 *)&sa->top, sequence;
	struct ccp *c = &s->ccp;
	__u32 len;
	int reason;

	if (sa->expires && bpf_ktime_get_boot_ns() >= sa->expires)
		return DROP_SA_EXPIRED;
	sequence = sequence_infer(top, swap32(esp_head(c)->sequence));
	reason = replay_check(sa, sequence);
	if (reason)
		return sa_in_refuse(sa, reason);
	esp_prepare(c, sa->key, sa->salt, sequence >> 32);
	if (ccp_tag(c))
		return DROP_ESP_MALFORMED;
	len = c->len;
	opaque(len);
	if (len > CCP_MAX)
		return DROP_ESP_MALFORMED;
	if (!esp_is_authentic(c, len))
		return sa_in_refuse(sa, sequence_is_old(top, sequence) ? DROP_TOO_OLD :
									 DROP_AUTH_FAILED);
	return sa_in_accept(s, sa, sequence);
}

/* --- the hook --------------------------------------------------------------------------------- */

/* The SA that the ESP header names, or 0. */
static __always_inline struct sa_in *from_net_sa(struct __sk_buff *skb, struct scratch *s)
{
	const struct packet *p = &s->packet;

	if (p->is_fragment || bpf_skb_load_bytes(skb, p->payload, &s->spi, sizeof(s->spi)))
		return 0;
	return sa_in_find(p, s->spi);
}

static __always_inline int esp_open(struct __sk_buff *skb, struct scratch *s, struct sa_in *sa)
{
	int reason, trailer, ethertype;
	__u32 len;

	sa_name(s, sa);
	reason = esp_authenticate(s, sa);
	if (reason)
		return reason;
	trailer = ccp_open(&s->ccp) ? -1 : esp_trailer(&s->ccp);
	if (trailer < 0)
		return DROP_ESP_MALFORMED;
	if (trailer >> 16 == ESP_DUMMY)
		return ESP_DUMMY_RECEIVED;
	len = trailer & 0xffff;
	ethertype = esp_inner(&s->ccp, trailer >> 16, &len);
	if (ethertype < 0)
		return DROP_ESP_MALFORMED;
	__sync_fetch_and_add(&sa->bytes, len);
	reason = tunnel_open(skb, &s->ccp, len, ethertype);
	return reason ? reason : packet_parse(skb, &s->packet, 1);
}

/* REASON_NONE: not ours to judge, it passes. */
static __always_inline int from_net_clear(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	int reason = REASON_NONE;

	if (!is_routers_word(p))
		reason = border_judge(s, &p->source, &p->destination, DROP_CLEAR_FROM_CLUSTER);
	if (reason)
		return reason;
	if (p->is_fragment || !addr_is_self(&p->destination))
		return REASON_NONE;
	if (p->protocol == IPPROTO_ICMP)
		return pmtu_ipv4(skb, s);
	if (p->protocol == IPPROTO_ICMPV6)
		return pmtu_ipv6(skb, s);
	return REASON_NONE;
}

/* Somebody else's tunnel, which the stack knows: from a node of the cluster by an SA that somebody
 * has made here, from elsewhere by any.
 */
static __always_inline int is_anothers_esp(const struct scratch *s)
{
	const struct packet *p = &s->packet;

	if (!addr_is_node(&p->source))
		return 1;
	return !p->is_fragment && is_of_others(&p->destination, s->spi);
}

/* REASON_NONE: the kernel's IPsec may open it. */
static __always_inline int from_net_esp(struct __sk_buff *skb, struct scratch *s)
{
	struct sa_in *sa = from_net_sa(skb, s);
	struct packet *p = &s->packet;
	__u8 outer_tos = p->tos;
	int reason;

	if (sa && sa->engine == ENGINE_XFRM) {
		skb->mark = sa->mark | (outer_tos & MARK_ECN);
		return REASON_NONE;
	}
	if (!sa && is_anothers_esp(s))
		return from_net_clear(skb, s);
	reason = esp_load(skb, s);
	if (reason)
		return reason;
	if (!sa)
		return DROP_UNKNOWN_SPI;
	reason = esp_open(skb, s, sa);
	if (reason)
		return reason;
	if (is_probe(s))
		return probe_receive(skb, s);
	return deliver(skb, s, outer_tos);
}

/* An overlay packet in the clear: with encryption off that is how they come, and in monitor mode they
 * may.  What is in it is judged all the same.
 */
static __always_inline int from_net_overlay(struct __sk_buff *skb, struct scratch *s)
{
	struct peer *peer = peer_find(&s->packet.source);
	int reason;

	if (!peer || (peer->flags & (PEER_NODE | PEER_LOCAL)) != PEER_NODE)
		return DROP_FORGED_OVERLAY;
	s->node = peer->node;
	reason = deliver_overlay(skb, s);
	if (reason != OPENED)
		return reason;
	return config.encrypt ? DROP_CLEAR_FROM_CLUSTER : REASON_NONE;
}

/* What bears a VLAN tag here belongs to another device of this machine. */
static __always_inline int is_for_us(struct __sk_buff *skb, const struct packet *p)
{
	return addr_is_self(&p->destination) && p->start == ETH_HLEN && !skb->vlan_present;
}

/* REASON_NONE: it passes, and somebody else may report it. */
static __always_inline int from_net_judge(struct __sk_buff *skb, struct scratch *s)
{
	const struct packet *p = &s->packet;

	if (is_overlay(p) && is_for_us(skb, p))
		return from_net_overlay(skb, s);
	if (!config.encrypt)
		return REASON_NONE;
	if (p->protocol == IPPROTO_ESP && is_for_us(skb, p))
		return from_net_esp(skb, s);
	return from_net_clear(skb, s);
}

SEC("tc")
int from_net(struct __sk_buff *skb)
{
	struct scratch *s;
	int reason, action;

	if (!(config.encrypt || config.overlay_port) || skb->pkt_type == PACKET_OTHERHOST)
		return TC_ACT_OK; /* from_pod has reported it; or it is another machine's */
	s = scratch_begin();
	if (!s)
		return TC_ACT_SHOT;
	reason = packet_parse(skb, &s->packet, 1);
	if (reason == DROP_NOT_IP || (reason && !config.encrypt))
		return TC_ACT_OK;
	if (!reason)
		reason = from_net_judge(skb, s);
	action = reason ? verdict(skb, HOOK_FROM_NET, reason) : TC_ACT_OK;
	if (s->is_overlay && action == TC_ACT_OK)
		skb->mark = MARK_OVERLAY;
	if (reason == PROBE_RECEIVED || reason == ESP_DUMMY_RECEIVED || reason == PATH_MTU_RECEIVED)
		return TC_ACT_SHOT;
	if (reason == OPENED && s->ifindex)
		return bpf_redirect_peer(s->ifindex, 0);
	return action;
}
