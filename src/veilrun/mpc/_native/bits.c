/* Dense little-endian bit strings, one-time-table reads, and what the processor can do. */

#include <stdlib.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "kernel.h"

EXPORT int32_t veilrun_abi(void) { return VEILRUN_ABI; }

/* An inference allocates and frees arrays of 0.1 to 10 MB all the time. As delivered, glibc gives
   each back to the system and gets fresh zeroed pages for the next, which takes longer than the
   arithmetic on them. */
EXPORT void veilrun_keep_memory(void) {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

EXPORT uint32_t veilrun_features(void) {
  uint32_t features = 0;
#if VEILRUN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) features |= HAS_AVX2;
  if (__builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("aes")) features |= HAS_AES;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    features |= HAS_AVX512;
    if (__builtin_cpu_supports("avx512ifma")) features |= HAS_IFMA;
    if (__builtin_cpu_supports("avx512vnni")) features |= HAS_VNNI;
    if ((features & HAS_AES) && __builtin_cpu_supports("vaes")) features |= HAS_VAES;
  }
#endif
  return features;
}

INLINE uint64_t load_item(const void *values, int64_t i, int32_t item_bytes) {
  switch (item_bytes) {
    case 1: return ((const uint8_t *)values)[i];
    case 2: return ((const uint16_t *)values)[i];
    case 4: return ((const uint32_t *)values)[i];
    default: return ((const uint64_t *)values)[i];
  }
}

INLINE void store_item(void *out, int64_t i, int32_t item_bytes, uint64_t value) {
  switch (item_bytes) {
    case 1: ((uint8_t *)out)[i] = (uint8_t)value; break;
    case 2: ((uint16_t *)out)[i] = (uint16_t)value; break;
    case 4: ((uint32_t *)out)[i] = (uint32_t)value; break;
    default: ((uint64_t *)out)[i] = value;
  }
}

INLINE uint64_t low_mask(int32_t n_bits) { return n_bits == 64 ? ~0ull : (1ull << n_bits) - 1; }

/* Whole bytes: each store spills zeros over what the next one writes, so the last few values,
   whose spill would leave the buffer, are copied exactly. */
INLINE void pack_bytes(int32_t item_bytes, const void *values, int64_t n, int32_t width,
                       uint8_t *out) {
  const int64_t n_spilling = n - 8 > 0 ? n - 8 : 0;
  const uint64_t mask = low_mask(8 * width);
  for (int64_t i = 0; i < n_spilling; i++) {
    const uint64_t value = load_item(values, i, item_bytes) & mask;
    memcpy(out + i * width, &value, 8);
  }
  for (int64_t i = n_spilling; i < n; i++) {
    const uint64_t value = load_item(values, i, item_bytes);
    memcpy(out + i * width, &value, (size_t)width);
  }
}

INLINE void pack_any(int32_t item_bytes, const void *values, int64_t n, int32_t n_bits,
                     uint8_t *out) {
  const uint64_t mask = low_mask(n_bits);
  uint64_t word = 0;
  int32_t fill = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint64_t value = load_item(values, i, item_bytes) & mask;
    word |= value << fill;
    fill += n_bits;
    if (fill >= 64) {
      memcpy(out, &word, 8);
      out += 8;
      fill -= 64;
      word = fill ? value >> (n_bits - fill) : 0;
    }
  }
  memcpy(out, &word, (size_t)((fill + 7) / 8));
}

INLINE void pack_sized(int32_t item_bytes, const void *values, int64_t n, int32_t n_bits,
                       uint8_t *out) {
  switch (n_bits) { /* constant widths vectorise */
    case 8: for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)load_item(values, i, item_bytes); break;
    case 16:
      for (int64_t i = 0; i < n; i++) {
        const uint16_t value = (uint16_t)load_item(values, i, item_bytes);
        memcpy(out + 2 * i, &value, 2);
      }
      break;
    case 24: pack_bytes(item_bytes, values, n, 3, out); break;
    case 32:
      for (int64_t i = 0; i < n; i++) {
        const uint32_t value = (uint32_t)load_item(values, i, item_bytes);
        memcpy(out + 4 * i, &value, 4);
      }
      break;
    case 40: pack_bytes(item_bytes, values, n, 5, out); break;
    case 48: pack_bytes(item_bytes, values, n, 6, out); break;
    default: pack_any(item_bytes, values, n, n_bits, out);
  }
}

EXPORT void veilrun_pack_bits(int32_t item_bytes, const void *values, int64_t n, int32_t n_bits,
                              uint8_t *out) {
  switch (item_bytes) {
    case 1: pack_sized(1, values, n, n_bits, out); break;
    case 2: pack_sized(2, values, n, n_bits, out); break;
    case 4: pack_sized(4, values, n, n_bits, out); break;
    default: pack_sized(8, values, n, n_bits, out);
  }
}

/* Value i of the string; reads only inside it. */
static uint64_t unpack_one(const uint8_t *data, int64_t n_bytes, int32_t n_bits, int64_t i) {
  const int64_t bit = i * n_bits, start = bit >> 3;
  const int32_t shift = (int32_t)(bit & 7);
  uint8_t window[16] = {0};
  const int64_t left = n_bytes - start;
  memcpy(window, data + start, (size_t)(left < 9 ? left : 9));
  uint64_t low;
  memcpy(&low, window, 8);
  low >>= shift;
  if (shift) low |= (uint64_t)window[8] << (64 - shift);
  return low & low_mask(n_bits);
}

INLINE void unpack_sized(int32_t item_bytes, const uint8_t *data, int64_t n_bytes, int32_t n_bits,
                         int64_t n, void *out) {
  const uint64_t mask = low_mask(n_bits);
  int64_t i = 0;
  if (n_bits <= 57) { /* a value and its shift fit one 8-byte read */
    const int64_t n_wide = n_bytes >= 8 ? ((n_bytes - 8) * 8) / n_bits : 0;
    for (; i < n_wide && i < n; i++) {
      const int64_t bit = i * n_bits;
      uint64_t word;
      memcpy(&word, data + (bit >> 3), 8);
      store_item(out, i, item_bytes, (word >> (bit & 7)) & mask);
    }
  }
  for (; i < n; i++) store_item(out, i, item_bytes, unpack_one(data, n_bytes, n_bits, i));
}

INLINE void unpack_widths(int32_t item_bytes, const uint8_t *data, int64_t n_bytes, int32_t n_bits,
                          int64_t n, void *out) {
  if (n_bits == 8 * item_bytes) {
    memcpy(out, data, (size_t)n_bytes);
    return;
  }
  switch (n_bits) {
    case 8: unpack_sized(item_bytes, data, n_bytes, 8, n, out); break;
    case 16: unpack_sized(item_bytes, data, n_bytes, 16, n, out); break;
    case 24: unpack_sized(item_bytes, data, n_bytes, 24, n, out); break;
    case 32: unpack_sized(item_bytes, data, n_bytes, 32, n, out); break;
    case 48: unpack_sized(item_bytes, data, n_bytes, 48, n, out); break;
    default: unpack_sized(item_bytes, data, n_bytes, n_bits, n, out);
  }
}

EXPORT void veilrun_unpack_bits(int32_t item_bytes, const uint8_t *data, int64_t n_bytes,
                                int32_t n_bits, int64_t n, void *out) {
  switch (item_bytes) {
    case 1: unpack_widths(1, data, n_bytes, n_bits, n, out); break;
    case 2: unpack_widths(2, data, n_bytes, n_bits, n, out); break;
    case 4: unpack_widths(4, data, n_bytes, n_bits, n, out); break;
    default: unpack_widths(8, data, n_bytes, n_bits, n, out);
  }
}

/* --- sums on their way into and out of bit strings --- */

#define AT_ONCE 1024 /* values; a multiple of 8, so that parts of a string begin on bytes */

typedef union {
  uint16_t of_2[AT_ONCE];
  uint32_t of_4[AT_ONCE];
  uint64_t of_8[AT_ONCE];
} some_values;

#define SUM(T, SUMS)                                                                         \
  {                                                                                          \
    const T *x = (const T *)a + first, *y = (const T *)b + first;                            \
    T *sums = SUMS;                                                                          \
    for (int64_t i = 0; i < n; i++) sums[i] = (T)(x[i] + y[i]);                              \
  }

#define SUM_OF_THREE(T, Z)                                                                   \
  {                                                                                          \
    const T *x = (const T *)a + first, *y = (const T *)b + first, *z = Z;                    \
    const T mask = (T)low_mask(n_bits);                                                      \
    T *sums = (T *)out + first;                                                              \
    for (int64_t i = 0; i < n; i++) sums[i] = (T)(x[i] + y[i] + z[i]) & mask;                \
  }

EXPORT void veilrun_pack_sum(int32_t item_bytes, const void *a, const void *b, int64_t n_all,
                             int32_t n_bits, uint8_t *out) {
  some_values part;
  for (int64_t first = 0; first < n_all; first += AT_ONCE) {
    const int64_t n = n_all - first < AT_ONCE ? n_all - first : AT_ONCE;
    if (item_bytes == 2) SUM(uint16_t, part.of_2)
    else if (item_bytes == 4) SUM(uint32_t, part.of_4)
    else SUM(uint64_t, part.of_8)
    veilrun_pack_bits(item_bytes, &part, n, n_bits, out + first / 8 * n_bits);
  }
}

EXPORT void veilrun_add_packed(int32_t item_bytes, const void *a, const void *b,
                               const uint8_t *data, int64_t n_bytes, int32_t n_bits, int64_t n_all,
                               void *out) {
  some_values part;
  for (int64_t first = 0; first < n_all; first += AT_ONCE) {
    const int64_t n = n_all - first < AT_ONCE ? n_all - first : AT_ONCE;
    const int64_t begin = first / 8 * n_bits;
    const int64_t end = first + n == n_all ? n_bytes : begin + n / 8 * n_bits;
    veilrun_unpack_bits(item_bytes, data + begin, end - begin, n_bits, n, &part);
    if (item_bytes == 2) SUM_OF_THREE(uint16_t, part.of_2)
    else if (item_bytes == 4) SUM_OF_THREE(uint32_t, part.of_4)
    else SUM_OF_THREE(uint64_t, part.of_8)
  }
}

INLINE void gather_sized(int32_t item_bytes, const void *tables, int64_t n, int64_t width,
                         const uint32_t *indices, void *out) {
  for (int64_t i = 0; i < n; i++) {
    store_item(out, i, item_bytes, load_item(tables, i * width + indices[i], item_bytes));
  }
}

EXPORT void veilrun_gather(int32_t item_bytes, const void *tables, int64_t n, int64_t width,
                           const uint32_t *indices, void *out) {
  switch (item_bytes) {
    case 1: gather_sized(1, tables, n, width, indices, out); break;
    case 2: gather_sized(2, tables, n, width, indices, out); break;
    case 4: gather_sized(4, tables, n, width, indices, out); break;
    default: gather_sized(8, tables, n, width, indices, out);
  }
}
