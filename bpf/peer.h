// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Who an address is: a pod or node that the ipcache knows, ours or another's, or the cluster's at
 * least by its CIDRs.
 */
#pragma once
#include "packet.h"

static __always_inline int addr_equal(const struct addr *a, const struct addr *b)
{
	return a->halves[0] == b->halves[0] && a->halves[1] == b->halves[1];
}

/* 0.0.0.0 or :: */
static __always_inline int addr_is_nobody(const struct addr *addr)
{
	return !addr->halves[0] && !addr->words[3];
}

/* One of this node's outer addresses, between which ESP travels. */
static __always_inline int addr_is_self(const struct addr *addr)
{
	return (addr->halves[0] == config.self4.halves[0] &&
		addr->halves[1] == config.self4.halves[1]) ||
	       (addr->halves[0] == config.self6.halves[0] &&
		addr->halves[1] == config.self6.halves[1]);
}

static __always_inline struct peer *peer_find(const struct addr *addr)
{
	return bpf_map_lookup_elem(&ipcache, addr);
}

static __always_inline __u32 peer_identity(const struct addr *addr)
{
	struct peer *peer = peer_find(addr);

	return peer ? peer->identity : 0;
}

static __always_inline struct cidr_row *cluster_find(const struct addr *addr)
{
	struct cidr key = { .prefixlen = 128, .addr = *addr };

	return bpf_map_lookup_elem(&cluster_cidrs, &key);
}

/* The cluster's, whether the ipcache knows it or not yet. */
static __always_inline int cluster_has(const struct addr *addr)
{
	return cluster_find(addr) != 0;
}

/* All that border and policies want to know of an address. */
struct member {
	__u64 group;
	__u8 is_known;
	__u8 is_node; /* known or not: where nodes are is one, too */
};

static __always_inline struct member member_find(const struct addr *addr)
{
	struct peer *peer = peer_find(addr);
	struct cidr_row *cidr = peer ? 0 : cluster_find(addr);
	struct member found = { .is_node = addr_is_self(addr) };

	if (peer) {
		found.is_known = 1;
		found.group = peer->group;
		found.is_node |= (peer->flags & PEER_NODE) != 0;
	} else if (cidr) {
		found.is_known = 1;
		found.group = cidr->group;
		found.is_node |= (cidr->flags & CIDR_NODE) != 0;
	}
	return found;
}

static __always_inline int addr_is_node(const struct addr *addr)
{
	return addr_is_self(addr) || member_find(addr).is_node;
}

/* A pod's address, or one that may be a pod's.  Node addresses are no pods', even inside the
 * cluster's CIDRs.
 */
static __always_inline int peer_may_be_pod(const struct addr *addr)
{
	struct peer *peer = peer_find(addr);

	return peer ? !(peer->flags & PEER_NODE) : cluster_has(addr);
}

/* The outer address of the peer whose packet this is, as its mark says; 0: nobody's. */
static __always_inline struct addr *sharer_find(const struct __sk_buff *skb)
{
	struct sharer_key key = { .slot = skb->mark >> MARK_SLOT_SHIFT };

	return (struct addr *)bpf_map_lookup_elem(&sharers, &key);
}

/* ESP by an SA that somebody else has made here. */
static __always_inline int is_of_others(const struct addr *destination, __be32 spi)
{
	struct other_key key = { .destination = *destination, .spi = spi };

	return bpf_map_lookup_elem(&others, &key) != 0;
}
