/* Products of matrices mod 2^32 and mod 2^16.

   The right operand is packed in strips of 16 columns; a strip is `depth` rows of sixteen 32-bit
   lanes, so one row is one cache line, read in order. Mod 2^32 a lane is a value and depth = k;
   mod 2^16 a lane is two values, those of rows 2d and 2d + 1, and depth = (k + 1) / 2, because
   processors multiply and add such pairs in one step. Only the low bits of a product count, so
   signed and unsigned instructions serve alike. A strip is used for up to 128 rows of the left
   operand before the next one is read. */

#include "kernel.h"

#define STRIP 16
#define MAX_ROWS 128  /* of the left operand at a time: their sums stay in L1 */
#define MAX_DEPTH 512 /* rows of a strip at a time: 32 KiB, they stay in L1 */

INLINE uint32_t load_lane(const void *x, int64_t lane) {
  uint32_t value;
  memcpy(&value, (const uint8_t *)x + 4 * lane, 4);
  return value;
}

/* Strips come from memory once and in order, but at several instructions to the byte the
   processor's own prefetch falls behind: asking 4 KiB ahead almost doubles eight-row products. */
INLINE void prefetch_ahead(const uint32_t *strip_row) {
  __builtin_prefetch((const void *)((uintptr_t)strip_row + 4096));
}

/* Sums for `rows` rows: sums[r][c] += x[r] . strip[:, c]. ldx in lanes. */
typedef void tile_function(const void *x, int64_t ldx, int64_t rows, int64_t depth,
                           const uint32_t *strip, uint32_t *sums);

#define TILE_ROWS(NAME, TARGET, ROWS, KERNEL)                                                  \
  TARGET static void NAME(const void *x, int64_t ldx, int64_t rows, int64_t depth,             \
                          const uint32_t *strip, uint32_t *sums) {                             \
    int64_t r = 0;                                                                             \
    for (; r + (ROWS) <= rows; r += (ROWS))                                                    \
      KERNEL((const uint8_t *)x + 4 * r * ldx, ldx, (ROWS), depth, strip, sums + r * STRIP);   \
    if ((ROWS) > 4 && r + 4 <= rows) {                                                         \
      KERNEL((const uint8_t *)x + 4 * r * ldx, ldx, 4, depth, strip, sums + r * STRIP);        \
      r += 4;                                                                                  \
    }                                                                                          \
    if (r + 2 <= rows) {                                                                       \
      KERNEL((const uint8_t *)x + 4 * r * ldx, ldx, 2, depth, strip, sums + r * STRIP);        \
      r += 2;                                                                                  \
    }                                                                                          \
    if (r < rows)                                                                              \
      KERNEL((const uint8_t *)x + 4 * r * ldx, ldx, 1, depth, strip, sums + r * STRIP);        \
  }

/* --- plain C --- */

INLINE void plain_kernel(int pairs, const void *x, int64_t ldx, int rows, int64_t depth,
                         const uint32_t *strip, uint32_t *sums) {
  for (int r = 0; r < rows; r++) {
    uint32_t acc[STRIP];
    memcpy(acc, sums + r * STRIP, sizeof acc);
    for (int64_t d = 0; d < depth; d++) {
      const uint32_t a = load_lane(x, r * ldx + d);
      const uint32_t *b = strip + d * STRIP;
      for (int c = 0; c < STRIP; c++)
        acc[c] += pairs ? (a & 0xffff) * (b[c] & 0xffff) + (a >> 16) * (b[c] >> 16) : a * b[c];
    }
    memcpy(sums + r * STRIP, acc, sizeof acc);
  }
}

#define PLAIN_32(...) plain_kernel(0, __VA_ARGS__)
#define PLAIN_16(...) plain_kernel(1, __VA_ARGS__)
TILE_ROWS(plain_32, , 4, PLAIN_32)
TILE_ROWS(plain_16, , 4, PLAIN_16)

#if VEILRUN_X86

/* --- AVX2 --- */

#define AVX2 __attribute__((target("avx2")))

AVX2 INLINE void avx2_kernel(int pairs, const void *x, int64_t ldx, int rows, int64_t depth,
                             const uint32_t *strip, uint32_t *sums) {
  __m256i acc[4][2];
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < 2; h++)
      acc[r][h] = _mm256_loadu_si256((const __m256i *)(sums + r * STRIP + 8 * h));
  for (int64_t d = 0; d < depth; d++) {
    const __m256i b0 = _mm256_loadu_si256((const __m256i *)(strip + d * STRIP));
    const __m256i b1 = _mm256_loadu_si256((const __m256i *)(strip + d * STRIP + 8));
    prefetch_ahead(strip + d * STRIP);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      const __m256i a = _mm256_set1_epi32((int)load_lane(x, r * ldx + d));
      const __m256i p0 = pairs ? _mm256_madd_epi16(a, b0) : _mm256_mullo_epi32(a, b0);
      const __m256i p1 = pairs ? _mm256_madd_epi16(a, b1) : _mm256_mullo_epi32(a, b1);
      acc[r][0] = _mm256_add_epi32(acc[r][0], p0);
      acc[r][1] = _mm256_add_epi32(acc[r][1], p1);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < 2; h++)
      _mm256_storeu_si256((__m256i *)(sums + r * STRIP + 8 * h), acc[r][h]);
}

#define AVX2_32(...) avx2_kernel(0, __VA_ARGS__)
#define AVX2_16(...) avx2_kernel(1, __VA_ARGS__)
TILE_ROWS(avx2_32, AVX2, 4, AVX2_32)
TILE_ROWS(avx2_16, AVX2, 4, AVX2_16)

/* --- AVX-512: as above, on registers of a whole strip row --- */

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define IFMA __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512ifma")))

#define WIDE_KERNEL(NAME, TARGET, STEP)                                                       \
  TARGET INLINE void NAME(const void *x, int64_t ldx, int rows, int64_t depth,                \
                          const uint32_t *strip, uint32_t *sums) {                            \
    __m512i acc[16];                                                                          \
    for (int r = 0; r < rows; r++) acc[r] = _mm512_loadu_si512(sums + r * STRIP);             \
    for (int64_t d = 0; d < depth; d++) {                                                     \
      const __m512i b = _mm512_loadu_si512(strip + d * STRIP);                                \
      prefetch_ahead(strip + d * STRIP);                                                      \
      _Pragma("GCC unroll 16") for (int r = 0; r < rows; r++) {                               \
        const __m512i a = _mm512_set1_epi32((int)load_lane(x, r * ldx + d));                  \
        acc[r] = STEP(acc[r], a, b);                                                          \
      }                                                                                       \
    }                                                                                         \
    for (int r = 0; r < rows; r++) _mm512_storeu_si512(sums + r * STRIP, acc[r]);             \
  }

#define STEP_32(acc, a, b) _mm512_add_epi32(acc, _mm512_mullo_epi32(a, b))
#define STEP_16(acc, a, b) _mm512_add_epi32(acc, _mm512_madd_epi16(a, b))
#define STEP_VNNI(acc, a, b) _mm512_dpwssd_epi32(acc, a, b)
WIDE_KERNEL(wide_kernel_32, AVX512, STEP_32)
WIDE_KERNEL(wide_kernel_16, AVX512, STEP_16)
WIDE_KERNEL(wide_kernel_vnni, VNNI, STEP_VNNI)
TILE_ROWS(avx512_32, AVX512, 8, wide_kernel_32)
TILE_ROWS(avx512_16, AVX512, 8, wide_kernel_16)
TILE_ROWS(vnni_16, VNNI, 8, wide_kernel_vnni)

/* --- IFMA: multiplies the low 52 bits of 64-bit lanes and adds, in one step. Bits above the
   32nd only ever touch bits above the 32nd of the sum, so a register of sixteen values serves as
   it is for the even ones, and shifted for the odd ones. --- */

IFMA INLINE void ifma_kernel(const void *x, int64_t ldx, int rows, int64_t depth,
                             const uint32_t *strip, uint32_t *sums) {
  __m512i even[8], odd[8];
  for (int r = 0; r < rows; r++) even[r] = odd[r] = _mm512_setzero_si512();
  for (int64_t d = 0; d < depth; d++) {
    const __m512i b = _mm512_loadu_si512(strip + d * STRIP);
    prefetch_ahead(strip + d * STRIP);
    const __m512i b_odd = _mm512_srli_epi64(b, 32);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      const __m512i a = _mm512_set1_epi32((int)load_lane(x, r * ldx + d));
      even[r] = _mm512_madd52lo_epu64(even[r], a, b);
      odd[r] = _mm512_madd52lo_epu64(odd[r], a, b_odd);
    }
  }
  for (int r = 0; r < rows; r++) {
    const __m512i both = _mm512_mask_blend_epi32(0xaaaa, even[r], _mm512_slli_epi64(odd[r], 32));
    const __m512i before = _mm512_loadu_si512(sums + r * STRIP);
    _mm512_storeu_si512(sums + r * STRIP, _mm512_add_epi32(before, both));
  }
}

TILE_ROWS(ifma_32, IFMA, 8, ifma_kernel)

#endif

static tile_function *choose_tile(uint32_t features, int32_t item_bytes) {
#if VEILRUN_X86
  if (item_bytes == 4) {
    if (features & HAS_IFMA) return ifma_32;
    if (features & HAS_AVX512) return avx512_32;
    if (features & HAS_AVX2) return avx2_32;
  } else {
    if (features & HAS_VNNI) return vnni_16;
    if (features & HAS_AVX512) return avx512_16;
    if (features & HAS_AVX2) return avx2_16;
  }
#else
  (void)features;
#endif
  return item_bytes == 4 ? plain_32 : plain_16;
}

/* --- strips --- */

EXPORT void veilrun_pack_strips(int32_t item_bytes, const void *w, int64_t k, int64_t n,
                                void *strips) {
  uint32_t *to = strips;
  const int64_t depth = item_bytes == 4 ? k : (k + 1) / 2;
  for (int64_t c = 0; c < n; c += STRIP) {
    const int64_t width = n - c < STRIP ? n - c : STRIP;
    for (int64_t d = 0; d < depth; d++, to += STRIP) {
      if (width < STRIP) memset(to, 0, 4 * STRIP);
      if (item_bytes == 4) {
        memcpy(to, (const uint32_t *)w + d * n + c, (size_t)(4 * width));
      } else {
        const uint16_t *low = (const uint16_t *)w + 2 * d * n + c;
        const uint16_t *high = low + n;
        if (2 * d + 1 < k)
          for (int64_t i = 0; i < width; i++) to[i] = low[i] | (uint32_t)high[i] << 16;
        else
          for (int64_t i = 0; i < width; i++) to[i] = low[i];
      }
    }
  }
}

static void store_sums(int32_t item_bytes, const uint32_t *sums, int64_t rows, int64_t width,
                       int64_t n, int64_t first, void *out) {
  for (int64_t r = 0; r < rows; r++, sums += STRIP) {
    if (item_bytes == 4) {
      memcpy((uint32_t *)out + first + r * n, sums, (size_t)(4 * width));
    } else {
      uint16_t *to = (uint16_t *)out + first + r * n;
      for (int64_t i = 0; i < width; i++) to[i] = (uint16_t)sums[i];
    }
  }
}

/* x: rows of whole lanes, so with item_bytes == 2 k is even; ring.py pads it. */
EXPORT void veilrun_matmul(uint32_t features, int32_t item_bytes, const void *x, int64_t l,
                           int64_t k, const void *strips, int64_t n, int64_t first_strip,
                           int64_t end_strip, void *out) {
  tile_function *const tile = choose_tile(features, item_bytes);
  const int64_t depth = item_bytes == 4 ? k : k / 2;
  uint32_t sums[MAX_ROWS * STRIP];
  for (int64_t s = first_strip; s < end_strip; s++) {
    const uint32_t *strip = (const uint32_t *)strips + s * depth * STRIP;
    const int64_t width = n - s * STRIP < STRIP ? n - s * STRIP : STRIP;
    for (int64_t r = 0; r < l; r += MAX_ROWS) {
      const int64_t rows = l - r < MAX_ROWS ? l - r : MAX_ROWS;
      const uint8_t *left = (const uint8_t *)x + 4 * r * depth;
      memset(sums, 0, sizeof sums[0] * (size_t)(rows * STRIP));
      for (int64_t d = 0; d < depth; d += MAX_DEPTH) {
        const int64_t part = depth - d < MAX_DEPTH ? depth - d : MAX_DEPTH;
        tile(left + 4 * d, depth, rows, part, strip + d * STRIP, sums);
      }
      store_sums(item_bytes, sums, rows, width, n, r * n + s * STRIP, out);
    }
  }
}

/* scratch: the strips of one y. x: padded as above, k: as y has it. */
EXPORT void veilrun_matmul_batch(uint32_t features, int32_t item_bytes, const void *x,
                                 const void *y, int64_t n_batch, int64_t l, int64_t k, int64_t n,
                                 void *scratch, void *out) {
  const uint8_t *left = x, *right = y;
  uint8_t *to = out;
  const int64_t k_left = item_bytes == 4 ? k : k + (k & 1);
  for (int64_t b = 0; b < n_batch; b++) {
    veilrun_pack_strips(item_bytes, right, k, n, scratch);
    veilrun_matmul(features, item_bytes, left, l, k_left, scratch, n, 0, (n + STRIP - 1) / STRIP,
                   to);
    left += item_bytes * l * k_left;
    right += item_bytes * k * n;
    to += item_bytes * l * n;
  }
}
