// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* ChaCha20-Poly1305 (RFC 8439) as ESP uses it (RFC 7634), on a packet copied into per-CPU scratch.
 *
 *     seal   ccp_seal(c)                        data becomes ciphertext, c->tag is made
 *     open   ccp_tag(c), compare, ccp_open(c)   data stays ciphertext until the tag is known good
 *
 * All are global functions: the verifier checks each of them once, whoever calls.  They take a
 * whole struct ccp and return 0, or -1 for a null pointer or a length out of range.  A struct ccp
 * belongs to one CPU at a time.  How the shape of this code was found: docs/performance.md.
 */
#pragma once
#include "kernel.h"

#define CCP_MAX 2048 /* bytes of data at most; a multiple of 64 */
#define CCP_HEAD 80  /* room for the headers that travel before the data; a multiple of 8 */

struct ccp {
	__u32 key[8];	 /* little-endian words, as are all below */
	__u32 nonce[3];	 /* salt, then the IV */
	__u32 len;	 /* bytes of data, 1..CCP_MAX */
	__u32 aad_len;	 /* 8, or 12 with extended sequence numbers */
	__u32 aad[4];	 /* as on the wire; what lies past aad_len is not looked at */
	__u32 tag[4];	 /* out */
	__u32 start[16]; /* the state that all blocks of a packet share, see ccp_start */
	__u32 r[4];	 /* Poly1305's one-time key */
	__u32 s[4];
	/* One frame without gaps: head, data, tag.  ccp_seal and ccp_open also overwrite data[] from
	 * len up to the next multiple of 64: write the tag there after sealing, compare it before opening.
	 */
	__u8 head[CCP_HEAD] __attribute__((aligned(8)));
	__u8 data[CCP_MAX + 64] __attribute__((aligned(8)));
};

/* --- ChaCha20, RFC 8439 §2.1–2.4 ---------------------------------------------------------- */

enum { CCP_EXPA = 0x61707865, CCP_ND_3 = 0x3320646e, CCP_2_BY = 0x79622d32, CCP_TE_K = 0x6b206574 };

/* A quarter of a quarter round: a += b; d ^= a; d <<<= n.  The asm keeps sum and difference where
 * their operands were; left alone, the compiler copies and spills a sixth more.
 */
#define ccp_step(a, b, d, n)                                                                       \
	do {                                                                                       \
		asm volatile("%0 += %2\n%1 ^= %0" : "+w"(a), "+w"(d) : "w"(b));                    \
		d = d << (n) | d >> (32 - (n));                                                    \
	} while (0)

#define ccp_steps(a0, a1, a2, a3, b0, b1, b2, b3, d0, d1, d2, d3, n)                               \
	do {                                                                                       \
		ccp_step(a0, b0, d0, n);                                                           \
		ccp_step(a1, b1, d1, n);                                                           \
		ccp_step(a2, b2, d2, n);                                                           \
		ccp_step(a3, b3, d3, n);                                                           \
	} while (0)

/* Four quarter rounds side by side: they share nothing, so the CPU runs them together. */
#define ccp_round(a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)                  \
	do {                                                                                       \
		ccp_steps(a0, a1, a2, a3, b0, b1, b2, b3, d0, d1, d2, d3, 16);                     \
		ccp_steps(c0, c1, c2, c3, d0, d1, d2, d3, b0, b1, b2, b3, 12);                     \
		ccp_steps(a0, a1, a2, a3, b0, b1, b2, b3, d0, d1, d2, d3, 8);                      \
		ccp_steps(c0, c1, c2, c3, d0, d1, d2, d3, b0, b1, b2, b3, 7);                      \
	} while (0)

#define ccp_columns() \
	ccp_round(x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15)
#define ccp_diagonals() \
	ccp_round(x0, x1, x2, x3, x5, x6, x7, x4, x10, x11, x8, x9, x15, x12, x13, x14)

/* A whole quarter round, its words stored as a column. */
static __always_inline void ccp_quarter(__u32 *out, __u32 a, __u32 b, __u32 c, __u32 d)
{
	ccp_step(a, b, d, 16);
	ccp_step(c, d, b, 12);
	ccp_step(a, b, d, 8);
	ccp_step(c, d, b, 7);
	out[0] = a;
	out[4] = b;
	out[8] = c;
	out[12] = d;
}

/* The block counter stands in the first column, so the first round does the same to the other three
 * in every block of a packet: do it once.
 */
__noinline int ccp_start(struct ccp *c)
{
	if (!c)
		return -1;
	ccp_quarter(&c->start[1], CCP_ND_3, c->key[1], c->key[5], c->nonce[0]);
	ccp_quarter(&c->start[2], CCP_2_BY, c->key[2], c->key[6], c->nonce[1]);
	ccp_quarter(&c->start[3], CCP_TE_K, c->key[3], c->key[7], c->nonce[2]);
	return 0;
}

#define ccp_xor(to, low, high) (to ^= (__u64)(__u32)(low) | (__u64)(__u32)(high) << 32)

/* Block n of the key stream, after ccp_start.  Block 0 becomes the key of Poly1305 (RFC 8439 §2.6),
 * each later one is added to the 64 bytes of data from (n - 1) * 64 on.
 */
__noinline int ccp_block(struct ccp *c, __u32 n)
{
	if (!c || n > CCP_MAX / 64)
		return -1;
	ccp_quarter(&c->start[0], CCP_EXPA, c->key[0], c->key[4], n);
	__u32 x0 = c->start[0], x1 = c->start[1], x2 = c->start[2], x3 = c->start[3];
	__u32 x4 = c->start[4], x5 = c->start[5], x6 = c->start[6], x7 = c->start[7];
	__u32 x8 = c->start[8], x9 = c->start[9], x10 = c->start[10], x11 = c->start[11];
	__u32 x12 = c->start[12], x13 = c->start[13], x14 = c->start[14], x15 = c->start[15];
	ccp_diagonals();
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < 9; i++) {
		ccp_columns();
		ccp_diagonals();
	}
	if (n == 0) { /* with r clamped, RFC 8439 §2.5 */
		c->r[0] = (x0 + CCP_EXPA) & 0x0fffffff;
		c->r[1] = (x1 + CCP_ND_3) & 0x0ffffffc;
		c->r[2] = (x2 + CCP_2_BY) & 0x0ffffffc;
		c->r[3] = (x3 + CCP_TE_K) & 0x0ffffffc;
		c->s[0] = x4 + c->key[0];
		c->s[1] = x5 + c->key[1];
		c->s[2] = x6 + c->key[2];
		c->s[3] = x7 + c->key[3];
		return 0;
	}
	n--;
	opaque(n); /* so that the bound stands here for every verifier */
	__u64 *data = (__u64 *)&c->data[n % (CCP_MAX / 64) * 64];

	ccp_xor(data[0], x0 + CCP_EXPA, x1 + CCP_ND_3);
	ccp_xor(data[1], x2 + CCP_2_BY, x3 + CCP_TE_K);
	ccp_xor(data[2], x4 + c->key[0], x5 + c->key[1]);
	ccp_xor(data[3], x6 + c->key[2], x7 + c->key[3]);
	ccp_xor(data[4], x8 + c->key[4], x9 + c->key[5]);
	ccp_xor(data[5], x10 + c->key[6], x11 + c->key[7]);
	ccp_xor(data[6], x12 + n + 1, x13 + c->nonce[0]);
	ccp_xor(data[7], x14 + c->nonce[1], x15 + c->nonce[2]);
	return 0;
}

/* --- Poly1305, RFC 8439 §2.5 -------------------------------------------------------------- */

/* The accumulator h = h0 + h1 2^32 + … + h4 2^128 and the clamped r, in 64-bit words.  As r's limbs
 * are below 2^28 and r1..r3 are multiples of 4, what passes 2^130 comes back through t = 5/4 r.
 */
struct poly {
	__u64 h0, h1, h2, h3, h4, r0, r1, r2, r3, t1, t2, t3;
};

/* the low 32 bits in one move; left alone, the compiler shifts them up and down */
static __always_inline __u64 low32(__u64 value)
{
	__u32 low = value;

	asm("%0 = %0" : "+w"(low));
	return low;
}

/* h = (h + block + 2^128) * r modulo 2^130 - 5, roughly: each limb hands its carry to the next only,
 * all at once.  In units of 2^32 that leaves h0 <= 1, h1 h2 h3 < 1.84, h4 < 0.71, so the sums stay
 * below 13.4 * 2^60 < 2^64, and hand on less than 0.84: a fixed point.
 */
static __always_inline void poly_add(struct poly *p, __u32 m0, __u32 m1, __u32 m2, __u32 m3)
{
	__u64 h0 = p->h0 + m0, h1 = p->h1 + m1, h2 = p->h2 + m2, h3 = p->h3 + m3, h4 = p->h4 + 1;
	__u64 d0, d1, d2, d3, d4 = h4 * p->r0;

	d0 = h0 * p->r0 + h1 * p->t3 + h2 * p->t2 + h3 * p->t1 + (d4 & ~3ULL) + (d4 >> 2);
	d1 = h0 * p->r1 + h1 * p->r0 + h2 * p->t3 + h3 * p->t2 + h4 * p->t1;
	d2 = h0 * p->r2 + h1 * p->r1 + h2 * p->r0 + h3 * p->t3 + h4 * p->t2;
	d3 = h0 * p->r3 + h1 * p->r2 + h2 * p->r1 + h3 * p->r0 + h4 * p->t3;
	p->h0 = low32(d0);
	p->h1 = low32(d1) + (d0 >> 32);
	p->h2 = low32(d2) + (d1 >> 32);
	p->h3 = low32(d3) + (d2 >> 32);
	p->h4 = (d4 & 3) + (d3 >> 32);
}

/* h = h + add 2^0, every limb below 2^32 */
static __always_inline void poly_carry(struct poly *p, __u64 add)
{
	p->h0 += add;
	p->h1 += p->h0 >> 32;
	p->h2 += p->h1 >> 32;
	p->h3 += p->h2 >> 32;
	p->h4 += p->h3 >> 32;
	p->h0 = low32(p->h0);
	p->h1 = low32(p->h1);
	p->h2 = low32(p->h2);
	p->h3 = low32(p->h3);
}

/* tag = (h modulo 2^130 - 5) + s modulo 2^128 */
static __always_inline void poly_tag(struct ccp *c, struct poly *p)
{
	__u64 over;

	poly_carry(p, 0);
	over = p->h4 >> 2;
	p->h4 &= 3;
	poly_carry(p, over * 5);
	/* now h < 2^130 + small: one more 5 goes in exactly if h + 5 reaches 2^130 */
	over = (p->h0 + 5) >> 32;
	over = (p->h1 + over) >> 32;
	over = (p->h2 + over) >> 32;
	over = (p->h3 + over) >> 32;
	over = (p->h4 + over) >> 2;
	p->h1 += c->s[1];
	p->h2 += c->s[2];
	p->h3 += c->s[3];
	poly_carry(p, over * 5 + c->s[0]);
	c->tag[0] = p->h0;
	c->tag[1] = p->h1;
	c->tag[2] = p->h2;
	c->tag[3] = p->h3;
}

/* word i of a block of which only len bytes count, the others being zero (RFC 8439 §2.8) */
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

/* The AEAD construction, RFC 8439 §2.8: aad, ciphertext, both padded to 16, and their lengths. */
__noinline int ccp_poly(struct ccp *c)
{
	if (!c)
		return -1;
	const __u32 len = c->len;
	struct poly p = { .r0 = c->r[0], .r1 = c->r[1], .r2 = c->r[2], .r3 = c->r[3] };

	p.t1 = p.r1 + (p.r1 >> 2);
	p.t2 = p.r2 + (p.r2 >> 2);
	p.t3 = p.r3 + (p.r3 >> 2);
	poly_add_upto(&p, c->aad, c->aad_len);
#pragma clang loop unroll(disable)
	for (__u64 at = 0; at < CCP_MAX && at + 16 <= len; at += 16) {
		const __u32 *words = (const __u32 *)&c->data[at];

		poly_add(&p, words[0], words[1], words[2], words[3]);
	}
	/* read anew, so that the verifier need not tell apart what each turn of the loop taught it */
	const __u32 tail = *(volatile __u32 *)&c->len;

	if (tail & 15)
		poly_add_upto(&p, (__u32 *)&c->data[tail & (CCP_MAX - 16)], tail & 15);
	poly_add(&p, c->aad_len, 0, len, 0);
	poly_tag(c, &p);
	return 0;
}

/* --- the three verbs ---------------------------------------------------------------------- */

static __always_inline int ccp_is_bad(const struct ccp *c)
{
	return !c || c->len - 1 >= CCP_MAX || c->aad_len - 1 >= sizeof(c->aad);
}

/* Decrypts in place, after ccp_tag. */
__noinline int ccp_open(struct ccp *c)
{
	__u32 blocks;

	if (ccp_is_bad(c))
		return -1;
	blocks = (c->len + 63) / 64;
	for (__u32 n = 1; n <= CCP_MAX / 64 && n <= blocks; n++)
		ccp_block(c, n);
	return 0;
}

/* Makes the tag over aad and data, which is ciphertext, and leaves the data alone. */
__noinline int ccp_tag(struct ccp *c)
{
	if (ccp_is_bad(c))
		return -1;
	ccp_start(c);
	ccp_block(c, 0);
	return ccp_poly(c);
}

/* Encrypts in place and makes the tag. */
__noinline int ccp_seal(struct ccp *c)
{
	if (ccp_is_bad(c))
		return -1;
	ccp_start(c);
	ccp_open(c);
	ccp_block(c, 0);
	return ccp_poly(c);
}
