// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* ChaCha20-Poly1305 (RFC 8439) for ESP (RFC 7634), on a packet copied into a per-CPU scratch value.
 *
 *     seal:  ccp_seal(c)                      data becomes ciphertext, c->tag is made
 *     open:  ccp_tag(c), compare, ccp_open(c) data stays ciphertext until the tag is known good
 *
 * All are global functions: the verifier checks each once, whoever calls it.  They want a pointer
 * to a whole struct ccp, and return 0, or -1 if c is null or its lengths are out of range.
 * Each core must have its own struct ccp, with preemption or migration off, as tc programs run.
 */
#ifndef PELLICLE_CHACHA20POLY1305_H
#define PELLICLE_CHACHA20POLY1305_H

#include "kernel.h"

#define CCP_MAX 2048 /* bytes of data at most; a multiple of 64 */
#define CCP_HEAD 80  /* room for the headers that travel in front of the data */

struct ccp {
	__u32 key[8];	/* little-endian words */
	__u32 nonce[3]; /* salt and IV, loaded as little-endian words */
	__u32 len;	/* bytes of data, 1..CCP_MAX */
	__u32 aad_len;	/* 8, or 12 with extended sequence numbers */
	__u32 aad[4];	/* as on the wire */
	__u32 tag[4];	/* out */
	__u32 r[4];	/* Poly1305's r and s: the first half of keystream block 0 */
	__u32 s[4];
	__u32 unused;
	/* One contiguous frame: head, data, and room for the tag.  The bytes of data[] from len up to
	 * the next multiple of 64 are overwritten by ccp_seal and ccp_open.
	 */
	__u8 head[CCP_HEAD];
	__u8 data[CCP_MAX + 64] __attribute__((aligned(8)));
};

/* --- ChaCha20, RFC 8439 §2.1–2.4 ---------------------------------------------------------------- */

/* BPF has no rotate.  x * (2^32 + 1) holds x twice side by side; one shift then takes the word that
 * starts at any bit.  Bits above the low 32 are rubbish, which 32-bit arithmetic ignores.
 */
#define rotate(x, bits) ((__u32)(((__u64)(x) * twice) >> (32 - (bits))))

#define quarter(a, b, c, d)                                                                        \
	(a += b, d ^= a, d = rotate(d, 16), c += d, b ^= c, b = rotate(b, 12),                     \
	 a += b, d ^= a, d = rotate(d, 8), c += d, b ^= c, b = rotate(b, 7))

/* Keystream block n: block 0 makes the one-time key of Poly1305 (RFC 8439 §2.6), the block n after it
 * is added to the 64 bytes of data from (n - 1) * 64 on.
 */
__noinline int ccp_block(struct ccp *c, __u32 n)
{
	__u64 twice;
	__u32 x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15;
	__u32 *data;

	if (!c || n > CCP_MAX / 64)
		return -1;
	asm volatile("%0 = 0x100000001 ll" : "=r"(twice)); /* or the compiler makes shifts of it */
	x0 = 0x61707865; /* "expand 32-byte k" */
	x1 = 0x3320646e;
	x2 = 0x79622d32;
	x3 = 0x6b206574;
	x4 = c->key[0];
	x5 = c->key[1];
	x6 = c->key[2];
	x7 = c->key[3];
	x8 = c->key[4];
	x9 = c->key[5];
	x10 = c->key[6];
	x11 = c->key[7];
	x12 = n;
	x13 = c->nonce[0];
	x14 = c->nonce[1];
	x15 = c->nonce[2];
#pragma clang loop unroll(disable)
	for (int i = 0; i < 10; i++) {
		quarter(x0, x4, x8, x12);
		quarter(x1, x5, x9, x13);
		quarter(x2, x6, x10, x14);
		quarter(x3, x7, x11, x15);
		quarter(x0, x5, x10, x15);
		quarter(x1, x6, x11, x12);
		quarter(x2, x7, x8, x13);
		quarter(x3, x4, x9, x14);
	}
	if (n == 0) { /* r is clamped: RFC 8439 §2.5 */
		c->r[0] = (x0 + 0x61707865) & 0x0fffffff;
		c->r[1] = (x1 + 0x3320646e) & 0x0ffffffc;
		c->r[2] = (x2 + 0x79622d32) & 0x0ffffffc;
		c->r[3] = (x3 + 0x6b206574) & 0x0ffffffc;
		c->s[0] = x4 + c->key[0];
		c->s[1] = x5 + c->key[1];
		c->s[2] = x6 + c->key[2];
		c->s[3] = x7 + c->key[3];
		return 0;
	}
	data = (__u32 *)&c->data[(n - 1) * 64];
	data[0] ^= x0 + 0x61707865;
	data[1] ^= x1 + 0x3320646e;
	data[2] ^= x2 + 0x79622d32;
	data[3] ^= x3 + 0x6b206574;
	data[4] ^= x4 + c->key[0];
	data[5] ^= x5 + c->key[1];
	data[6] ^= x6 + c->key[2];
	data[7] ^= x7 + c->key[3];
	data[8] ^= x8 + c->key[4];
	data[9] ^= x9 + c->key[5];
	data[10] ^= x10 + c->key[6];
	data[11] ^= x11 + c->key[7];
	data[12] ^= x12 + n;
	data[13] ^= x13 + c->nonce[0];
	data[14] ^= x14 + c->nonce[1];
	data[15] ^= x15 + c->nonce[2];
	return 0;
}

/* --- Poly1305, RFC 8439 §2.5 --------------------------------------------------------------------- */

/* The accumulator and the clamped r in limbs of 32 bits.  r < 2^28 in each limb and r1..r3 are
 * multiples of 4, so t_i = 5/4 r_i folds what passes 2^130, and no sum of products passes 2^63.
 */
struct poly {
	__u64 h0, h1, h2, h3, h4;
	__u64 r0, r1, r2, r3, t1, t2, t3;
};

/* h = (h + block + 2^128) * r mod 2^130 - 5, not fully reduced */
static __always_inline void poly_add(struct poly *p, __u32 m0, __u32 m1, __u32 m2, __u32 m3)
{
	__u64 h0, h1, h2, h3, h4, d0, d1, d2, d3, d4;

	h0 = p->h0 + m0;
	h1 = p->h1 + m1 + (h0 >> 32);
	h2 = p->h2 + m2 + (h1 >> 32);
	h3 = p->h3 + m3 + (h2 >> 32);
	h4 = p->h4 + 1 + (h3 >> 32);
	h0 = (__u32)h0;
	h1 = (__u32)h1;
	h2 = (__u32)h2;
	h3 = (__u32)h3;
	d0 = h0 * p->r0 + h1 * p->t3 + h2 * p->t2 + h3 * p->t1;
	d1 = h0 * p->r1 + h1 * p->r0 + h2 * p->t3 + h3 * p->t2 + h4 * p->t1;
	d2 = h0 * p->r2 + h1 * p->r1 + h2 * p->r0 + h3 * p->t3 + h4 * p->t2;
	d3 = h0 * p->r3 + h1 * p->r2 + h2 * p->r1 + h3 * p->r0 + h4 * p->t3;
	d4 = h4 * p->r0;
	d1 += d0 >> 32;
	d2 += d1 >> 32;
	d3 += d2 >> 32;
	d4 += d3 >> 32;
	p->h0 = (__u32)d0 + (d4 >> 2) * 5;
	p->h1 = (__u32)d1;
	p->h2 = (__u32)d2;
	p->h3 = (__u32)d3;
	p->h4 = d4 & 3;
}

/* tag = (h mod 2^130 - 5) + s mod 2^128 */
static __always_inline void poly_tag(struct ccp *c, struct poly *p)
{
	__u64 g0, g1, g2, g3, over;

	p->h1 += p->h0 >> 32;
	p->h2 += p->h1 >> 32;
	p->h3 += p->h2 >> 32;
	p->h4 += p->h3 >> 32;
	g0 = (__u32)p->h0 + 5ULL;
	g1 = (__u32)p->h1 + (g0 >> 32);
	g2 = (__u32)p->h2 + (g1 >> 32);
	g3 = (__u32)p->h3 + (g2 >> 32);
	over = (p->h4 + (g3 >> 32)) >> 2; /* h >= 2^130 - 5, at most 1 or 2 times */
	g0 = (__u64)(__u32)p->h0 + over * 5 + c->s[0];
	g1 = (__u64)(__u32)p->h1 + c->s[1] + (g0 >> 32);
	g2 = (__u64)(__u32)p->h2 + c->s[2] + (g1 >> 32);
	g3 = (__u64)(__u32)p->h3 + c->s[3] + (g2 >> 32);
	c->tag[0] = g0;
	c->tag[1] = g1;
	c->tag[2] = g2;
	c->tag[3] = g3;
}

/* word number i of what remains of a block, bytes past the end as zero (RFC 8439 §2.8 padding) */
static __always_inline __u32 word_upto(const __u32 *words, __u32 i, __u32 len)
{
	__u32 left = len > i * 4 ? len - i * 4 : 0;

	return left >= 4 ? words[i] : words[i] & ((1U << (left * 8)) - 1);
}

static __always_inline void poly_add_upto(struct poly *p, const __u32 *words, __u32 len)
{
	poly_add(p, word_upto(words, 0, len), word_upto(words, 1, len), word_upto(words, 2, len),
		 word_upto(words, 3, len));
}

/* The AEAD construction, RFC 8439 §2.8: aad, ciphertext, both padded to 16, and their lengths.
 * Wants r and s in place.
 */
__noinline int ccp_poly(struct ccp *c)
{
	struct poly p = {};
	__u32 len, at;

	if (!c)
		return -1;
	len = c->len;
	p.r0 = c->r[0];
	p.r1 = c->r[1];
	p.r2 = c->r[2];
	p.r3 = c->r[3];
	p.t1 = p.r1 + (p.r1 >> 2);
	p.t2 = p.r2 + (p.r2 >> 2);
	p.t3 = p.r3 + (p.r3 >> 2);
	poly_add_upto(&p, c->aad, c->aad_len);
#pragma clang loop unroll(disable)
	for (at = 0; at < CCP_MAX && at + 16 <= len; at += 16) {
		const __u32 *words = (const __u32 *)&c->data[at];

		poly_add(&p, words[0], words[1], words[2], words[3]);
	}
	if (len & 15) {
		at = len & (CCP_MAX - 16);
		poly_add_upto(&p, (const __u32 *)&c->data[at], len & 15);
	}
	poly_add(&p, c->aad_len, 0, len, 0);
	poly_tag(c, &p);
	return 0;
}

/* --- the three verbs ----------------------------------------------------------------------------- */

static __always_inline int ccp_is_bad(struct ccp *c)
{
	return !c || c->len - 1 >= CCP_MAX || c->aad_len > 16;
}

__noinline int ccp_open(struct ccp *c)
{
	__u32 blocks;

	if (ccp_is_bad(c))
		return -1;
	blocks = (c->len + 63) / 64;
	for (__u32 n = 1; n <= CCP_MAX / 64; n++) {
		if (n > blocks)
			break;
		ccp_block(c, n);
	}
	return 0;
}

__noinline int ccp_tag(struct ccp *c)
{
	if (ccp_is_bad(c))
		return -1;
	ccp_block(c, 0);
	return ccp_poly(c);
}

__noinline int ccp_seal(struct ccp *c)
{
	if (ccp_is_bad(c))
		return -1;
	ccp_open(c);
	return ccp_tag(c);
}

#endif
