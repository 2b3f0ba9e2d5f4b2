// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Bytes become a struct packet here, once: every header's bounds are checked in this file.
 *
 * Helpers copy the headers out of the packet; nothing points into it, so nothing goes stale when
 * the packet is changed, and the verifier has no ranges to follow.
 */
#pragma once
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#include "tables.h"

#define IPV6_EXTENSIONS 8 /* headers walked before the packet counts as malformed */
#define IPV4_LONGEST 64	  /* a header with all its options has 60 bytes */
#define VLAN_TAGS 2	  /* tags skipped: the last door must see into them */

/* network order <-> the order of this (little-endian) machine */
#define swap16(x) __builtin_bswap16(x)
#define swap32(x) __builtin_bswap32(x)
#define swap64(x) __builtin_bswap64(x)

/* What the caller has checked, so that verifiers of every age see it: 1 <= len <= size, a power
 * of 2.  Comparisons get folded by the compiler until older ones do not.
 */
static __always_inline __u32 bounded(__u32 len, __u32 size)
{
	len--;
	opaque(len);
	return (len & (size - 1)) + 1;
}

struct packet {
	struct addr source;
	struct addr destination;
	__be16 source_port; /* as struct flow_key has them */
	__be16 destination_port;
	__u32 len;     /* of the IP packet, as its own header says */
	__u32 start;   /* where in the frame the IP header is */
	__u32 payload; /* where that is which `protocol` names */
	__u32 hash;    /* the same for all packets of a flow; of a fragment: of its addresses */
	__be16 ethertype;
	__u8 protocol;
	__u8 tos; /* DSCP and ECN */
	__u8 ttl; /* or hop limit */
	__u8 is_fragment;
	__u8 pad[2];
};

static __always_inline int packet_load(struct __sk_buff *skb, struct packet *p, __u32 at, void *to,
				       __u32 len)
{
	if (at + len > p->start + p->len)
		return -1;
	return bpf_skb_load_bytes(skb, at, to, len);
}

/* --- Ethernet --------------------------------------------------------------------------------- */

/* A device without Ethernet has no header but IP's; the kernel says which. */
static __always_inline int parse_nothing(struct __sk_buff *skb, struct packet *p)
{
	p->ethertype = skb->protocol;
	return REASON_NONE;
}

static __always_inline int parse_ethernet(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__be16 tag;
		__be16 next;
	} vlan;

	if (bpf_skb_load_bytes(skb, p->start + 2 * ETH_ALEN, &p->ethertype, sizeof(p->ethertype)))
		return DROP_MALFORMED;
	p->start += ETH_HLEN;
#pragma clang loop unroll(full)
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (p->ethertype != swap16(ETH_P_8021Q) && p->ethertype != swap16(ETH_P_8021AD))
			break;
		if (bpf_skb_load_bytes(skb, p->start, &vlan, sizeof(vlan)))
			return DROP_MALFORMED;
		p->ethertype = vlan.next;
		p->start += sizeof(vlan);
	}
	return REASON_NONE;
}

/* --- IP --------------------------------------------------------------------------------------- */

/* 0 in a header's length field is not a lie in GSO packets of more than 64 KB (BIG TCP). */
static __always_inline int set_length(struct __sk_buff *skb, struct packet *p, __u32 fixed,
				      __u32 said)
{
	__u32 len = !said && skb->gso_size ? skb->len - p->start : fixed + said;

	if (p->start + len > skb->len || p->start + len < p->payload)
		return DROP_MALFORMED;
	p->len = len;
	return REASON_NONE;
}

static __always_inline void set_ipv4(struct addr *addr, __be32 ip)
{
	addr->halves[0] = 0;
	addr->words[2] = swap32(0xffff);
	addr->words[3] = ip;
}

static __always_inline int addr_is_ipv4(const struct addr *addr)
{
	return addr->halves[0] == 0 && addr->words[2] == swap32(0xffff);
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, p->start, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return DROP_MALFORMED;
	set_ipv4(&p->source, ip.saddr);
	set_ipv4(&p->destination, ip.daddr);
	p->protocol = ip.protocol;
	p->tos = ip.tos;
	p->ttl = ip.ttl;
	p->is_fragment = (ip.frag_off & swap16(0x3fff)) != 0; /* MF or an offset */
	p->payload = p->start + ip.ihl * 4;
	return set_length(skb, p, 0, swap16(ip.tot_len));
}

static __always_inline int is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_FRAGMENT || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_MH;
}

/* RFC 8200 §4. What follows the header of a real fragment is not read: only one of them has it. */
static __always_inline int parse_extensions(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__u8 next;
		__u8 len;
		__be16 offset;
		__u8 rest[4]; /* none is shorter */
	} extension;

#pragma clang loop unroll(disable)
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		if (!is_extension(p->protocol))
			return REASON_NONE;
		if (packet_load(skb, p, p->payload, &extension, sizeof(extension)))
			return DROP_MALFORMED;
		if (p->protocol == IPPROTO_FRAGMENT) {
			p->is_fragment = (extension.offset & swap16(0xfff9)) != 0;
			extension.len = 0;
		}
		p->protocol = extension.next;
		p->payload += (extension.len + 1) * 8;
		if (p->payload > p->start + p->len)
			return DROP_MALFORMED;
		if (p->is_fragment)
			return REASON_NONE;
	}
	return is_extension(p->protocol) ? DROP_MALFORMED : REASON_NONE;
}

/* An IPv4-mapped address in a real IPv6 header would pass for an IPv4 one in every table. */
static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, p->start, &ip, sizeof(ip)) || ip.version != 6)
		return DROP_MALFORMED;
	__builtin_memcpy(&p->source, &ip.saddr, sizeof(p->source));
	__builtin_memcpy(&p->destination, &ip.daddr, sizeof(p->destination));
	p->protocol = ip.nexthdr;
	p->tos = ip.priority << 4 | ip.flow_lbl[0] >> 4;
	p->ttl = ip.hop_limit;
	p->payload = p->start + sizeof(ip);
	if (addr_is_ipv4(&p->source) || addr_is_ipv4(&p->destination))
		return DROP_MALFORMED;
	if (set_length(skb, p, sizeof(ip), swap16(ip.payload_len)))
		return DROP_MALFORMED;
	return parse_extensions(skb, p);
}

/* --- ports, or what ICMP has instead ---------------------------------------------------------- */

static __always_inline int is_echo(const struct packet *p, __u8 type)
{
	return p->protocol == IPPROTO_ICMP ? type == 0 || type == 8 : type == 128 || type == 129;
}

static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *p)
{
	struct {
		union {
			__be16 ports[2];
			__u8 type; /* code and checksum follow */
		};
		__be16 identifier;
		__be16 sequence;
	} head;

	if (p->is_fragment)
		return REASON_NONE;
	switch (p->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		break;
	default:
		return REASON_NONE;
	}
	if (packet_load(skb, p, p->payload, &head, sizeof(head))) /* all are 8 bytes or more */
		return DROP_MALFORMED;
	p->source_port = head.ports[0];
	p->destination_port = head.ports[1];
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		p->destination_port = is_echo(p, head.type) ? head.identifier : 0;
	return REASON_NONE;
}

static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15;
	return hash ^ hash >> 32;
}

static __always_inline void set_hash(struct packet *p)
{
	__u64 hash = p->protocol;

	if (!p->is_fragment)
		hash |= (__u64)p->source_port << 32 | (__u64)p->destination_port << 16;
	else
		hash = 0;
	hash = mix(hash, p->source.halves[0]);
	hash = mix(hash, p->source.halves[1]);
	hash = mix(hash, p->destination.halves[0]);
	hash = mix(hash, p->destination.halves[1]);
	p->hash = mix(hash, 0) >> 32;
}

/* REASON_NONE, DROP_NOT_IP or DROP_MALFORMED; what was read until then is in p.  `at`: where in the
 * skb it begins, for the outermost packet 0.
 */
__noinline int packet_parse_at(struct __sk_buff *skb, struct packet *p, __u32 at,
			       __u32 has_ethernet)
{
	int reason;

	if (!p)
		return DROP_MALFORMED;
	__builtin_memset(p, 0, sizeof(*p));
	p->start = at;
	reason = has_ethernet ? parse_ethernet(skb, p) : parse_nothing(skb, p);
	if (reason)
		return reason;
	if (p->ethertype == swap16(ETH_P_IP))
		reason = parse_ipv4(skb, p);
	else if (p->ethertype == swap16(ETH_P_IPV6))
		reason = parse_ipv6(skb, p);
	else
		return DROP_NOT_IP;
	if (!reason)
		reason = parse_ports(skb, p);
	set_hash(p);
	return reason;
}

static __always_inline int packet_parse(struct __sk_buff *skb, struct packet *p, __u32 has_ethernet)
{
	return packet_parse_at(skb, p, 0, has_ethernet);
}

/* The same on a device of this node's own, where nothing is tagged.  CLEAR_LINK: it is ARP. */
static __always_inline int packet_parse_own(struct __sk_buff *skb, struct packet *p)
{
	int reason = packet_parse(skb, p, 1);

	if (p->start != ETH_HLEN)
		return DROP_NOT_IP;
	if (reason == DROP_NOT_IP && p->ethertype == swap16(ETH_P_ARP))
		return CLEAR_LINK;
	return reason;
}

/* --- room ------------------------------------------------------------------------------------- */

/* What the stack's 512 bytes cannot hold.  One for each core, where one program runs at a time. */
struct scratch {
	struct ccp ccp;
	struct packet packet; /* being judged: the inner one, once it is opened */
	struct flow_key flow;
	struct flow_row row;
	struct addr node; /* who holds the keys that opened the packet */
	__u64 pair;	  /* the SA that sealed or opened it, for the report */
	__be32 spi;
	__u32 epoch;
	__u32 engine;
	__u32 number;
	__u32 len;     /* of what is sealed: the packet, or the overlay packet around it */
	__u32 rule;    /* what has let it pass */
	__u32 ifindex; /* of the pod that gets the opened packet; 0: this node itself */
	__u32 vni;     /* of the overlay packet around it */
	__be16 ethertype; /* of what is sealed */
	__u8 is_overlay;  /* the packet is in an overlay packet */
	__u8 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *scratch_find(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline struct scratch *scratch_begin(void)
{
	struct scratch *s = scratch_find();

	if (s) {
		s->pair = 0;
		s->spi = 0;
		s->epoch = 0;
		s->engine = 0;
		s->number = 0;
		s->rule = 0;
		s->is_overlay = 0;
	}
	return s;
}
