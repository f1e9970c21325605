/* The hash of the DPF trees on AES instructions: H(x) = AES(s(x)) ^ s(x), s(hi||lo) = (hi^lo)||hi,
   for eight independent registers at a time, which hides the latency of a round. */

#ifndef VEILRUN_AES_H
#define VEILRUN_AES_H

#include "kernel.h"

#if VEILRUN_X86

#define AES __attribute__((target("sse4.1,aes")))
#define N_ROUND_KEYS 11
#define MAX_BLOCKS 2
#define MAX_PAYLOADS 2
#define MAX_AES_KEYS (1 + MAX_PAYLOADS * MAX_BLOCKS)
#define MAX_TABLES 4

#define SCHEDULE_STEP(i, rcon)                                                              \
  do {                                                                                      \
    __m128i key = round_keys[(i)-1];                                                        \
    const __m128i word = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(key, (rcon)), 0xff);   \
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));                                       \
    key = _mm_xor_si128(key, _mm_slli_si128(key, 8));                                       \
    round_keys[i] = _mm_xor_si128(key, word);                                               \
  } while (0)

AES static inline void schedule(const uint8_t *aes_key, __m128i *round_keys) {
  round_keys[0] = _mm_loadu_si128((const __m128i *)aes_key);
  SCHEDULE_STEP(1, 0x01);
  SCHEDULE_STEP(2, 0x02);
  SCHEDULE_STEP(3, 0x04);
  SCHEDULE_STEP(4, 0x08);
  SCHEDULE_STEP(5, 0x10);
  SCHEDULE_STEP(6, 0x20);
  SCHEDULE_STEP(7, 0x40);
  SCHEDULE_STEP(8, 0x80);
  SCHEDULE_STEP(9, 0x1b);
  SCHEDULE_STEP(10, 0x36);
}

AES INLINE __m128i sigma_128(__m128i x) {
  const __m128i high = _mm_set_epi64x(-1, 0);
  return _mm_xor_si128(_mm_shuffle_epi32(x, 0x4e), _mm_and_si128(x, high));
}

/* h = H(x); h may be x. */
AES INLINE void hash8_128(const __m128i *round_keys, const __m128i *x, __m128i *h) {
  __m128i s[8], state[8];
  for (int i = 0; i < 8; i++) {
    s[i] = sigma_128(x[i]);
    state[i] = _mm_xor_si128(s[i], round_keys[0]);
  }
  for (int round = 1; round < 10; round++)
    for (int i = 0; i < 8; i++) state[i] = _mm_aesenc_si128(state[i], round_keys[round]);
  for (int i = 0; i < 8; i++)
    h[i] = _mm_xor_si128(_mm_aesenclast_si128(state[i], round_keys[10]), s[i]);
}

/* All ones where the control bit, the lowest bit, is set. */
AES INLINE __m128i control_128(__m128i x) {
  const __m128i bits = _mm_and_si128(_mm_shuffle_epi32(x, 0), _mm_set1_epi32(1));
  return _mm_sub_epi32(_mm_setzero_si128(), bits);
}

/* The root: a seed whose lowest bit says whose it is. */
AES INLINE __m128i root_128(const uint8_t *seed, int32_t party) {
  const __m128i bit = _mm_set_epi64x(0, 1);
  const __m128i x = _mm_andnot_si128(bit, _mm_loadu_si128((const __m128i *)seed));
  return party ? _mm_or_si128(x, bit) : x;
}

AES INLINE __m128i add_lanes_128(int32_t out_bits, __m128i a, __m128i b) {
  if (out_bits == 16) return _mm_add_epi16(a, b);
  return out_bits == 32 ? _mm_add_epi32(a, b) : _mm_add_epi64(a, b);
}

AES INLINE __m128i sub_lanes_128(int32_t out_bits, __m128i a, __m128i b) {
  if (out_bits == 16) return _mm_sub_epi16(a, b);
  return out_bits == 32 ? _mm_sub_epi32(a, b) : _mm_sub_epi64(a, b);
}

/* The bytes of one key's correction, and where the leaf blocks of a payload begin in it. */
INLINE int64_t correction_bytes(const dpf_batch *batch) {
  return 16 * (int64_t)(batch->q + batch->m * batch->n_payloads);
}
INLINE int leaf_words(const dpf_batch *batch, int payload) {
  return batch->q + batch->m * payload;
}

/* What a look-up reads and writes, and the rows of its tables that are for one payload. */
typedef struct {
  const uint32_t *indices;
  const uint8_t *tables;
  int64_t stride, out_stride;
  uint8_t *out;
} lookup_job;

typedef struct {
  int payload, n;
  int of[MAX_TABLES];
} table_rows;

INLINE table_rows rows_of(int payload, int32_t n_tables, const int32_t *payload_of) {
  table_rows rows = {payload, 0, {0}};
  for (int t = 0; t < n_tables; t++)
    if (payload_of[t] == payload) rows.of[rows.n++] = t;
  return rows;
}

/* dpf_vaes.c: as the exported functions, for q >= 2 and m == 2 on processors with HAS_VAES. */
void vaes_lookup(const dpf_batch *batch, const lookup_job *job, const table_rows *rows,
                 void *scratch);
void vaes_expand(const dpf_batch *batch, void *scratch, void *out);

#endif
#endif
