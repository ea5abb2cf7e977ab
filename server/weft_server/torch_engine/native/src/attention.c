/* Attention over paged keys and values: softmax(q k^T / sqrt(D)) v for every new token, grouped queries together.
 *
 * A task is one key-value head of a few neighbouring rows. Keys are taken in tiles at fixed positions, each query's sums in
 * one fixed order, so that a query's result does not depend on which rows share its task, nor on how its prompt was cut.
 */
#include "weft.h"

#include "vector.h"

#include <math.h>

typedef struct {
    const Step *step;
    const uint16_t *cache; /* this layer's [block][2][H][16 D], see weft_rotate */
    int32_t heads, kv_heads, head_dim;
    int32_t window; /* 0: none */
    float scale;
} Attention;

enum { TILE_BLOCKS = 16, TILE_TOKENS = TILE_BLOCKS * BLOCK_TOKENS, TASK_QUERIES = 4, TASK_ROWS = 8 };
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const uint16_t *query;
    int limit, first; /* sees keys first..limit-1 */
    float maximum, sum;
    float out[MOST_HEAD_DIM];
} Query;

/* scores[i] of `count` queries with the 16 keys of `blocks` blocks. */
INLINE void score(const int count, const int blocks, const Query *q, const uint16_t *const *keys, int dim,
                  __m512 out[TASK_QUERIES][2]) {
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++)
            out[i][b] = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 2) {
        __m512bh key[2];
#pragma GCC unroll 2
        for (int b = 0; b < blocks; b++)
            key[b] = (__m512bh)_mm512_loadu_si512(keys[b] + d * BLOCK_TOKENS);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            const __m512bh pair = broadcast_pair(q[i].query + d);
#pragma GCC unroll 2
            for (int b = 0; b < blocks; b++)
                out[i][b] = _mm512_dpbf16_ps(out[i][b], pair, key[b]);
        }
    }
}

/* out += weights v over the tile's tokens, 64 dimensions at a time. */
INLINE void weigh(const int count, const int lanes, Query *q, uint16_t weights[TASK_QUERIES][TILE_TOKENS],
                  const uint16_t *const *values, int blocks, int dim, int d, const float *factors) {
    __m512 sum[TASK_QUERIES][4];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < lanes; j++)
            sum[i][j] = _mm512_mul_ps(_mm512_loadu_ps(q[i].out + d + 16 * j), _mm512_set1_ps(factors[i]));
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < BLOCK_TOKENS; t += 2) {
            __m512bh value[4];
#pragma GCC unroll 4
            for (int j = 0; j < lanes; j++)
                value[j] = (__m512bh)_mm512_loadu_si512(values[b] + (t * dim) + 2 * (d + 16 * j));
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                const __m512bh pair = broadcast_pair(weights[i] + b * BLOCK_TOKENS + t);
#pragma GCC unroll 4
                for (int j = 0; j < lanes; j++)
                    sum[i][j] = _mm512_dpbf16_ps(sum[i][j], pair, value[j]);
            }
        }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < lanes; j++)
            _mm512_storeu_ps(q[i].out + d + 16 * j, sum[i][j]);
}

INLINE void attend(const int count, const Attention *op, Query *q, const int32_t *table, int head) {
    const int dim = op->head_dim;
    const int64_t head_size = BLOCK_TOKENS * dim, block_size = 2 * op->kv_heads * head_size;
    int limit = 0, first = q[0].first;
    for (int i = 0; i < count; i++) {
        limit = q[i].limit > limit ? q[i].limit : limit;
        first = q[i].first < first ? q[i].first : first;
        q[i].maximum = -INFINITY;
        q[i].sum = 0;
        memset(q[i].out, 0, sizeof(float) * dim);
    }
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 nothing = _mm512_set1_ps(-INFINITY), scale = _mm512_set1_ps(op->scale);
    for (int begin = first / TILE_TOKENS * TILE_TOKENS; begin < limit; begin += TILE_TOKENS) {
        const int tokens = limit - begin < TILE_TOKENS ? limit - begin : TILE_TOKENS;
        const int blocks = (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        const uint16_t *keys[TILE_BLOCKS + 1], *values[TILE_BLOCKS];
        for (int b = 0; b < blocks; b++) {
            keys[b] = op->cache + table[begin / BLOCK_TOKENS + b] * block_size + head * head_size;
            values[b] = keys[b] + op->kv_heads * head_size;
        }
        __m512 scores[TASK_QUERIES][TILE_BLOCKS];
        for (int b = 0; b < blocks; b += 2) {
            __m512 pair[TASK_QUERIES][2] = {{nothing, nothing}};
            if (b + 1 < blocks)
                score(count, 2, q, keys + b, dim, pair);
            else
                score(count, 1, q, keys + b, dim, pair);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++)
                for (int c = 0; c < 2 && b + c < blocks; c++) {
                    const __m512i at = _mm512_add_epi32(lane, _mm512_set1_epi32(begin + (b + c) * BLOCK_TOKENS));
                    const __mmask16 seen = _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(q[i].limit)) &
                                           _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(q[i].first));
                    scores[i][b + c] = _mm512_mask_mul_ps(nothing, seen, pair[i][c], scale);
                }
        }
        uint16_t weights[TASK_QUERIES][TILE_TOKENS] __attribute__((aligned(64)));
        float factors[TASK_QUERIES];
        for (int i = 0; i < count; i++) {
            __m512 most = scores[i][0];
            for (int b = 1; b < blocks; b++)
                most = _mm512_max_ps(most, scores[i][b]);
            const float tile_most = _mm512_reduce_max_ps(most);
            const float maximum = q[i].maximum > tile_most ? q[i].maximum : tile_most;
            /* Before its window begins a query sees nothing: then all weights are 0, not NaN. */
            const float shift = maximum == -INFINITY ? 0.0f : maximum;
            factors[i] = q[i].maximum == -INFINITY ? 0.0f : _mm512_cvtss_f32(exp_lanes(_mm512_set1_ps(q[i].maximum - shift)));
            __m512 sum = _mm512_setzero_ps();
            for (int b = 0; b < blocks; b++) {
                const __m512 weight = exp_lanes(_mm512_sub_ps(scores[i][b], _mm512_set1_ps(shift)));
                store_bf16(weights[i] + b * BLOCK_TOKENS, weight);
                sum = _mm512_add_ps(sum, load_bf16(weights[i] + b * BLOCK_TOKENS));
            }
            q[i].sum = q[i].sum * factors[i] + _mm512_reduce_add_ps(sum);
            q[i].maximum = maximum;
        }
        int d = 0;
        for (; d + 64 <= dim; d += 64)
            weigh(count, 4, q, weights, values, blocks, dim, d, factors);
        for (; d < dim; d += 16)
            weigh(count, 1, q, weights, values, blocks, dim, d, factors);
    }
}

static void attend_of(int count, const Attention *op, Query *q, const int32_t *table, int head) {
    switch (count) {
    case 1: attend(1, op, q, table, head); break;
    case 2: attend(2, op, q, table, head); break;
    case 3: attend(3, op, q, table, head); break;
    case 4: attend(4, op, q, table, head); break;
    }
}

static void task(const Attention *op, const Span *span, int begin, int end, int head) {
    const Step *step = op->step;
    const int dim = op->head_dim, shared = op->heads / op->kv_heads;
    Query q[TASK_QUERIES];
    uint16_t *outputs[TASK_QUERIES];
    int count = 0;
    for (int t = begin; t < end; t++)
        for (int s = 0; s < shared; s++) {
            const int64_t at = ((int64_t)t * op->heads + head * shared + s) * dim;
            q[count].query = step->query + at;
            q[count].limit = span->start + t - span->begin + 1;
            q[count].first = op->window && q[count].limit > op->window ? q[count].limit - op->window : 0;
            outputs[count++] = step->inner + at;
            if (count < TASK_QUERIES && (s + 1 < shared || t + 1 < end))
                continue;
            attend_of(count, op, q, step->blocks + span->table, head);
            for (int i = 0; i < count; i++)
                for (int d = 0; d < dim; d += 16)
                    store_bf16(outputs[i] + d, _mm512_div_ps(_mm512_loadu_ps(q[i].out + d), _mm512_set1_ps(q[i].sum)));
            count = 0;
        }
}

void weft_attention(const void *args, Worker *worker) {
    const Attention *op = args;
    const Step *step = op->step;
    int unit = weft_next(worker), at = 0;
    for (int s = 0; s < step->num_spans; s++) {
        const Span *span = step->spans + s;
        for (int begin = span->begin; begin < span->begin + span->count; begin += TASK_ROWS) {
            const int last = span->begin + span->count, end = last < begin + TASK_ROWS ? last : begin + TASK_ROWS;
            for (int head = 0; head < op->kv_heads; head++, at++)
                if (at == unit) {
                    task(op, span, begin, end, head);
                    unit = weft_next(worker);
                }
        }
    }
}
