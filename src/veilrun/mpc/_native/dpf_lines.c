/* Straight lines by point functions of two payloads with VAES, tables of one cache line or a few.

   Four keys to a register down to four nodes each; then turned, to four nodes of one key. From
   there a register's quarters are quarters of the domain, so the table is laid out likewise: a row
   is 16 bytes of each quarter, and no lane moves on the way to its product. */

#include "vaes.h"

#if !VEILRUN_X86

/* Never called: veilrun_features() names neither feature here. */
EXPORT uint64_t veilrun_dpf_lines(const dpf_batch *batch, const dpf_lines *lines, void *scratch,
                                  void *out) {
  (void)batch, (void)lines, (void)scratch, (void)out;
  return 0;
}

#else

#define LINES                                                                                 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,vaes,aes,sse4.1")))
#define GROUP 8             /* keys that grow together below the turn */
#define WIDE (KEYS * GROUP) /* and above it */

typedef struct {
  const dpf_batch *batch;
  const dpf_lines *lines;
  const wide_keys *keys;
  uint64_t low_mask;
  uint32_t size_mask, lane_mask;
  int lane_bits;
  int64_t n_rows; /* of each of the copies, one for each lane of a piece */
  __m512i flagged;
} job;

/* h = H(x) for eight registers under one key. */
LINES INLINE void hash8_512(const __m512i *round_keys, const __m512i *x, __m512i *h) {
  for (int i = 0; i < 8; i++) h[i] = sigma_512(x[i]);
  encrypt8(round_keys, round_keys, h);
  for (int i = 0; i < 8; i++) h[i] = _mm512_xor_si512(h[i], sigma_512(x[i]));
}

LINES INLINE void children(__m512i x, __m512i hash, __m512i word, __m512i *left, __m512i *right) {
  *left = _mm512_mask_xor_epi64(hash, control_512(x), hash, word);
  *right = _mm512_xor_si512(*left, x);
}

/* The first two levels of 32 keys, the last repeated where there are fewer: nodes[key] has the
   four nodes of one key. */
LINES static void grow_wide(const job *job, int64_t first, __m512i *nodes) {
  const dpf_batch *batch = job->batch;
  const int64_t size = correction_bytes(batch), left = batch->n_keys - first;
  const __m512i bit = _mm512_set_epi64(0, 1, 0, 1, 0, 1, 0, 1);
  __m512i x[GROUP], h[GROUP], y[2 * GROUP];
  int64_t of[WIDE];
  for (int k = 0; k < WIDE; k++) of[k] = first + (k < left ? k : left - 1);
  for (int c = 0; c < GROUP; c++) {
    x[c] = _mm512_andnot_si512(bit, load_four(batch->seeds, 16, of + KEYS * c));
    if (batch->party) x[c] = _mm512_or_si512(x[c], bit);
  }
  hash8_512(job->keys->all[0], x, h);
  for (int c = 0; c < GROUP; c++)
    children(x[c], h[c], load_four(batch->corrections, size, of + KEYS * c), &y[2 * c],
             &y[2 * c + 1]);
  for (int half = 0; half < 2; half++) {
    hash8_512(job->keys->all[0], y + GROUP * half, h);
    for (int c = 0; c < GROUP / 2; c++) {
      const int64_t *four = of + KEYS * (c + GROUP / 2 * half);
      const __m512i *parent = y + GROUP * half + 2 * c;
      const __m512i word = load_four(batch->corrections + 16, size, four);
      __m512i z[4];
      children(parent[0], h[2 * c], word, &z[0], &z[1]);
      children(parent[1], h[2 * c + 1], word, &z[2], &z[3]);
      turn(z[0], z[1], z[2], z[3], nodes + KEYS * (c + GROUP / 2 * half));
    }
  }
}

LINES INLINE __m512i broadcast(const uint8_t *at) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)at));
}

/* The other levels of eight keys, in place: [node][key], a level read from its last node down.
   words: of the n_real keys. */
LINES static void grow_tall(const job *job, const uint8_t *const *words, __m512i *nodes) {
  for (int level = 2; level < job->batch->q; level++)
    for (int64_t node = ((int64_t)1 << (level - 2)) - 1; node >= 0; node--) {
      __m512i x[GROUP], h[GROUP];
      for (int k = 0; k < GROUP; k++) x[k] = nodes[node * GROUP + k];
      hash8_512(job->keys->all[0], x, h);
      for (int k = 0; k < GROUP; k++)
        children(x[k], h[k], broadcast(words[k] + 16 * level), &nodes[2 * node * GROUP + k],
                 &nodes[(2 * node + 1) * GROUP + k]);
    }
}

/* Which lanes belong to a node whose control bit is set. */
LINES INLINE __mmask32 control_lanes(int32_t out_bits, __m512i x) {
  if (out_bits == 64) return control_512(x);
  const __m512i all = _mm512_shuffle_epi32(x, 0);
  if (out_bits == 32) return _mm512_test_epi32_mask(all, _mm512_set1_epi32(1));
  const __m512i words = _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(all, 0), 0);
  return _mm512_test_epi16_mask(words, _mm512_set1_epi16(1));
}

LINES INLINE __m512i add(int32_t out_bits, __m512i a, __m512i b) {
  if (out_bits == 16) return _mm512_add_epi16(a, b);
  return out_bits == 32 ? _mm512_add_epi32(a, b) : _mm512_add_epi64(a, b);
}

LINES INLINE __m512i subtract(int32_t out_bits, __m512i a, __m512i b) {
  if (out_bits == 16) return _mm512_sub_epi16(a, b);
  return out_bits == 32 ? _mm512_sub_epi32(a, b) : _mm512_sub_epi64(a, b);
}

LINES INLINE __m512i multiply(int32_t out_bits, __m512i a, __m512i b) {
  if (out_bits == 16) return _mm512_mullo_epi16(a, b);
  return out_bits == 32 ? _mm512_mullo_epi32(a, b) : _mm512_mullo_epi64(a, b);
}

/* a + b in the lanes of the mask, a in the others. */
LINES INLINE __m512i add_some(int32_t out_bits, __m512i a, __mmask32 mask, __m512i b) {
  if (out_bits == 16) return _mm512_mask_add_epi16(a, mask, a, b);
  if (out_bits == 32) return _mm512_mask_add_epi32(a, (__mmask16)mask, a, b);
  return _mm512_mask_add_epi64(a, (__mmask8)mask, a, b);
}

/* The leaf blocks of two registers of nodes: of payload 0, then of payload 1, both nodes' first
   block and then both nodes' second. */
LINES INLINE void leaves(int32_t out_bits, const wide_keys *keys, const __m512i *words,
                        const __m512i *x, __m512i *block) {
  __mmask32 control[2];
  __m512i s[2];
  for (int i = 0; i < 2; i++) {
    s[i] = sigma_512(x[i]);
    control[i] = control_lanes(out_bits, x[i]);
  }
  for (int i = 0; i < 8; i++) block[i] = _mm512_xor_si512(s[i & 1], keys->all[1 + i / 2][0]);
  for (int round = 1; round < 10; round++)
    for (int i = 0; i < 8; i++)
      block[i] = _mm512_aesenc_epi128(block[i], keys->all[1 + i / 2][round]);
  for (int i = 0; i < 8; i++) {
    block[i] = _mm512_aesenclast_epi128(block[i], keys->all[1 + i / 2][10]);
    block[i] = add_some(out_bits, _mm512_xor_si512(block[i], s[i & 1]), control[i & 1],
                        words[i / 2]);
  }
}

INLINE uint64_t opened_at(const dpf_lines *lines, int64_t i) {
  if (lines->item_bytes == 2) return ((const uint16_t *)lines->opened)[i];
  if (lines->item_bytes == 4) return ((const uint32_t *)lines->opened)[i];
  return ((const uint64_t *)lines->opened)[i];
}

LINES INLINE __m512i every_lane(int32_t out_bits, uint64_t value) {
  if (out_bits == 16) return _mm512_set1_epi16((short)value);
  return out_bits == 32 ? _mm512_set1_epi32((int)value) : _mm512_set1_epi64((long long)value);
}

/* total + u (value + low slope) - v slope. narrow: low and slope are signed numbers of 16 bits. */
LINES INLINE __m512i dot(int32_t out_bits, int narrow, __m512i total, __m512i u, __m512i v,
                         __m512i low, __m512i value, __m512i slope) {
  if (narrow) {
    /* One product of 16 bits, the other half of low being 0, in place of one of 32. */
    const __m512i height = _mm512_dpwssd_epi32(value, slope, low);
    total = add(out_bits, total, multiply(out_bits, u, height));
    return subtract(out_bits, total, multiply(out_bits, v, slope));
  }
  const __m512i rest = subtract(out_bits, multiply(out_bits, low, u), v);
  total = add(out_bits, total, multiply(out_bits, u, value));
  return add(out_bits, total, multiply(out_bits, rest, slope));
}

/* The lanes of one key's value: sum_j u_j (A_j + low S_j) - v_j S_j. */
LINES INLINE __m512i line(int32_t out_bits, int narrow, job *job, int64_t key,
                          const uint8_t *leaf_words, const __m512i *nodes) {
  const dpf_lines *lines = job->lines;
  const uint64_t opened = opened_at(lines, key);
  const uint32_t start = (0u - (uint32_t)(opened >> lines->low_bits)) & job->size_mask;
  int64_t row = (start & job->lane_mask) * job->n_rows + (start >> job->lane_bits);
  const __m512i low = every_lane(out_bits, opened & job->low_mask);
  __m512i words[4], total = _mm512_setzero_si512(), flagged = job->flagged;
  for (int c = 0; c < 4; c++) words[c] = broadcast(leaf_words + 16 * c);
  for (int64_t node = 0; node < (int64_t)1 << (job->batch->q - 2); node += 2, row += 4) {
    const __m512i x[2] = {nodes[node * GROUP], nodes[(node + 1) * GROUP]};
    const wide_keys *keys = job->keys;
    __asm__("" : "+r"(keys)); /* or all of them are copied to the stack, for every key */
    __m512i block[8];
    leaves(out_bits, keys, words, x, block);
    for (int i = 0; i < 4; i++) {
      const int of = (i & 1) * 2 + i / 2;
      const __m512i u = block[of], v = block[4 + of];
      const __m512i value = ((const __m512i *)lines->values)[row + i];
      const __m512i slope = ((const __m512i *)lines->slopes)[row + i];
      total = dot(out_bits, narrow, total, u, v, low, value, slope);
      if (lines->guard) flagged = add_some(out_bits, flagged, lines->guard[row + i], u);
    }
  }
  job->flagged = flagged;
  return total;
}

LINES INLINE void all_lines(int32_t out_bits, int narrow, job *job, __m512i *scratch,
                            uint8_t *out) {
  const dpf_batch *batch = job->batch;
  const int64_t size = correction_bytes(batch);
  __m512i nodes[WIDE], totals[GROUP];
  const uint8_t *words[GROUP];
  for (int64_t first = 0; first < batch->n_keys; first += GROUP) {
    if (first % WIDE == 0) grow_wide(job, first, nodes);
    const int64_t left = batch->n_keys - first;
    for (int k = 0; k < GROUP; k++) {
      words[k] = batch->corrections + (first + (k < left ? k : left - 1)) * size;
      scratch[k] = nodes[first % WIDE + k];
    }
    grow_tall(job, words, scratch);
    for (int k = 0; k < GROUP; k++)
      totals[k] = k < left ? line(out_bits, narrow, job, first + k, words[k] + 16 * batch->q,
                                  scratch + k)
                           : _mm512_setzero_si512();
    for (int k = 0; k < GROUP && k < left; k += KEYS)
      store_sums(out_bits, batch->party, totals + k, out, first + k,
                 left - k < KEYS ? (int)(left - k) : KEYS);
  }
}

#define ALL(NAME, BITS, NARROW)                                                               \
  LINES static void NAME(job *job, void *scratch, void *out) {                                \
    all_lines(BITS, NARROW, job, scratch, out);                                               \
  }
ALL(all_16, 16, 0)
ALL(all_32, 32, 0)
ALL(all_32_narrow, 32, 1)
ALL(all_64, 64, 0)

LINES EXPORT uint64_t veilrun_dpf_lines(const dpf_batch *batch, const dpf_lines *lines,
                                       void *scratch, void *out) {
  wide_keys keys;
  schedule_wide(batch, &keys);
  const int lane_bits = batch->out_bits == 16 ? 3 : batch->out_bits == 32 ? 2 : 1;
  const int64_t n_pieces = (int64_t)1 << (batch->n_bits - lane_bits);
  job one = {
      batch,
      lines,
      &keys,
      ((uint64_t)1 << lines->low_bits) - 1,
      ((uint32_t)1 << batch->n_bits) - 1,
      ((uint32_t)1 << lane_bits) - 1,
      lane_bits,
      n_pieces + n_pieces / 4,
      _mm512_setzero_si512(),
  };
  if (batch->out_bits == 16) all_16(&one, scratch, out);
  else if (batch->out_bits == 64) all_64(&one, scratch, out);
  else if (lines->is_narrow && lines->low_bits < 16) all_32_narrow(&one, scratch, out);
  else all_32(&one, scratch, out);
  uint8_t bytes[64];
  uint64_t total = 0;
  memcpy(bytes, &one.flagged, 64);
  for (int at = 0; at < 64; at += batch->out_bits / 8) {
    uint64_t lane = 0;
    memcpy(&lane, bytes + at, (size_t)batch->out_bits / 8);
    total += lane;
  }
  return batch->party ? 0 - total : total;
}

#endif
