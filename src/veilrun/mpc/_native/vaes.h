/* What the VAES files share: the hash on 512-bit registers, four 128-bit nodes in each. */

#ifndef VEILRUN_VAES_H
#define VEILRUN_VAES_H

#include "aes.h"

#if VEILRUN_X86

#define VAES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,vaes,aes,sse4.1")))
#define KEYS 4

/* The tree's, then those of the leaf blocks. */
typedef struct {
  __m512i all[MAX_AES_KEYS][N_ROUND_KEYS];
} wide_keys;

VAES static inline void schedule_wide(const dpf_batch *batch, wide_keys *keys) {
  for (int c = 0; c <= batch->m * batch->n_payloads; c++) {
    __m128i narrow[N_ROUND_KEYS];
    schedule(batch->aes_keys + 16 * c, narrow);
    for (int i = 0; i < N_ROUND_KEYS; i++) keys->all[c][i] = _mm512_broadcast_i32x4(narrow[i]);
  }
}

VAES INLINE __m512i load_four(const uint8_t *base, int64_t stride, const int64_t *keys) {
  __m512i all = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(base + keys[0] * stride)));
  all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(base + keys[1] * stride)), 1);
  all = _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(base + keys[2] * stride)), 2);
  return _mm512_inserti32x4(all, _mm_loadu_si128((const __m128i *)(base + keys[3] * stride)), 3);
}

VAES INLINE __m512i sigma_512(__m512i x) {
  const __m512i high = _mm512_set_epi64(-1, 0, -1, 0, -1, 0, -1, 0);
  /* shuffled ^ (x & high) */
  return _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(x, 0x4e), x, high, 0x78);
}

/* Which 64-bit halves belong to a node whose control bit is set. */
VAES INLINE __mmask8 control_512(__m512i x) {
  return _mm512_test_epi64_mask(_mm512_shuffle_epi32(x, 0x44), _mm512_set1_epi64(1));
}

VAES INLINE void encrypt8(const __m512i *keys_a, const __m512i *keys_b, __m512i *state) {
  for (int i = 0; i < 8; i++) state[i] = _mm512_xor_si512(state[i], (i < 4 ? keys_a : keys_b)[0]);
  for (int round = 1; round < 10; round++)
    for (int i = 0; i < 8; i++)
      state[i] = _mm512_aesenc_epi128(state[i], (i < 4 ? keys_a : keys_b)[round]);
  for (int i = 0; i < 8; i++)
    state[i] = _mm512_aesenclast_epi128(state[i], (i < 4 ? keys_a : keys_b)[10]);
}

/* From four blocks of four keys to four keys of four blocks. */
VAES INLINE void turn(__m512i a, __m512i b, __m512i c, __m512i d, __m512i *to) {
  const __m512i ab01 = _mm512_shuffle_i32x4(a, b, 0x44), ab23 = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd01 = _mm512_shuffle_i32x4(c, d, 0x44), cd23 = _mm512_shuffle_i32x4(c, d, 0xee);
  to[0] = _mm512_shuffle_i32x4(ab01, cd01, 0x88);
  to[1] = _mm512_shuffle_i32x4(ab01, cd01, 0xdd);
  to[2] = _mm512_shuffle_i32x4(ab23, cd23, 0x88);
  to[3] = _mm512_shuffle_i32x4(ab23, cd23, 0xdd);
}

VAES INLINE __m512i pairs_32(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
VAES INLINE __m512i pairs_64(__m512i a, __m512i b) {
  return _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* The sums of the 32-bit lanes of four registers. By hand: gcc's _mm512_reduce_add_* end in a sum
   of signed integers, which must not overflow. */
VAES INLINE __m128i sum_32(const __m512i *acc) {
  const __m512i ab = pairs_32(acc[0], acc[1]), cd = pairs_32(acc[2], acc[3]);
  const __m512i all =
      _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

VAES INLINE __m256i sum_64(const __m512i *acc) {
  const __m512i ab = pairs_64(acc[0], acc[1]), cd = pairs_64(acc[2], acc[3]);
  const __m512i all = _mm512_add_epi64(_mm512_shuffle_i64x2(ab, cd, 0x88),
                                       _mm512_shuffle_i64x2(ab, cd, 0xdd));
  /* all: ab, ab, cd, cd */
  const __m512i both = _mm512_add_epi64(all, _mm512_shuffle_i64x2(all, all, 0xb1));
  return _mm512_castsi512_si256(_mm512_shuffle_i64x2(both, both, 0x08));
}

/* Sums, or for party 1 their negatives, to out[at..at + n_real). */
VAES INLINE void store_sums(int32_t out_bits, int32_t party, __m512i *acc, uint8_t *out, int64_t at,
                            int n_real) {
  const __mmask8 real = (__mmask8)((1u << n_real) - 1);
  if (out_bits == 64) {
    __m256i sums = sum_64(acc);
    if (party) sums = _mm256_sub_epi64(_mm256_setzero_si256(), sums);
    _mm256_mask_storeu_epi64(out + 8 * at, real, sums);
    return;
  }
  if (out_bits == 16)
    for (int k = 0; k < KEYS; k++) acc[k] = _mm512_madd_epi16(acc[k], _mm512_set1_epi16(1));
  __m128i sums = sum_32(acc);
  if (party) sums = _mm_sub_epi32(_mm_setzero_si128(), sums);
  if (out_bits == 32) _mm_mask_storeu_epi32(out + 4 * at, real, sums);
  else _mm_mask_storeu_epi16(out + 2 * at, real, _mm_cvtepi32_epi16(sums));
}

#endif
#endif
