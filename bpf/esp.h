// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* ESP (RFC 4303) with ChaCha20-Poly1305 (RFC 7634) and extended sequence numbers, on a packet in
 * scratch.
 *
 *      0                   1                   2                   3
 *      0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
 *     +---------------------------------------------------------------+
 *     |               Security Parameters Index (SPI)                 | \
 *     |              Sequence Number, its low 32 bits                 |  | end of c->head
 *     |       IV: from our peers the sequence number,                 |  |
 *     |           all 64 bits of it                                   | /
 *     +---------------------------------------------------------------+
 *     |       inner packet, padding (1, 2, 3 ...) ...                 | \ c->data,
 *     |                               |  Pad Length   | Next Header   | / enciphered
 *     +---------------------------------------------------------------+
 *     |       ICV, 16 bytes                                           |   after the data
 *     +---------------------------------------------------------------+
 *
 * nonce = salt (4) ‖ IV (8), additional data = SPI ‖ sequence number (12).
 */
#pragma once
#include "encrypt.h"
#include "replay.h"

#define ESP_HEAD 16
#define ESP_ICV 16
#define ESP_TRAILER 2
#define ESP_DUMMY 59 /* next header: no packet, RFC 4303 §2.6 */
#define ESP_LONGEST (CCP_MAX - ESP_TRAILER) /* what can be sealed, its trailer added */
_Static_assert(ESP_LONGEST == EXPORT_LONGEST, "route MTUs are made from it");

_Static_assert(__builtin_offsetof(struct ccp, data) ==
		       __builtin_offsetof(struct ccp, head) + CCP_HEAD,
	       "headers and data are one frame");

struct esp_head {
	__be32 spi;
	__be32 sequence;
	__u32 iv[2];
};

/* Of the ESP packet around len bytes: padded with their trailer to a multiple of 4. */
static __always_inline __u32 esp_length(__u32 len)
{
	return ESP_HEAD + ((len + ESP_TRAILER + 3) & ~3U) + ESP_ICV;
}

static __always_inline struct esp_head *esp_head(struct ccp *c)
{
	return (void *)&c->head[CCP_HEAD - ESP_HEAD];
}

/* Nonce and additional data, from the ESP header in place and the number's high half. */
static __always_inline void esp_prepare(struct ccp *c, const __u32 *key, __u32 salt, __u32 high)
{
	const struct esp_head *head = esp_head(c);

	__builtin_memcpy(c->key, key, sizeof(c->key));
	c->nonce[0] = salt;
	c->nonce[1] = head->iv[0];
	c->nonce[2] = head->iv[1];
	c->aad[0] = head->spi;
	c->aad[1] = swap32(high);
	c->aad[2] = head->sequence;
	c->aad_len = 12;
}

/* --- sealing ---------------------------------------------------------------------------------- */

/* The len bytes in c->data become a sealed ESP packet, its header at the end of c->head and its ICV
 * at c->data + c->len.  The number is used up even if a later step fails.
 */
static __always_inline int esp_seal(struct ccp *c, struct sa_out *sa, __u32 len, __u32 next_header)
{
	struct esp_head *head = esp_head(c);
	__u64 sequence;
	__u32 pad;

	if (len > ESP_LONGEST)
		return DROP_TOO_BIG;
	sequence = sa_out_next(sa);
	if (!sequence)
		return DROP_SA_EXPIRED;
	head->spi = sa->spi;
	head->sequence = swap32(sequence);
	head->iv[0] = swap32(sequence >> 32);
	head->iv[1] = swap32(sequence);
	pad = -(len + ESP_TRAILER) & 3;
	c->data[len] = 1;
	c->data[len + 1] = 2;
	c->data[len + 2] = 3;
	len += pad;
	c->data[len] = pad;
	c->data[len + 1] = next_header;
	len += ESP_TRAILER;
	c->len = len;
	esp_prepare(c, sa->key, sa->salt, sequence >> 32);
	if (ccp_seal(c))
		return DROP_SEAL_FAILED;
	__builtin_memcpy(&c->data[len], c->tag, ESP_ICV);
	return REASON_NONE;
}

/* --- opening ---------------------------------------------------------------------------------- */

/* Is the ICV behind the data the one that ccp_tag made?  In time that depends on neither. */
static __always_inline int esp_is_authentic(const struct ccp *c, __u32 len)
{
	const __u32 *icv = (const __u32 *)&c->data[len];

	return !((icv[0] ^ c->tag[0]) | (icv[1] ^ c->tag[1]) | (icv[2] ^ c->tag[2]) |
		 (icv[3] ^ c->tag[3]));
}

/* Next header << 16 | length of what precedes the padding; or -1 if the padding is not as RFC 4303
 * §2.4 makes it.
 */
__noinline int esp_trailer(struct ccp *c)
{
	__u32 len, pad;

	if (!c)
		return -1;
	len = c->len;
	if (len < ESP_TRAILER || len > CCP_MAX)
		return -1;
	len -= ESP_TRAILER;
	pad = c->data[len];
	if (pad > len)
		return -1;
	opaque(pad); /* or the compiler drops the constant bound, and */
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < 255 && i < pad; i++) {
		__u32 at = len - pad + i, expected = i + 1;

		opaque(at);
		opaque(expected); /* ... goes on counting with the bytes compared */
		if (at >= CCP_MAX || c->data[at] != expected)
			return -1;
	}
	return (__u32)c->data[len + 1] << 16 | (len - pad);
}

/* The EtherType of the inner packet, and its length without the padding that may follow it (traffic
 * flow confidentiality, RFC 4303 §2.7); or -1 if next header, version and length do not agree.
 */
static __always_inline int esp_inner(const struct ccp *c, __u32 next_header, __u32 *len)
{
	const struct ipv6hdr *ipv6 = (const void *)c->data;
	const struct iphdr *ipv4 = (const void *)c->data;
	__u32 said, ethertype;

	if (next_header == IPPROTO_IPIP && *len >= sizeof(*ipv4) && ipv4->version == 4) {
		said = swap16(ipv4->tot_len);
		ethertype = swap16(ETH_P_IP);
	} else if (next_header == IPPROTO_IPV6 && *len >= sizeof(*ipv6) && ipv6->version == 6) {
		said = sizeof(*ipv6) + swap16(ipv6->payload_len);
		ethertype = swap16(ETH_P_IPV6);
	} else {
		return -1;
	}
	if (said > *len || said < sizeof(*ipv4))
		return -1;
	*len = said;
	return ethertype;
}
