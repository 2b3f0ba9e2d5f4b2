// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* What never leaves its link: link-local addresses, and multicast of that scope. */
#pragma once
#include "packet.h"

/* RFC 4861: neighbours talk with hop limit 255, so that nothing of it can come from beyond. */
static __always_inline int is_neighbour_discovery(const struct packet *p)
{
	__u8 type = p->source_port; /* its first byte */

	return p->protocol == IPPROTO_ICMPV6 && p->ttl == 255 && type >= 133 && type <= 137;
}

static __always_inline int addr_is_zero(const struct addr *addr)
{
	return addr->halves[0] == 0 &&
	       (addr->halves[1] == 0 || addr->halves[1] == swap64(0xffff00000000));
}

static __always_inline int ipv4_is_link(__be32 ip)
{
	return (ip & swap32(0xffff0000)) == swap32(0xa9fe0000) || /* 169.254.0.0/16 */
	       (ip & swap32(0xffffff00)) == swap32(0xe0000000) || /* 224.0.0.0/24 */
	       ip == swap32(0xffffffff);
}

static __always_inline int addr_is_link(const struct addr *addr)
{
	if (addr_is_ipv4(addr))
		return ipv4_is_link(addr->words[3]);
	if (addr->bytes[0] == 0xff) /* RFC 4291 §2.7: scope 2 is the link, 1 the interface */
		return (addr->bytes[1] & 0xf) <= 2;
	return (addr->words[0] & swap32(0xffc00000)) == swap32(0xfe800000);
}
