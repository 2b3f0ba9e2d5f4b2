// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The outside of a tunnel packet: outer IP headers, what they take over from the inner one and give
 * back to it (ECN, RFC 6040), and how a frame in scratch becomes the skb.
 */
#pragma once
#include "esp.h"

#define OUTER_TTL 64
#define OUTER_IPV4 (ETH_HLEN + sizeof(struct iphdr))
#define OUTER_IPV6 (ETH_HLEN + sizeof(struct ipv6hdr))
#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_CE 3
#define TUNNEL_STORE (BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH)

/* --- headers ---------------------------------------------------------------------------------- */

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

static __always_inline void outer_ethernet(struct ethhdr *eth, __be16 ethertype)
{
	__builtin_memset(eth, 0, sizeof(*eth)); /* bpf_redirect_neigh knows the addresses */
	eth->h_proto = ethertype;
}

/* Normal mode of RFC 6040 §4.1: DSCP and ECN are the inner packet's.  DF is always set: the
 * route's MTU is exact, and fragments would be refused by the peer.
 */
static __always_inline void outer_ipv4(struct ccp *c, const struct sa_out *sa, __u8 tos)
{
	struct iphdr *ip = (void *)&c->head[CCP_HEAD - ESP_HEAD - sizeof(*ip)];
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;

	outer_ethernet((void *)ip - ETH_HLEN, swap16(ETH_P_IP));
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = swap16(sizeof(*ip) + ESP_HEAD + c->len + ESP_ICV);
	ip->id = 0; /* RFC 6864 §4.1: means nothing under DF */
	ip->frag_off = swap16(0x4000);
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_ESP;
	ip->check = 0;
	ip->saddr = sa->source.words[3];
	ip->daddr = sa->destination.words[3];
#pragma clang loop unroll(full)
	for (int i = 0; i < 10; i++)
		sum += words[i];
	ip->check = ~fold(sum);
}

static __always_inline void outer_ipv6(struct ccp *c, const struct sa_out *sa, __u8 tos, __u32 hash)
{
	struct ipv6hdr *ip = (void *)&c->head[CCP_HEAD - ESP_HEAD - sizeof(*ip)];

	outer_ethernet((void *)ip - ETH_HLEN, swap16(ETH_P_IPV6));
	*(__be32 *)ip = swap32(6U << 28 | (__u32)tos << 20 | (hash & 0xfffff));
	ip->payload_len = swap16(ESP_HEAD + c->len + ESP_ICV);
	ip->nexthdr = IPPROTO_ESP;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->saddr, &sa->source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &sa->destination, sizeof(ip->daddr));
}

/* --- skb -------------------------------------------------------------------------------------- */

/* skb->protocol, by which the kernel picks the family, follows the frame only where the kernel lets
 * it: between the two IPs there is a helper.  From anything else, taking off a VLAN tag reads it
 * anew, so the frame is given two (one is kept beside the packet, the second pushes it inside).
 */
static __always_inline int tunnel_set_family(struct __sk_buff *skb, __be16 ethertype)
{
	if (skb->protocol == ethertype)
		return 0;
	if (skb->protocol == swap16(ETH_P_IP) || skb->protocol == swap16(ETH_P_IPV6))
		return bpf_skb_change_proto(skb, ethertype, 0);
	if (bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &ethertype, sizeof(ethertype), 0) ||
	    bpf_skb_vlan_push(skb, swap16(ETH_P_8021Q), 1) ||
	    bpf_skb_vlan_push(skb, swap16(ETH_P_8021Q), 1) || bpf_skb_vlan_pop(skb) ||
	    bpf_skb_vlan_pop(skb))
		return -1;
	return skb->protocol == ethertype ? 0 : -1;
}

/* The skb's length, of which every byte is written anew afterwards.  A packet that a tunnel of the
 * kernel's has made (a pod's VXLAN; over veth, a peer's IPsec) bears skb->encapsulation, under which
 * the tail must not be moved; the room behind the Ethernet header may.
 */
static __always_inline int tunnel_resize(struct __sk_buff *skb, __u32 len)
{
	__s32 more = len - skb->len;

	if (!bpf_skb_change_tail(skb, len, 0))
		return 0;
	return bpf_skb_adjust_room(skb, more, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET);
}

/* Would the outer packet go through the uplink?  Larger ones vanish in the device, uncounted. */
static __always_inline int tunnel_fits(struct __sk_buff *skb, const struct sa_out *sa, __u32 len)
{
	__u32 size = esp_length(len);

	size += addr_is_ipv4(&sa->destination) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	return bpf_check_mtu(skb, config.uplink_ifindex, &size, 0, 0) !=
	       BPF_MTU_CHK_RET_FRAG_NEEDED;
}

/* Seals c->data[0..len) with the SA's next number and makes the skb that ESP packet. */
__noinline int tunnel_seal(struct __sk_buff *skb, struct scratch *s, struct sa_out *sa, __u32 len,
			   __u32 next_header)
{
	__be16 ethertype;
	struct ccp *c;
	__u32 room;
	int reason;

	if (!s || !sa)
		return DROP_SEAL_FAILED;
	if (!tunnel_fits(skb, sa, len))
		return DROP_TOO_BIG;
	c = &s->ccp;
	reason = esp_seal(c, sa, len, next_header);
	if (reason)
		return reason;
	if (addr_is_ipv4(&sa->destination)) {
		ethertype = swap16(ETH_P_IP);
		room = OUTER_IPV4 + ESP_HEAD;
		outer_ipv4(c, sa, s->packet.tos);
	} else {
		ethertype = swap16(ETH_P_IPV6);
		room = OUTER_IPV6 + ESP_HEAD;
		outer_ipv6(c, sa, s->packet.tos, s->packet.hash);
	}
	len = room + bounded(c->len, CCP_MAX) + ESP_ICV;
	if (tunnel_set_family(skb, ethertype) || tunnel_resize(skb, len) ||
	    bpf_skb_store_bytes(skb, 0, &c->head[CCP_HEAD - room], len, TUNNEL_STORE))
		return DROP_SEAL_FAILED;
	return REASON_NONE;
}

/* Makes the skb the opened packet c->data[0..len), behind the Ethernet addresses it came with. */
__noinline int tunnel_open(struct __sk_buff *skb, struct ccp *c, __u32 len, __u32 ethertype)
{
	if (!c)
		return DROP_ESP_MALFORMED;
	len = bounded(len, CCP_MAX);
	*(__be16 *)&c->head[CCP_HEAD - sizeof(__be16)] = ethertype;
	if (tunnel_set_family(skb, ethertype) || tunnel_resize(skb, ETH_HLEN + len) ||
	    bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &c->head[CCP_HEAD - sizeof(__be16)],
				sizeof(__be16) + len, TUNNEL_STORE))
		return DROP_ESP_MALFORMED;
	bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET); /* what was checked was not the inner packet's */
	return REASON_NONE;
}

/* --- the opened packet's header --------------------------------------------------------------- */

/* RFC 6040 §4.2, figure 4.  Answers the inner TOS, or -1: congestion was marked on a packet whose
 * sender would not understand it, so it must be dropped.
 */
static __always_inline int ecn_decapsulate(__u8 outer, __u8 inner)
{
	outer &= ECN_MASK;
	if (!(inner & ECN_MASK))
		return outer == ECN_CE ? -1 : inner;
	if (outer == ECN_CE)
		return inner | ECN_CE;
	if (outer == ECN_ECT1 && (inner & ECN_MASK) != ECN_CE)
		return (inner & ~ECN_MASK) | ECN_ECT1;
	return inner;
}

/* RFC 1624 equation 3 for one 16-bit word of an IPv4 header */
static __always_inline void ipv4_update(struct iphdr *ip, __u16 old, __u16 new)
{
	ip->check = ~fold((__u16)~ip->check + (__u16)~old + new);
}

/* Gives the inner header its new TOS and TTL, in scratch and in the skb. */
static __always_inline int tunnel_rewrite(struct __sk_buff *skb, struct ccp *c, int is_ipv4,
					  __u8 tos, __u8 ttl)
{
	struct iphdr *ip = (void *)c->data;
	__u16 *words = (void *)c->data, old_tos = words[0], old_ttl = words[4];

	if (is_ipv4) {
		ip->tos = tos;
		ip->ttl = ttl;
		ipv4_update(ip, old_tos, words[0]);
		ipv4_update(ip, old_ttl, words[4]);
		return bpf_skb_store_bytes(skb, ETH_HLEN, c->data, 12, TUNNEL_STORE);
	}
	c->data[0] = 0x60 | tos >> 4;
	c->data[1] = (c->data[1] & 0x0f) | tos << 4;
	c->data[7] = ttl;
	return bpf_skb_store_bytes(skb, ETH_HLEN, c->data, 8, TUNNEL_STORE);
}
