/* Distributed point functions with VAES: as dpf.c, with four keys to a 512-bit register.

   A column is four keys; nodes of one level lie as [node][column]. Short trees go eight columns at
   a time and tall ones one at a time, which keeps the nodes in the cache. At the leaves the lanes
   of four keys are turned so that a register holds sixteen neighbouring 32-bit lanes of one key,
   to be multiplied by as many items of the table. */

#include "vaes.h"

#if VEILRUN_X86

#define MAX_COLUMNS 8

/* Children of eight registers of one level, n of them real; from `at` in the level's order. */
VAES INLINE void grow8(const __m512i *round_keys, __m512i *nodes, int64_t at, int n,
                       int column_bits, const __m512i *words) {
  const int64_t columns = (int64_t)1 << column_bits;
  __m512i x[8], h[8];
  for (int i = 0; i < 8; i++) h[i] = sigma_512(x[i] = nodes[at + (i < n ? i : 0)]);
  encrypt8(round_keys, round_keys, h);
  for (int i = 0; i < n; i++) {
    const int64_t column = (at + i) & (columns - 1), node = (at + i) >> column_bits;
    const __m512i hash = _mm512_xor_si512(h[i], sigma_512(x[i]));
    const __m512i left = _mm512_mask_xor_epi64(hash, control_512(x[i]), hash, words[column]);
    nodes[(2 * node << column_bits) + column] = left;
    nodes[((2 * node + 1) << column_bits) + column] = _mm512_xor_si512(left, x[i]);
  }
}

VAES static void grow_512(const dpf_batch *batch, const int64_t *keys, int column_bits,
                          const __m512i *round_keys, __m512i *nodes) {
  const int columns = 1 << column_bits;
  const int64_t size = correction_bytes(batch);
  const __m512i bit = _mm512_set_epi64(0, 1, 0, 1, 0, 1, 0, 1);
  for (int c = 0; c < columns; c++) {
    const __m512i x = _mm512_andnot_si512(bit, load_four(batch->seeds, 16, keys + KEYS * c));
    nodes[c] = batch->party ? _mm512_or_si512(x, bit) : x;
  }
  for (int level = 0; level < batch->q; level++) {
    __m512i words[MAX_COLUMNS];
    for (int c = 0; c < columns; c++)
      words[c] = load_four(batch->corrections + 16 * level, size, keys + KEYS * c);
    int64_t at = (int64_t)1 << (level + column_bits);
    if (column_bits == 3) {
      for (at -= 8; at >= 0; at -= 8) grow8(round_keys, nodes, at, 8, 3, words);
    } else if (at >= 8) {
      for (at -= 8; at >= 0; at -= 8) grow8(round_keys, nodes, at, 8, 0, words);
    } else {
      grow8(round_keys, nodes, 0, (int)at, 0, words);
    }
  }
}

VAES INLINE __m512i add_masked(int32_t out_bits, __m512i block, __mmask8 control, __m512i word) {
  const __m512i added = _mm512_maskz_mov_epi64(control, word);
  if (out_bits == 16) return _mm512_add_epi16(block, added);
  if (out_bits == 32) return _mm512_add_epi32(block, added);
  return _mm512_mask_add_epi64(block, control, block, word);
}

/* Work on a batch: its keys, and what to do with the leaves of one payload. */
typedef struct {
  const dpf_batch *batch;
  const wide_keys *keys;
  const lookup_job *lookup;
  const table_rows *rows;
  uint8_t *expansions;
} job;

/* The leaf blocks of one payload of the four keys `of`. */
typedef struct {
  const __m512i *keys0, *keys1;
  __m512i word0, word1;
} leaf_blocks;

VAES INLINE leaf_blocks blocks_of(const job *job, int payload, const int64_t *of) {
  const dpf_batch *batch = job->batch;
  const int64_t size = correction_bytes(batch);
  const uint8_t *words = batch->corrections + 16 * leaf_words(batch, payload);
  const leaf_blocks blocks = {job->keys->all[1 + 2 * payload], job->keys->all[2 + 2 * payload],
                              load_four(words, size, of), load_four(words + 16, size, of)};
  return blocks;
}

/* Lanes of four neighbouring leaves of a column: lanes[2 * key + half], in order. */
VAES INLINE void leaves4(int32_t out_bits, const leaf_blocks *of, const __m512i *nodes,
                         int64_t columns, __m512i *lanes) {
  __m512i block[8], first[4], second[4];
  for (int i = 0; i < 4; i++) block[i] = block[4 + i] = sigma_512(nodes[i * columns]);
  encrypt8(of->keys0, of->keys1, block);
  for (int i = 0; i < 4; i++) {
    const __m512i x = nodes[i * columns], s = sigma_512(x);
    const __mmask8 control = control_512(x);
    block[i] = add_masked(out_bits, _mm512_xor_si512(block[i], s), control, of->word0);
    block[4 + i] = add_masked(out_bits, _mm512_xor_si512(block[4 + i], s), control, of->word1);
  }
  turn(block[0], block[4], block[1], block[5], first);
  turn(block[2], block[6], block[3], block[7], second);
  for (int k = 0; k < KEYS; k++) {
    lanes[2 * k] = first[k];
    lanes[2 * k + 1] = second[k];
  }
}

VAES INLINE __m512i dot_512(int32_t out_bits, __m512i acc, __m512i lanes, const uint8_t *table) {
  const __m512i items = _mm512_loadu_si512(table);
  if (out_bits == 16) return _mm512_add_epi16(acc, _mm512_mullo_epi16(lanes, items));
  if (out_bits == 32) return _mm512_add_epi32(acc, _mm512_mullo_epi32(lanes, items));
  return _mm512_add_epi64(acc, _mm512_mullo_epi64(lanes, items));
}

/* One payload of the four keys `of` of one column; those past the batch's end are not stored. */
VAES INLINE void lookup_column(int32_t out_bits, int32_t n_tables, const job *job, int payload,
                               const int64_t *of, int n_real, const __m512i *nodes,
                               int64_t columns) {
  const dpf_batch *batch = job->batch;
  const lookup_job *lookup = job->lookup;
  const int *rows = job->rows[payload].of;
  const int64_t item = out_bits / 8, n_nodes = (int64_t)1 << batch->q;
  const uint32_t mask = ((uint32_t)1 << batch->n_bits) - 1;
  const leaf_blocks blocks = blocks_of(job, payload, of);
  const uint8_t *from[MAX_TABLES][KEYS];
  __m512i acc[MAX_TABLES][KEYS], lanes[2 * KEYS];
  for (int t = 0; t < n_tables; t++)
    for (int k = 0; k < KEYS; k++) {
      const int64_t start = (0u - lookup->indices[of[k]]) & mask;
      from[t][k] = lookup->tables + item * (rows[t] * lookup->stride + start);
      acc[t][k] = _mm512_setzero_si512();
    }
  for (int64_t node = 0; node < n_nodes; node += 4) {
    leaves4(out_bits, &blocks, nodes + node * columns, columns, lanes);
    for (int t = 0; t < n_tables; t++)
      for (int k = 0; k < KEYS; k++) {
        const uint8_t *at = from[t][k] + 32 * node; /* a leaf is 32 bytes of lanes */
        acc[t][k] = dot_512(out_bits, acc[t][k], lanes[2 * k], at);
        acc[t][k] = dot_512(out_bits, acc[t][k], lanes[2 * k + 1], at + 64);
      }
  }
  for (int t = 0; t < n_tables; t++)
    store_sums(out_bits, batch->party, acc[t], lookup->out, rows[t] * lookup->out_stride + of[0],
               n_real);
}

VAES INLINE void expand_column(int32_t out_bits, const job *job, int payload, const int64_t *of,
                               int n_real, const __m512i *nodes, int64_t columns) {
  const dpf_batch *batch = job->batch;
  const int64_t row = (int64_t)(out_bits / 8) << batch->n_bits;
  const leaf_blocks blocks = blocks_of(job, payload, of);
  uint8_t *out = job->expansions + payload * batch->n_keys * row;
  const __m512i zero = _mm512_setzero_si512();
  __m512i lanes[2 * KEYS];
  for (int64_t node = 0; node < (int64_t)1 << batch->q; node += 4) {
    leaves4(out_bits, &blocks, nodes + node * columns, columns, lanes);
    for (int k = 0; k < 2 * n_real; k++) {
      __m512i share = lanes[k];
      if (batch->party) {
        if (out_bits == 16) share = _mm512_sub_epi16(zero, share);
        else if (out_bits == 32) share = _mm512_sub_epi32(zero, share);
        else share = _mm512_sub_epi64(zero, share);
      }
      _mm512_storeu_si512(out + of[k / 2] * row + 32 * node + 64 * (k & 1), share);
    }
  }
}

typedef void column_function(const job *job, int payload, const int64_t *of, int n_real,
                             const __m512i *nodes, int64_t columns);

#define LOOKUP(BITS, TABLES)                                                                  \
  VAES static void lookup_##BITS##_##TABLES(const job *job, int payload, const int64_t *of,   \
                                            int n_real, const __m512i *nodes,                 \
                                            int64_t columns) {                                \
    lookup_column(BITS, TABLES, job, payload, of, n_real, nodes, columns);                    \
  }
#define LOOKUPS(BITS) LOOKUP(BITS, 1) LOOKUP(BITS, 2) LOOKUP(BITS, 3) LOOKUP(BITS, 4)
#define EXPAND(BITS)                                                                          \
  VAES static void expand_##BITS(const job *job, int payload, const int64_t *of, int n_real,  \
                                 const __m512i *nodes, int64_t columns) {                     \
    expand_column(BITS, job, payload, of, n_real, nodes, columns);                            \
  }
LOOKUPS(16)
LOOKUPS(32)
LOOKUPS(64)
EXPAND(16)
EXPAND(32)
EXPAND(64)

/* functions: one for each payload, or NULL where nothing is asked of it. */
VAES static void for_each_column(const job *job, column_function *const *functions,
                                 void *scratch) {
  const dpf_batch *batch = job->batch;
  const int column_bits = batch->q <= 6 && batch->n_keys > KEYS ? 3 : 0;
  const int columns = 1 << column_bits;
  for (int64_t first = 0; first < batch->n_keys; first += KEYS * columns) {
    const int64_t left = batch->n_keys - first;
    int64_t of[KEYS * MAX_COLUMNS];
    for (int k = 0; k < KEYS * columns; k++) of[k] = first + (k < left ? k : left - 1);
    grow_512(batch, of, column_bits, job->keys->all[0], scratch);
    for (int c = 0; c < columns && KEYS * c < left; c++) {
      const int64_t n = left - KEYS * c;
      for (int payload = 0; payload < batch->n_payloads; payload++)
        if (functions[payload])
          functions[payload](job, payload, of + KEYS * c, n < KEYS ? (int)n : KEYS,
                             (const __m512i *)scratch + c, columns);
    }
  }
}

VAES void vaes_lookup(const dpf_batch *batch, const lookup_job *lookup, const table_rows *rows,
                      void *scratch) {
  static column_function *const functions[3][MAX_TABLES + 1] = {
      {NULL, lookup_16_1, lookup_16_2, lookup_16_3, lookup_16_4},
      {NULL, lookup_32_1, lookup_32_2, lookup_32_3, lookup_32_4},
      {NULL, lookup_64_1, lookup_64_2, lookup_64_3, lookup_64_4}};
  wide_keys keys;
  schedule_wide(batch, &keys);
  const job one = {batch, &keys, lookup, rows, NULL};
  column_function *chosen[MAX_PAYLOADS];
  for (int c = 0; c < batch->n_payloads; c++)
    chosen[c] = functions[batch->out_bits >> 5][rows[c].n];
  for_each_column(&one, chosen, scratch);
}

VAES void vaes_expand(const dpf_batch *batch, void *scratch, void *out) {
  static column_function *const functions[3] = {expand_16, expand_32, expand_64};
  wide_keys keys;
  schedule_wide(batch, &keys);
  const job one = {batch, &keys, NULL, NULL, out};
  column_function *const function = functions[batch->out_bits >> 5];
  column_function *const chosen[MAX_PAYLOADS] = {function, function};
  for_each_column(&one, chosen, scratch);
}

#endif
