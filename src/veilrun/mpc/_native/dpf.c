/* Distributed point functions, eight keys at a time on 128-bit AES; dpf.py says the construction.

   Nodes of one level lie as [node][key], so that a level's correction words, one per key, are the
   same for every node. Not covered: machines without AES instructions; dpf.py serves them. */

#include "aes.h"

#if !VEILRUN_X86

/* Never called: veilrun_features() names no HAS_AES here. */
EXPORT int64_t veilrun_dpf_scratch_bytes(int32_t q) { return q; }
EXPORT void veilrun_dpf_lookup(const dpf_batch *batch, const uint32_t *indices, const void *tables,
                               int32_t n_tables, const int32_t *payload_of, int64_t stride,
                               int64_t out_stride, void *scratch, void *out) {
  (void)batch, (void)indices, (void)tables, (void)n_tables, (void)payload_of, (void)stride;
  (void)out_stride, (void)scratch, (void)out;
}
EXPORT void veilrun_dpf_expand(const dpf_batch *batch, void *scratch, void *out) {
  (void)batch, (void)scratch, (void)out;
}
EXPORT void veilrun_dpf_generate(const dpf_batch *batch, const uint32_t *points,
                                 const uint8_t *seeds1, const void *payloads,
                                 uint8_t *corrections) {
  (void)batch, (void)points, (void)seeds1, (void)payloads, (void)corrections;
}

#else

#define GROUP 8

/* Eight keys, or copies of the last one where the batch has no more. */
typedef struct {
  int64_t keys[GROUP];
  int n;
} key_group;

static key_group take_group(const dpf_batch *batch, int64_t first) {
  key_group group;
  group.n = batch->n_keys - first < GROUP ? (int)(batch->n_keys - first) : GROUP;
  for (int k = 0; k < GROUP; k++) group.keys[k] = first + (k < group.n ? k : group.n - 1);
  return group;
}

AES static void load_words(const dpf_batch *batch, const key_group *group, int word, __m128i *to) {
  const int64_t size = correction_bytes(batch);
  for (int k = 0; k < GROUP; k++)
    to[k] = _mm_loadu_si128((const __m128i *)(batch->corrections + group->keys[k] * size) + word);
}

/* The leaf seeds of a group, in place: a level is read from its last node down, and the children
   of a node lie at or after it. */
AES static void grow_128(const dpf_batch *batch, const key_group *group, const __m128i *round_keys,
                         __m128i *nodes) {
  for (int k = 0; k < GROUP; k++)
    nodes[k] = root_128(batch->seeds + 16 * group->keys[k], batch->party);
  for (int level = 0; level < batch->q; level++) {
    __m128i words[GROUP], x[GROUP], h[GROUP];
    load_words(batch, group, level, words);
    for (int64_t node = ((int64_t)1 << level) - 1; node >= 0; node--) {
      for (int k = 0; k < GROUP; k++) x[k] = nodes[node * GROUP + k];
      hash8_128(round_keys, x, h);
      for (int k = 0; k < GROUP; k++) {
        const __m128i left = _mm_xor_si128(h[k], _mm_and_si128(control_128(x[k]), words[k]));
        nodes[2 * node * GROUP + k] = left;
        nodes[(2 * node + 1) * GROUP + k] = _mm_xor_si128(left, x[k]);
      }
    }
  }
}

/* acc += block * table, lane by lane. */
AES INLINE __m128i dot_128(int32_t out_bits, __m128i acc, __m128i block, const uint8_t *table) {
  const __m128i items = _mm_loadu_si128((const __m128i *)table);
  if (out_bits == 16) return _mm_add_epi16(acc, _mm_mullo_epi16(block, items));
  if (out_bits == 32) return _mm_add_epi32(acc, _mm_mullo_epi32(block, items));
  /* 64 x 64 to 64 bits: low * low and both cross products, shifted. */
  const __m128i cross = _mm_add_epi64(_mm_mul_epu32(_mm_srli_epi64(block, 32), items),
                                      _mm_mul_epu32(block, _mm_srli_epi64(items, 32)));
  const __m128i low = _mm_mul_epu32(block, items);
  return _mm_add_epi64(acc, _mm_add_epi64(low, _mm_slli_epi64(cross, 32)));
}

AES INLINE uint64_t sum_lanes_128(int32_t out_bits, __m128i acc) {
  uint64_t total = 0;
  if (out_bits == 16) {
    uint16_t lanes[8];
    _mm_storeu_si128((__m128i *)lanes, acc);
    for (int i = 0; i < 8; i++) total += lanes[i];
  } else if (out_bits == 32) {
    uint32_t lanes[4];
    _mm_storeu_si128((__m128i *)lanes, acc);
    for (int i = 0; i < 4; i++) total += lanes[i];
  } else {
    uint64_t lanes[2];
    _mm_storeu_si128((__m128i *)lanes, acc);
    total = lanes[0] + lanes[1];
  }
  return total;
}

INLINE void store_out(int32_t out_bits, void *out, int64_t i, uint64_t value) {
  if (out_bits == 16) ((uint16_t *)out)[i] = (uint16_t)value;
  else if (out_bits == 32) ((uint32_t *)out)[i] = (uint32_t)value;
  else ((uint64_t *)out)[i] = value;
}

/* Calls BODY with `block` set to each block of lanes of `payload` of each key of the group: `k`
   says whose, `lane` its first lane. A domain smaller than a block ends in lanes that must not
   count. */
#define FOR_EACH_BLOCK(BODY)                                                                  \
  const int64_t block_lanes = 128 / out_bits, size = (int64_t)1 << batch->n_bits;             \
  __m128i words[MAX_BLOCKS][GROUP], x[GROUP], h[GROUP];                                       \
  for (int c = 0; c < batch->m; c++)                                                          \
    load_words(batch, group, leaf_words(batch, payload) + c, words[c]);                       \
  for (int64_t node = 0; node < (int64_t)1 << batch->q; node++) {                             \
    for (int k = 0; k < GROUP; k++) x[k] = nodes[node * GROUP + k];                           \
    for (int c = 0; c < batch->m; c++) {                                                      \
      const int64_t lane = (node * batch->m + c) * block_lanes;                               \
      hash8_128(round_keys + (1 + payload * batch->m + c) * N_ROUND_KEYS, x, h);              \
      for (int k = 0; k < GROUP; k++) {                                                       \
        const __m128i word = _mm_and_si128(control_128(x[k]), words[c][k]);                   \
        const __m128i block = add_lanes_128(out_bits, h[k], word);                            \
        BODY                                                                                  \
      }                                                                                       \
    }                                                                                         \
  }

AES INLINE void lookup_group(int32_t out_bits, int n_tables, const dpf_batch *batch,
                             const key_group *group, const __m128i *round_keys,
                             const __m128i *nodes, const lookup_job *job,
                             const table_rows *rows) {
  const int payload = rows->payload;
  __m128i acc[MAX_TABLES][GROUP], valid = _mm_set1_epi32(-1);
  const uint8_t *from[GROUP];
  const int64_t item = out_bits / 8, n_valid = item << batch->n_bits;
  if (n_valid < 16) {
    uint8_t bytes[16] = {0};
    memset(bytes, 0xff, (size_t)n_valid);
    valid = _mm_loadu_si128((const __m128i *)bytes);
  }
  for (int k = 0; k < GROUP; k++) {
    const uint32_t mask = ((uint32_t)1 << batch->n_bits) - 1;
    from[k] = job->tables + item * (int64_t)((0u - job->indices[group->keys[k]]) & mask);
    for (int t = 0; t < n_tables; t++) acc[t][k] = _mm_setzero_si128();
  }
  FOR_EACH_BLOCK({
    (void)size;
    const __m128i counted = _mm_and_si128(block, valid);
    for (int t = 0; t < n_tables; t++)
      acc[t][k] = dot_128(out_bits, acc[t][k], counted,
                          from[k] + (rows->of[t] * job->stride + lane) * item);
  })
  for (int t = 0; t < n_tables; t++)
    for (int k = 0; k < group->n; k++) {
      const uint64_t total = sum_lanes_128(out_bits, acc[t][k]);
      store_out(out_bits, job->out, rows->of[t] * job->out_stride + group->keys[k],
                batch->party ? 0 - total : total);
    }
}

AES INLINE void expand_group(int32_t out_bits, const dpf_batch *batch, const key_group *group,
                             const __m128i *round_keys, const __m128i *nodes, int payload,
                             uint8_t *out) {
  FOR_EACH_BLOCK({
    const __m128i share =
        batch->party ? sub_lanes_128(out_bits, _mm_setzero_si128(), block) : block;
    const int64_t row = payload * batch->n_keys + group->keys[k];
    uint8_t *to = out + (row * size + lane) * (out_bits / 8);
    const int64_t n_bytes = size * (out_bits / 8);
    if (n_bytes >= 16) {
      _mm_storeu_si128((__m128i *)to, share);
    } else {
      uint8_t bytes[16];
      _mm_storeu_si128((__m128i *)bytes, share);
      memcpy(to, bytes, (size_t)n_bytes);
    }
  })
}

typedef void lookup_function(const dpf_batch *batch, const key_group *group, const __m128i *keys,
                             const __m128i *nodes, const lookup_job *job, const table_rows *rows);

#define LOOKUP(BITS, TABLES)                                                                  \
  AES static void lookup_##BITS##_##TABLES(                                                   \
      const dpf_batch *batch, const key_group *group, const __m128i *keys,                    \
      const __m128i *nodes, const lookup_job *job, const table_rows *rows) {                  \
    lookup_group(BITS, TABLES, batch, group, keys, nodes, job, rows);                         \
  }
#define LOOKUPS(BITS) LOOKUP(BITS, 1) LOOKUP(BITS, 2) LOOKUP(BITS, 3) LOOKUP(BITS, 4)
LOOKUPS(16)
LOOKUPS(32)
LOOKUPS(64)

static int fits_vaes(const dpf_batch *batch) {
  return (batch->features & HAS_VAES) && batch->q >= 2 && batch->m == 2;
}

/* Enough for 32 keys of few nodes or 8 of many; dpf_vaes.c counts on it. */
EXPORT int64_t veilrun_dpf_scratch_bytes(int32_t q) {
  return ((int64_t)1 << q) * (q <= 6 ? 512 : 128);
}

AES static void schedule_all(const dpf_batch *batch, __m128i *keys) {
  for (int c = 0; c <= batch->m * batch->n_payloads; c++)
    schedule(batch->aes_keys + 16 * c, keys + c * N_ROUND_KEYS);
}

AES EXPORT void veilrun_dpf_lookup(const dpf_batch *batch, const uint32_t *indices,
                                   const void *tables, int32_t n_tables,
                                   const int32_t *payload_of, int64_t stride, int64_t out_stride,
                                   void *scratch, void *out) {
  static lookup_function *const all[3][MAX_TABLES] = {
      {lookup_16_1, lookup_16_2, lookup_16_3, lookup_16_4},
      {lookup_32_1, lookup_32_2, lookup_32_3, lookup_32_4},
      {lookup_64_1, lookup_64_2, lookup_64_3, lookup_64_4}};
  lookup_function *const *functions = all[batch->out_bits >> 5];
  const lookup_job job = {indices, tables, stride, out_stride, out};
  table_rows rows[MAX_PAYLOADS];
  for (int c = 0; c < batch->n_payloads; c++) rows[c] = rows_of(c, n_tables, payload_of);
  if (fits_vaes(batch)) {
    vaes_lookup(batch, &job, rows, scratch);
    return;
  }
  __m128i keys[MAX_AES_KEYS * N_ROUND_KEYS];
  schedule_all(batch, keys);
  for (int64_t first = 0; first < batch->n_keys; first += GROUP) {
    const key_group group = take_group(batch, first);
    grow_128(batch, &group, keys, scratch);
    for (int c = 0; c < batch->n_payloads; c++)
      if (rows[c].n > 0)
        functions[rows[c].n - 1](batch, &group, keys, scratch, &job, &rows[c]);
  }
}

AES EXPORT void veilrun_dpf_expand(const dpf_batch *batch, void *scratch, void *out) {
  if (fits_vaes(batch)) {
    vaes_expand(batch, scratch, out);
    return;
  }
  __m128i keys[MAX_AES_KEYS * N_ROUND_KEYS];
  schedule_all(batch, keys);
  for (int64_t first = 0; first < batch->n_keys; first += GROUP) {
    const key_group group = take_group(batch, first);
    grow_128(batch, &group, keys, scratch);
    for (int c = 0; c < batch->n_payloads; c++) {
      if (batch->out_bits == 16) expand_group(16, batch, &group, keys, scratch, c, out);
      else if (batch->out_bits == 32) expand_group(32, batch, &group, keys, scratch, c, out);
      else expand_group(64, batch, &group, keys, scratch, c, out);
    }
  }
}

/* --- the dealer --- */

/* +-(beta e - C(s0) + C(s1)), `unit` being beta e: what the party whose control bit is set adds to
   its lanes. */
AES INLINE __m128i leaf_word(int32_t out_bits, __m128i unit, __m128i c0, __m128i c1,
                             __m128i control1) {
  const __m128i word = add_lanes_128(out_bits, sub_lanes_128(out_bits, unit, c0), c1);
  const __m128i negated = sub_lanes_128(out_bits, _mm_setzero_si128(), word);
  return _mm_blendv_epi8(word, negated, control1);
}

/* Four keys, both parties' nodes of each: x[2 * k + party]. */
AES INLINE void generate_group(int32_t out_bits, const dpf_batch *batch, const key_group *group,
                               const __m128i *keys, const uint32_t *points, const uint8_t *seeds1,
                               const uint8_t *payloads, uint8_t *corrections) {
  const int64_t size = correction_bytes(batch);
  const int leaf_bits = batch->n_bits - batch->q, item = out_bits / 8;
  __m128i x[GROUP], h[GROUP], delta[GROUP / 2];
  for (int k = 0; k < GROUP / 2; k++) {
    x[2 * k] = root_128(batch->seeds + 16 * group->keys[k], 0);
    x[2 * k + 1] = root_128(seeds1 + 16 * group->keys[k], 1);
    delta[k] = _mm_xor_si128(x[2 * k], x[2 * k + 1]);
  }
  for (int level = 0; level < batch->q; level++) {
    hash8_128(keys, x, h);
    for (int k = 0; k < GROUP / 2; k++) {
      const uint32_t bit = points[group->keys[k]] >> (batch->n_bits - 1 - level) & 1;
      const __m128i right = _mm_set1_epi32(-(int)bit);
      const __m128i word = _mm_xor_si128(_mm_xor_si128(h[2 * k], h[2 * k + 1]),
                                         _mm_andnot_si128(right, delta[k]));
      _mm_storeu_si128((__m128i *)(corrections + group->keys[k] * size) + level, word);
      for (int i = 2 * k; i < 2 * k + 2; i++) {
        const __m128i left = _mm_xor_si128(h[i], _mm_and_si128(control_128(x[i]), word));
        x[i] = _mm_xor_si128(left, _mm_and_si128(right, x[i]));
      }
    }
  }
  for (int c = 0; c < batch->m * batch->n_payloads; c++) {
    const uint8_t *betas = payloads + c / batch->m * batch->n_keys * item;
    hash8_128(keys + (c + 1) * N_ROUND_KEYS, x, h);
    for (int k = 0; k < GROUP / 2; k++) {
      const int64_t lane = points[group->keys[k]] & (((uint32_t)1 << leaf_bits) - 1);
      const int64_t byte = lane * item - 16 * (c % batch->m);
      uint8_t unit[16] = {0};
      if (byte >= 0 && byte < 16)
        memcpy(unit + byte, betas + group->keys[k] * item, (size_t)item);
      const __m128i word = leaf_word(out_bits, _mm_loadu_si128((const __m128i *)unit), h[2 * k],
                                     h[2 * k + 1], control_128(x[2 * k + 1]));
      _mm_storeu_si128((__m128i *)(corrections + group->keys[k] * size) + batch->q + c, word);
    }
  }
}

AES EXPORT void veilrun_dpf_generate(const dpf_batch *batch, const uint32_t *points,
                                     const uint8_t *seeds1, const void *payloads,
                                     uint8_t *corrections) {
  __m128i keys[MAX_AES_KEYS * N_ROUND_KEYS];
  schedule_all(batch, keys);
  for (int64_t first = 0; first < batch->n_keys; first += GROUP / 2) {
    const key_group group = take_group(batch, first);
    if (batch->out_bits == 16)
      generate_group(16, batch, &group, keys, points, seeds1, payloads, corrections);
    else if (batch->out_bits == 32)
      generate_group(32, batch, &group, keys, points, seeds1, payloads, corrections);
    else generate_group(64, batch, &group, keys, points, seeds1, payloads, corrections);
  }
}

#endif
