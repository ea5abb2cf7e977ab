/* Sixteen floats at a time. */
#ifndef WEFT_VECTOR_H
#define WEFT_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { MOST_HEAD_DIM = 256 };

static inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline uint16_t to_bf16(float value) {
    return (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(value)), 0);
}

static inline __m512 load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

static inline void store_bf16(uint16_t *p, __m512 v) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v)); }

/* Two bfloat16 numbers in every pair of lanes. */
static inline __m512bh broadcast_pair(const uint16_t *pair) {
    int32_t bits;
    memcpy(&bits, pair, 4);
    return (__m512bh)_mm512_set1_epi32(bits);
}

/* e^x to about 2 units in the last place; 0 below -87, 1 at 0. Cephes' polynomial over 2^n 2^f, |f| <= 1/2. */
static inline __m512 exp_lanes(__m512 x) {
    const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), x); /* in this order a NaN stays one */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), tiny, _mm512_setzero_ps());
}

/* out = x / sqrt(mean(x^2) + epsilon) * weight over n numbers, n a multiple of 16. NaN where x^2 overflows: zeros would
   pass for an answer. */
static inline float rms_factor(const float *x, int n, float epsilon) {
    __m512 squares = _mm512_setzero_ps();
    for (int k = 0; k < n; k += 16) {
        const __m512 v = _mm512_loadu_ps(x + k);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / n;
    return mean <= __FLT_MAX__ ? 1.0f / __builtin_sqrtf(mean + epsilon) : __builtin_nanf("");
}

static inline void normalize(const float *x, const uint16_t *weight, int n, float epsilon, float *out) {
    const __m512 factor = _mm512_set1_ps(rms_factor(x, n, epsilon));
    for (int k = 0; k < n; k += 16)
        _mm512_storeu_ps(out + k, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + k), factor), load_bf16(weight + k)));
}

static inline void rms_norm(const float *x, const uint16_t *weight, int n, float epsilon, uint16_t *out) {
    const __m512 factor = _mm512_set1_ps(rms_factor(x, n, epsilon));
    for (int k = 0; k < n; k += 16)
        store_bf16(out + k, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + k), factor), load_bf16(weight + k)));
}

#endif
