/* What happens to a row by itself: embedding, norm, rotation and caching, the gate, the residual. */
#include "weft.h"

#include "vector.h"

typedef struct {
    const Step *step;
    const uint16_t *table;  /* (V, E), or the head's blocks [V/32][E/2][32][2] */
    int32_t hidden, blocked;
} Embed;

typedef struct {
    const Step *step;
    const uint16_t *norm; /* (E,) */
    float epsilon;
    int32_t hidden, group_size;
} Norm;

typedef struct {
    const Step *step;
    int32_t width, group_size;
} Pool;

typedef struct {
    const Step *step;
    uint16_t *x;  /* (T, width), or NULL */
    float *wide_x; /* the same in float32, where x is NULL */
    int32_t width, place; /* in Step.scales */
} Scale;

typedef struct {
    const Step *step;
    int32_t inner, group_size;
} Gate;

typedef struct {
    const Step *step;
    int32_t hidden;
} Add;

typedef struct {
    const Step *step;
    const float *cos, *sin;          /* (positions, D/2) */
    const uint16_t *query_norm, *key_norm; /* (D,), or NULL */
    uint16_t *cache;                 /* this layer's [block][2][H][16 D] */
    float epsilon;
    int32_t heads, kv_heads, head_dim;
} Rotate;

/* The sums of a row's groups, which the int4 product and QA-LoRA both read. */
static void pool_row(const Step *step, int row, const uint16_t *x, int first, int count, int group_size) {
    float *pool = step->pool + (int64_t)row * step->pool_stride + first / group_size;
    uint16_t *pooled = step->pooled + (int64_t)row * step->pool_stride + first / group_size;
    for (int k = 0; k < count; k += group_size) {
        __m512 sum = load_bf16(x + first + k);
        for (int i = 16; i < group_size; i += 16)
            sum = _mm512_add_ps(sum, load_bf16(x + first + k + i));
        const float total = _mm512_reduce_add_ps(sum);
        *pool++ = total;
        *pooled++ = to_bf16(total);
    }
}

void weft_embed(const void *args, Worker *worker) {
    const Embed *op = args;
    for (int t = weft_next(worker); t < op->step->num_rows; t = weft_next(worker)) {
        const int64_t token = op->step->token[t];
        float *x = op->step->hidden + (int64_t)t * op->hidden;
        if (token < 0) {
            const float *embedding = op->step->embedded + (-1 - token) * op->hidden;
            for (int k = 0; k < op->hidden; k += 16)
                _mm512_storeu_ps(x + k, _mm512_loadu_ps(embedding + k));
        } else if (op->blocked) {
            const uint16_t *pairs = op->table + token / BLOCK_N * op->hidden * BLOCK_N + token % BLOCK_N * 2;
            for (int k = 0; k < op->hidden; k += 2, pairs += 2 * BLOCK_N) {
                x[k] = from_bf16(pairs[0]);
                x[k + 1] = from_bf16(pairs[1]);
            }
        } else {
            for (int k = 0; k < op->hidden; k += 16)
                _mm512_storeu_ps(x + k, load_bf16(op->table + token * op->hidden + k));
        }
    }
}

void weft_norm(const void *args, Worker *worker) {
    const Norm *op = args;
    for (int t = weft_next(worker); t < op->step->num_rows; t = weft_next(worker)) {
        uint16_t *out = op->step->normed + (int64_t)t * op->hidden;
        rms_norm(op->step->hidden + (int64_t)t * op->hidden, op->norm, op->hidden, op->epsilon, out);
        pool_row(op->step, t, out, 0, op->hidden, op->group_size);
    }
}

/* The sums of the groups of `inner`, where what wrote it did not make them. */
void weft_pool(const void *args, Worker *worker) {
    const Pool *op = args;
    for (int t = weft_next(worker); t < op->step->num_rows; t = weft_next(worker))
        pool_row(op->step, t, op->step->inner + (int64_t)t * op->width, 0, op->width, op->group_size);
}

/* Each row times its own adapter's factors; rows of others are not touched. */
void weft_scale(const void *args, Worker *worker) {
    const Scale *op = args;
    const Step *step = op->step;
    for (int t = weft_next(worker); t < step->num_rows; t = weft_next(worker)) {
        if (step->slot[t] < 0)
            continue;
        const RowScale factors = step->scales[(int64_t)op->place * step->num_slots + step->slot[t]];
        if (!factors.scale)
            continue;
        const int64_t at = (int64_t)t * op->width;
        for (int k = 0; k < op->width; k += 16) {
            __m512 x = op->x ? load_bf16(op->x + at + k) : _mm512_loadu_ps(op->wide_x + at + k);
            x = _mm512_mul_ps(x, _mm512_loadu_ps(factors.scale + k));
            if (factors.shift)
                x = _mm512_add_ps(x, _mm512_loadu_ps(factors.shift + k));
            if (op->x)
                store_bf16(op->x + at + k, x);
            else
                _mm512_storeu_ps(op->wide_x + at + k, x);
        }
    }
}

/* inner = silu(gate) * up, of gate and up side by side. */
void weft_gate(const void *args, Worker *worker) {
    const Gate *op = args;
    for (int t = weft_next(worker); t < op->step->num_rows; t = weft_next(worker)) {
        const uint16_t *gate = op->step->wide + (int64_t)t * 2 * op->inner;
        uint16_t *out = op->step->inner + (int64_t)t * op->inner;
        for (int k = 0; k < op->inner; k += 16) {
            const __m512 g = load_bf16(gate + k);
            const __m512 sigmoid = _mm512_div_ps(
                _mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), exp_lanes(_mm512_sub_ps(_mm512_setzero_ps(), g))));
            store_bf16(out + k, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), load_bf16(gate + op->inner + k)));
        }
        pool_row(op->step, t, out, 0, op->inner, op->group_size);
    }
}

/* The residual stream plus what a sublayer adds to it, which adapters have changed since. In float32, as the product
 * would have added it: who wears none of them keeps the same bits. */
void weft_add(const void *args, Worker *worker) {
    const Add *op = args;
    for (int t = weft_next(worker); t < op->step->num_rows; t = weft_next(worker)) {
        float *x = op->step->hidden + (int64_t)t * op->hidden;
        for (int k = 0; k < op->hidden; k += 16)
            _mm512_storeu_ps(x + k, _mm512_add_ps(_mm512_loadu_ps(x + k),
                                                  _mm512_loadu_ps(op->step->sum + (int64_t)t * op->hidden + k)));
    }
}

/* (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves of a head; normed first where asked for. */
static void rotate(const Rotate *op, const uint16_t *in, const uint16_t *norm, int64_t position, uint16_t *out) {
    const int half = op->head_dim / 2;
    float x[MOST_HEAD_DIM];
    for (int d = 0; d < op->head_dim; d += 16)
        _mm512_storeu_ps(x + d, load_bf16(in + d));
    if (norm)
        normalize(x, norm, op->head_dim, op->epsilon, x);
    const float *cos = op->cos + position * half, *sin = op->sin + position * half;
    for (int d = 0; d < half; d++) {
        out[d] = to_bf16(x[d] * cos[d] - x[d + half] * sin[d]);
        out[d + half] = to_bf16(x[d + half] * cos[d] + x[d] * sin[d]);
    }
}

/* Queries rotated; keys rotated and, with values, put into the cache. Keys lie [D/2][16 tokens][2] in a block, values
 * [8][D][2 tokens], so that attention multiplies whole vectors of tokens, or of dimensions. */
void weft_rotate(const void *args, Worker *worker) {
    const Rotate *op = args;
    const Step *step = op->step;
    const int dim = op->head_dim, heads = op->heads, kv_heads = op->kv_heads;
    const int64_t head_size = BLOCK_TOKENS * dim, block_size = 2 * kv_heads * head_size;
    int span = 0;
    for (int t = weft_next(worker); t < step->num_rows; t = weft_next(worker)) {
        while (step->spans[span].begin + step->spans[span].count <= t)
            span++;
        const int64_t position = step->position[t];
        const int at = step->spans[span].start + t - step->spans[span].begin, token = at % BLOCK_TOKENS;
        uint16_t *block = op->cache + step->blocks[step->spans[span].table + at / BLOCK_TOKENS] * block_size;
        const uint16_t *in = step->wide + (int64_t)t * (heads + 2 * kv_heads) * dim;
        for (int h = 0; h < heads; h++)
            rotate(op, in + h * dim, op->query_norm, position, step->query + ((int64_t)t * heads + h) * dim);
        for (int h = 0; h < kv_heads; h++) {
            uint16_t key[MOST_HEAD_DIM];
            rotate(op, in + (heads + h) * dim, op->key_norm, position, key);
            uint16_t *keys = block + h * head_size + 2 * token;
            for (int d = 0; d < dim; d += 2) {
                keys[d * BLOCK_TOKENS] = key[d];
                keys[d * BLOCK_TOKENS + 1] = key[d + 1];
            }
            const uint16_t *value = in + (heads + kv_heads + h) * dim;
            uint16_t *values = block + (kv_heads + h) * head_size + token / 2 * 2 * dim + token % 2;
            for (int d = 0; d < dim; d++)
                values[2 * d] = value[d];
        }
    }
}
