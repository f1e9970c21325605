/* A party's local work between two rounds: recorded steps, done one after the other on one block of
   memory. tape/recorder.py writes the steps and has checked every shape; names and numbers of the
   steps are in tape/steps.py. */

#include "kernel.h"

#include <pthread.h>

enum {
  COPY, ADD, SUBTRACT, MULTIPLY, NEGATE, RAISE, SHRINK, SUM, SCALE, EXTEND, TIMES, SQUARES, MATMUL,
  MATMUL_BATCH, RESIDUAL, GATHER, LOOKUP, LINES, PACK, UNPACK, PACK_SUM, ADD_PACKED
};

#define LOW(T, bits) ((T)(~(uint64_t)0 >> (64 - (bits))))

/* Z(i) for all i, in the dtype of `item` bytes. */
#define EACH(item, BODY)           \
  if (item == 2) BODY(uint16_t)    \
  else if (item == 4) BODY(uint32_t) \
  else BODY(uint64_t)

#define BINARY(T, OP)                                                   \
  {                                                                     \
    const T *x = a, *y = b;                                             \
    T *z = out, mask = LOW(T, bits);                                    \
    for (int64_t i = 0; i < n; i++) z[i] = (T)(x[i] OP y[i]) & mask;    \
  }
#define BINARY_ADD(T) BINARY(T, +)
#define BINARY_SUBTRACT(T) BINARY(T, -)
#define BINARY_MULTIPLY(T) BINARY(T, *)

static CLONES void binary(int32_t op, int32_t item, int32_t bits, int64_t n, const void *a,
                          const void *b, void *out) {
  if (op == ADD) { EACH(item, BINARY_ADD) }
  else if (op == SUBTRACT) { EACH(item, BINARY_SUBTRACT) }
  else { EACH(item, BINARY_MULTIPLY) }
}

/* -a, or a + 2^by */
#define UNARY(T)                                                                    \
  {                                                                                 \
    const T *x = a;                                                                 \
    T *z = out, mask = LOW(T, bits);                                                \
    if (op == NEGATE)                                                               \
      for (int64_t i = 0; i < n; i++) z[i] = (T)-x[i] & mask;                       \
    else                                                                            \
      for (int64_t i = 0; i < n; i++) z[i] = (T)(x[i] + ((T)1 << by)) & mask;       \
  }

static CLONES void unary(int32_t op, int32_t item, int32_t bits, int32_t by, int64_t n,
                         const void *a, void *out) {
  EACH(item, UNARY)
}

#define ROW_SUMS(T)                                                     \
  {                                                                     \
    const T *x = a;                                                     \
    T *z = out, mask = LOW(T, bits);                                    \
    for (int64_t row = 0; row < n_rows; row++, x += n) {                \
      T total = 0;                                                      \
      for (int64_t i = 0; i < n; i++) total += x[i];                    \
      z[row] = total & mask;                                            \
    }                                                                   \
  }

static CLONES void row_sums(int32_t item, int32_t bits, int64_t n_rows, int64_t n, const void *a,
                            void *out) {
  EACH(item, ROW_SUMS)
}

/* out = a table[at] */
#define SCALED(T)                                                                   \
  {                                                                                 \
    const T *x = a, *factors = table;                                               \
    T *z = out, mask = LOW(T, bits);                                                \
    for (int64_t i = 0; i < n; i++) z[i] = (T)(x[i] * factors[at[i]]) & mask;       \
  }

static CLONES void scale(int32_t item, int32_t bits, int64_t n, const void *a, const void *table,
                         const uint32_t *at, void *out) {
  EACH(item, SCALED)
}

/* out = start + x gain - sum (x column), row by row */
#define ADD_RESIDUAL(T)                                                             \
  {                                                                                 \
    const T *from = start, *row = x, *g = gain, *c = column;                        \
    T *z = out, mask = LOW(T, bits);                                                \
    for (int64_t r = 0; r < n_rows; r++, row += n, from += n, z += n) {             \
      T mean = 0;                                                                   \
      for (int64_t i = 0; i < n; i++) mean += (T)(row[i] * c[i]);                   \
      for (int64_t i = 0; i < n; i++)                                               \
        z[i] = (T)(from[i] + row[i] * g[i] - mean) & mask;                          \
    }                                                                               \
  }

static CLONES void residual(int32_t item, int32_t bits, int64_t n_rows, int64_t n,
                            const void *start, const void *x, const void *gain,
                            const void *column, void *out) {
  EACH(item, ADD_RESIDUAL)
}

/* Four axes; strides in bytes. Rows without gaps go at once. */
static void copy(int32_t item, const int64_t *size, const uint8_t *from, const int64_t *step_from,
                 uint8_t *to, const int64_t *step_to) {
  const int is_dense = step_from[3] == item && step_to[3] == item;
  for (int64_t i = 0; i < size[0]; i++)
    for (int64_t j = 0; j < size[1]; j++)
      for (int64_t k = 0; k < size[2]; k++) {
        const uint8_t *x = from + i * step_from[0] + j * step_from[1] + k * step_from[2];
        uint8_t *z = to + i * step_to[0] + j * step_to[1] + k * step_to[2];
        if (is_dense) memcpy(z, x, (size_t)(item * size[3]));
        else
          for (int64_t m = 0; m < size[3]; m++, x += step_from[3], z += step_to[3]) {
            if (item == 2) memcpy(z, x, 2);
            else if (item == 4) memcpy(z, x, 4);
            else if (item == 8) memcpy(z, x, 8);
            else *z = *x;
          }
      }
}

/* The peer's bits end on a whole byte, filled up with zeros. */
static int is_padded(const uint8_t *data, int64_t n, int32_t n_bits) {
  const int32_t n_last = (int32_t)(n * n_bits % 8);
  return n_last == 0 || data[(n * n_bits) / 8] >> n_last == 0;
}

#define FROM(i, n_bytes) ((void *)(memory + s->at[i] + (n_bytes)))
#define IN(i) ((const void *)FROM(i, 0))
#define OUT(i) FROM(i, 0)
#define FIXED(i) ((const void *)(intptr_t)s->at[i])

/* --- steps that threads share --- */

#define MAX_THREADS 64

/* Items first to end of a step. number: of the thread, each of which has its own scratch. */
typedef struct {
  uint8_t *memory;
  const tape_step *step;
  int64_t first, end, number;
  uint64_t n_flagged;
} part;

static dpf_batch batch_of(const part *p) {
  uint8_t *memory = p->memory;
  const tape_step *s = p->step;
  const int64_t size = 16 * (s->word[4] + s->word[5] * s->word[6]);
  return (dpf_batch){
    .features = (uint32_t)s->word[0], .party = s->word[1], .n_bits = s->word[2],
    .out_bits = s->word[3], .q = s->word[4], .m = s->word[5], .n_payloads = s->word[6],
    .n_keys = p->end - p->first, .aes_keys = IN(0), .seeds = FROM(1, 16 * p->first),
    .corrections = FROM(2, size * p->first),
  };
}

static void *do_part(void *given) {
  part *p = given;
  uint8_t *memory = p->memory;
  const tape_step *s = p->step;
  const int32_t *w = s->word;
  const int64_t *n = s->size, first = p->first;
  if (s->op == MATMUL) {
    veilrun_matmul((uint32_t)w[0], w[1], IN(0), n[0], n[1], FIXED(2), n[2], first, p->end, OUT(1));
  } else if (s->op == MATMUL_BATCH) {
    const int64_t k = w[1] == 4 ? n[2] : n[2] + (n[2] & 1);
    veilrun_matmul_batch((uint32_t)w[0], w[1], FROM(0, w[1] * n[1] * k * first),
                         FROM(1, w[1] * n[2] * n[3] * first), p->end - first, n[1], n[2], n[3],
                         FROM(2, s->at[4] * p->number), FROM(3, w[1] * n[1] * n[3] * first));
  } else {
    const dpf_batch batch = batch_of(p);
    void *scratch = FROM(4, veilrun_dpf_scratch_bytes(batch.q) * p->number);
    void *out = FROM(5, batch.out_bits / 8 * first);
    if (s->op == LOOKUP) {
      veilrun_dpf_lookup(&batch, FROM(3, 4 * first), FIXED(6), (int32_t)n[1], FIXED(7), n[2], n[0],
                         scratch, out);
    } else {
      const dpf_lines lines = {(int32_t)n[1], (int32_t)n[2], (int32_t)n[3], FROM(3, n[1] * first),
                               FIXED(7), FIXED(8), FIXED(9)};
      p->n_flagged = veilrun_dpf_lines(&batch, &lines, scratch, out);
    }
  }
  return NULL;
}

/* n items, not fewer than `unit` to a thread: to start one takes as long as some. Returns what is
   flagged. */
static uint64_t spread(uint8_t *memory, const tape_step *s, int64_t n, int64_t unit,
                      int32_t n_threads) {
  const int64_t n_units = (n + unit - 1) / unit;
  int64_t n_parts = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
  if (n_parts > n_units) n_parts = n_units;
  part parts[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  int is_started[MAX_THREADS];
  for (int64_t i = n_parts - 1; i >= 0; i--) {
    const int64_t end = n_units * (i + 1) / n_parts * unit;
    parts[i] = (part){memory, s, n_units * i / n_parts * unit, end < n ? end : n, i, 0};
    is_started[i] = i > 0 && pthread_create(&threads[i], NULL, do_part, &parts[i]) == 0;
    if (!is_started[i]) do_part(&parts[i]);
  }
  uint64_t n_flagged = 0;
  for (int64_t i = 0; i < n_parts; i++) {
    if (is_started[i]) pthread_join(threads[i], NULL);
    n_flagged += parts[i].n_flagged;
  }
  return n_flagged;
}

/* Keys of which a thread has enough to do. */
static int64_t some_keys(int32_t q) { return q < 7 ? 4096 >> q : 32; }

/* Whether the step could be done. */
static int advance(uint8_t *memory, const tape_step *s, int32_t n_threads) {
  const int32_t *w = s->word;
  const int64_t *n = s->size;
  switch (s->op) {
    case COPY: copy(w[0], n, IN(0), s->at + 2, OUT(1), s->at + 6); break;
    case ADD: case SUBTRACT: case MULTIPLY:
      binary(s->op, w[0], w[1], n[0], IN(0), IN(1), OUT(2)); break;
    case NEGATE: case RAISE: unary(s->op, w[0], w[1], w[2], n[0], IN(0), OUT(1)); break;
    case SHRINK: veilrun_shrink(w[0], w[1], n[0], w[2], w[3], w[4], IN(0), OUT(1)); break;
    case SUM: row_sums(w[0], w[1], n[0], n[1], IN(0), OUT(1)); break;
    case SCALE: scale(w[0], w[1], n[0], IN(0), FIXED(3), IN(1), OUT(2)); break;
    case EXTEND:
      veilrun_extend(w[0], w[1], w[2], n[0], w[3], w[4], IN(0), IN(1), IN(2), IN(3), OUT(4),
                     OUT(5), OUT(6));
      break;
    case TIMES:
      veilrun_times(w[0], w[1], n[0], n[1], w[2], w[3], w[4], IN(0), IN(1), IN(2), IN(3), IN(4),
                    IN(5), IN(6), OUT(7));
      break;
    case SQUARES:
      veilrun_squares(w[0], w[1], n[0], n[1], w[2], w[3], w[4], IN(0), IN(1), IN(2), IN(3), IN(4),
                      OUT(5));
      break;
    case MATMUL: spread(memory, s, n[3], 8, n_threads); break;
    case MATMUL_BATCH:
      spread(memory, s, n[0], 1 + (1 << 18) / (n[1] * n[2] * n[3] + 1), n_threads);
      break;
    case RESIDUAL:
      residual(w[0], w[1], n[0], n[1], IN(0), IN(1), FIXED(3), FIXED(4), OUT(2)); break;
    case GATHER: veilrun_gather(w[0], IN(0), n[0], n[1], IN(1), OUT(2)); break;
    case LOOKUP: spread(memory, s, n[0], some_keys(w[4]), n_threads); break;
    case LINES: {
      const uint64_t n_flagged = spread(memory, s, n[0], some_keys(w[4]), n_threads);
      memcpy(OUT(6), &n_flagged, sizeof n_flagged);
      break;
    }
    case PACK: veilrun_pack_bits(w[0], IN(0), n[0], w[1], OUT(1)); break;
    case UNPACK:
      veilrun_unpack_bits(w[0], IN(0), n[1], w[1], n[0], OUT(1));
      return is_padded(IN(0), n[0], w[1]);
    case PACK_SUM: veilrun_pack_sum(w[0], IN(0), IN(1), n[0], w[1], OUT(2)); break;
    case ADD_PACKED:
      veilrun_add_packed(w[0], IN(0), IN(1), IN(2), n[1], w[1], n[0], OUT(3));
      return is_padded(IN(2), n[0], w[1]);
    default: return 0;
  }
  return 1;
}

EXPORT int32_t veilrun_run(uint8_t *memory, const tape_step *steps, int64_t first, int64_t end,
                           int32_t n_threads) {
  int is_right = 1;
  for (int64_t i = first; i < end; i++) is_right &= advance(memory, steps + i, n_threads);
  return is_right;
}
