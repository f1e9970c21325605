/* What every file of the native kernel shares: the exported functions and the processor's features.

   The kernel is a plain shared library that Python loads with ctypes; it holds no state, allocates
   nothing and checks nothing. Invariant: callers (ring.py, dpf.py) have checked every shape and
   own every buffer, and each function gives the same bits whatever features it is allowed. */

#ifndef VEILRUN_KERNEL_H
#define VEILRUN_KERNEL_H

#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernel is for little-endian machines; the Python fallback serves the others"
#endif

#if defined(__x86_64__)
#define VEILRUN_X86 1
#include <immintrin.h>
#else
#define VEILRUN_X86 0
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

/* Compiled for several processors, of which the loader takes the best. */
#if VEILRUN_X86 && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* Bits of `features`. A caller may clear any of them; native.py names them too. */
#define HAS_AVX2 1u
#define HAS_AVX512 2u /* F, BW, DQ, VL */
#define HAS_IFMA 4u
#define HAS_VNNI 8u
#define HAS_AES 16u  /* AES-NI with SSE4.1 */
#define HAS_VAES 32u /* VAES on 512 bits, with AVX512 */

/* Changes with any signature below; native.py refuses a library of another version. */
#define VEILRUN_ABI 8

EXPORT int32_t veilrun_abi(void);
EXPORT uint32_t veilrun_features(void);
EXPORT void veilrun_keep_memory(void);

/* --- bits.c --- */

EXPORT void veilrun_pack_bits(int32_t item_bytes, const void *values, int64_t n, int32_t n_bits,
                              uint8_t *out);
EXPORT void veilrun_unpack_bits(int32_t item_bytes, const uint8_t *data, int64_t n_bytes,
                                int32_t n_bits, int64_t n, void *out);
/* The bit string of a + b; and a + b + the values of a bit string, mod 2^n_bits. Items of 2 bytes at
   least. */
EXPORT void veilrun_pack_sum(int32_t item_bytes, const void *a, const void *b, int64_t n,
                             int32_t n_bits, uint8_t *out);
EXPORT void veilrun_add_packed(int32_t item_bytes, const void *a, const void *b,
                               const uint8_t *data, int64_t n_bytes, int32_t n_bits, int64_t n,
                               void *out);
EXPORT void veilrun_gather(int32_t item_bytes, const void *tables, int64_t n, int64_t width,
                           const uint32_t *indices, void *out);

/* --- shares.c --- */

EXPORT void veilrun_shrink(int32_t size_in, int32_t size_out, int64_t n, int32_t by, int32_t bits,
                           int32_t one, const void *in, void *out);
EXPORT void veilrun_extend(int32_t size_in, int32_t size_upper, int32_t size_out, int64_t n,
                           int32_t narrow, int32_t wide, const void *x, const void *mask,
                           const void *without, const void *with_top, void *array, void *rho,
                           uint8_t *top);
EXPORT void veilrun_times(int32_t size_upper, int32_t size, int64_t n_rows, int64_t n,
                          int32_t narrow, int32_t wide, int32_t first, const void *array,
                          const void *rho, const uint8_t *top, const void *y, const void *mask,
                          const void *p, const void *t, void *out);
EXPORT void veilrun_squares(int32_t size_upper, int32_t size, int64_t n_rows, int64_t n,
                            int32_t narrow, int32_t wide, int32_t first, const void *array,
                            const void *rho, const uint8_t *top, const void *s, const void *q,
                            void *out);

/* --- matmul.c --- */

EXPORT void veilrun_pack_strips(int32_t item_bytes, const void *w, int64_t k, int64_t n,
                                void *strips);
EXPORT void veilrun_matmul(uint32_t features, int32_t item_bytes, const void *x, int64_t l,
                           int64_t k, const void *strips, int64_t n, int64_t first_strip,
                           int64_t end_strip, void *out);
EXPORT void veilrun_matmul_batch(uint32_t features, int32_t item_bytes, const void *x,
                                 const void *y, int64_t n_batch, int64_t l, int64_t k, int64_t n,
                                 void *scratch, void *out);

/* --- dpf.c, dpf_vaes.c --- */

/* A batch of keys as one party sees it. Each key's correction is q level words, then m leaf
   blocks for each of its payloads, 16 bytes each. aes_keys: as many as there are leaf blocks and
   one more, 16 bytes each, the tree's first. */
typedef struct {
  uint32_t features;
  int32_t party, n_bits, out_bits, q, m, n_payloads;
  int64_t n_keys;
  const uint8_t *aes_keys;
  const uint8_t *seeds;
  const uint8_t *corrections;
} dpf_batch;

/* scratch: 64-byte aligned, veilrun_dpf_scratch_bytes(q) long.
   tables: n_tables rows of `stride` items: item i of a row is the table at (-i) mod 2^n_bits,
   for i < 2 * 2^n_bits, with 64 bytes of anything after the last row. payload_of: which payload
   each row is for. out: n_tables rows; of dpf_expand, n_keys rows for each payload.
   payloads: n_keys for each payload, in the type of the lanes. */
EXPORT int64_t veilrun_dpf_scratch_bytes(int32_t q);
EXPORT void veilrun_dpf_lookup(const dpf_batch *batch, const uint32_t *indices, const void *tables,
                               int32_t n_tables, const int32_t *payload_of, int64_t stride,
                               int64_t out_stride, void *scratch, void *out);
EXPORT void veilrun_dpf_expand(const dpf_batch *batch, void *scratch, void *out);
EXPORT void veilrun_dpf_generate(const dpf_batch *batch, const uint32_t *points,
                                 const uint8_t *seeds1, const void *payloads,
                                 uint8_t *corrections);

/* --- dpf_lines.c --- */

/* Lines by opened values (of item_bytes each), of which the lower low_bits are the place in the
   step. is_narrow: of 32 bits, all slopes are signed numbers of 16. values, slopes, guard: laid out
   as `dpf_rows.Quarters` says; guard may be NULL. */
typedef struct {
  int32_t item_bytes, low_bits, is_narrow;
  const void *opened;
  const void *values;
  const void *slopes;
  const uint32_t *guard;
} dpf_lines;

/* For two payloads, q >= 3, m == 2, HAS_VAES and HAS_VNNI. Returns the sum of the guards' shares;
   of it, as many bits count as a lane has. */
EXPORT uint64_t veilrun_dpf_lines(const dpf_batch *batch, const dpf_lines *lines, void *scratch,
                                  void *out);

/* --- tape.c --- */

/* One step. op: its number in tape.c. word: widths. size: counts. at: byte offsets into the memory,
   and addresses of what is fixed, as tape.c reads them for each op. */
typedef struct {
  int32_t op, word[7];
  int64_t size[4], at[12];
} tape_step;

/* Does steps first to end; threads share products and look-ups. Returns 0 where the peer's bits were
   not padded with zeros. */
EXPORT int32_t veilrun_run(uint8_t *memory, const tape_step *steps, int64_t first, int64_t end,
                           int32_t n_threads);

#endif
