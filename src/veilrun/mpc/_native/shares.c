/* Elementwise steps of the gates, each in one pass over its operands. Values of a b-bit ring lie in
   the smallest of uint16, uint32 and uint64 that holds them, and stay below 2^b. Public bits choose
   without a branch: they are uniform, and a branch on them would be mispredicted half the time. */

#include "kernel.h"

#define MASK(T, bits) ((bits) == 8 * (int)sizeof(T) ? (T)~(T)0 : (T)(((T)1 << (bits)) - 1))

/* out = (in >> by) + one mod 2^bits; the result may be of another width than the operand */
#define SHRINK(S, T)                                                                       \
  {                                                                                        \
    const S *x = in;                                                                       \
    T *z = out, mask = MASK(T, bits);                                                      \
    for (int64_t i = 0; i < n; i++) z[i] = (T)((T)(x[i] >> by) + (T)one) & mask;           \
  }

EXPORT CLONES void veilrun_shrink(int32_t size_in, int32_t size_out, int64_t n, int32_t by, int32_t bits,
                           int32_t one, const void *in, void *out) {
  if (size_in == 2 && size_out == 2) SHRINK(uint16_t, uint16_t)
  else if (size_in == 2 && size_out == 4) SHRINK(uint16_t, uint32_t)
  else if (size_in == 2) SHRINK(uint16_t, uint64_t)
  else if (size_in == 4 && size_out == 2) SHRINK(uint32_t, uint16_t)
  else if (size_in == 4 && size_out == 4) SHRINK(uint32_t, uint32_t)
  else if (size_in == 4) SHRINK(uint32_t, uint64_t)
  else if (size_out == 2) SHRINK(uint64_t, uint16_t)
  else if (size_out == 4) SHRINK(uint64_t, uint32_t)
  else SHRINK(uint64_t, uint64_t)
}

/* array = x - 2^(narrow - 2), rho = mask - 2^narrow (top ? with_top : without), both mod 2^wide;
   top = whether x's upper bit is 0. x, mask: S; the others: U, of the upper bits, and T, wide */
#define EXTEND(S, U, T)                                                                    \
  {                                                                                        \
    const S *xs = x, *ms = mask;                                                           \
    const U *w0 = without, *w1 = with_top;                                                 \
    T *as = array, *rs = rho, wrap = MASK(T, wide), lift = (T)1 << (narrow - 2);           \
    for (int64_t i = 0; i < n; i++) {                                                      \
      uint8_t is_top = !((xs[i] >> (narrow - 1)) & 1);                                     \
      T zero = w0[i], one = w1[i], upper = zero ^ ((zero ^ one) & (T) - (T)is_top);        \
      top[i] = is_top;                                                                     \
      as[i] = (T)((T)xs[i] - lift) & wrap;                                                 \
      rs[i] = (T)((T)ms[i] - (T)(upper << narrow)) & wrap;                                 \
    }                                                                                      \
  }

EXPORT CLONES void veilrun_extend(int32_t size_in, int32_t size_upper, int32_t size_out, int64_t n,
                           int32_t narrow, int32_t wide, const void *x, const void *mask,
                           const void *without, const void *with_top, void *array, void *rho,
                           uint8_t *top) {
  if (size_in == 2 && size_out == 2) EXTEND(uint16_t, uint16_t, uint16_t)
  else if (size_in == 2 && size_out == 4 && size_upper == 2) EXTEND(uint16_t, uint16_t, uint32_t)
  else if (size_in == 2 && size_out == 4) EXTEND(uint16_t, uint32_t, uint32_t)
  else if (size_in == 2 && size_upper == 4) EXTEND(uint16_t, uint32_t, uint64_t)
  else if (size_in == 2) EXTEND(uint16_t, uint64_t, uint64_t)
  else if (size_out == 4) EXTEND(uint32_t, uint16_t, uint32_t)
  else if (size_upper == 2) EXTEND(uint32_t, uint16_t, uint64_t)
  else if (size_upper == 4) EXTEND(uint32_t, uint32_t, uint64_t)
  else EXTEND(uint32_t, uint64_t, uint64_t)
}

/* Row by row, with one masked factor per row: out = p - rho Y + A (first Y - r) - 2^narrow t top */
#define TIMES(U, T)                                                                        \
  {                                                                                        \
    const T *as = array, *rs = rho, *ys = y, *ms = mask, *ps = p;                          \
    const U *ts = t;                                                                       \
    T *zs = out, wrap = MASK(T, wide);                                                     \
    for (int64_t row = 0; row < n_rows; row++) {                                           \
      T factor = ys[row], other = (T)((first ? factor : 0) - ms[row]);                     \
      for (int64_t i = row * n; i < (row + 1) * n; i++) {                                  \
        T upper = (T)ts[i] & (T) - (T)top[i];                                              \
        zs[i] = (T)(ps[i] - rs[i] * factor + as[i] * other - (upper << narrow)) & wrap;    \
      }                                                                                    \
    }                                                                                      \
  }

EXPORT CLONES void veilrun_times(int32_t size_upper, int32_t size, int64_t n_rows, int64_t n,
                          int32_t narrow, int32_t wide, int32_t first, const void *array,
                          const void *rho, const uint8_t *top, const void *y, const void *mask,
                          const void *p, const void *t, void *out) {
  if (size == 2) TIMES(uint16_t, uint16_t)
  else if (size == 4 && size_upper == 2) TIMES(uint16_t, uint32_t)
  else if (size == 4) TIMES(uint32_t, uint32_t)
  else if (size_upper == 2) TIMES(uint16_t, uint64_t)
  else if (size_upper == 4) TIMES(uint32_t, uint64_t)
  else TIMES(uint64_t, uint64_t)
}

/* Row by row: out = s + sum (A (first A - 2 rho) + 2^narrow q top) */
#define SQUARES(U, T)                                                                      \
  {                                                                                        \
    const T *as = array, *rs = rho, *ss = s;                                               \
    const U *qs = q;                                                                       \
    T *zs = out, wrap = MASK(T, wide);                                                     \
    for (int64_t row = 0; row < n_rows; row++) {                                           \
      T total = 0, upper = 0;                                                              \
      for (int64_t i = row * n; i < (row + 1) * n; i++) {                                  \
        total += as[i] * (T)((first ? as[i] : 0) - 2 * rs[i]);                             \
        upper += (T)qs[i] & (T) - (T)top[i];                                               \
      }                                                                                    \
      zs[row] = (T)(ss[row] + total + (upper << narrow)) & wrap;                           \
    }                                                                                      \
  }

EXPORT CLONES void veilrun_squares(int32_t size_upper, int32_t size, int64_t n_rows, int64_t n,
                            int32_t narrow, int32_t wide, int32_t first, const void *array,
                            const void *rho, const uint8_t *top, const void *s, const void *q,
                            void *out) {
  if (size == 2) SQUARES(uint16_t, uint16_t)
  else if (size == 4 && size_upper == 2) SQUARES(uint16_t, uint32_t)
  else if (size == 4) SQUARES(uint32_t, uint32_t)
  else if (size_upper == 2) SQUARES(uint16_t, uint64_t)
  else if (size_upper == 4) SQUARES(uint32_t, uint64_t)
  else SQUARES(uint64_t, uint64_t)
}
