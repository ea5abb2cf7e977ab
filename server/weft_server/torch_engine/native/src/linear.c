/* Linear sites: y[t] = W x[t] + bias + scale_i B_i (A_i x[t]), i the adapter of row t; and the head.
 *
 * W is int4 in groups of inputs that share a float16 scale and minimum. With codes c and pool(x) the sum of a group,
 *
 *     W x = sum over groups of  scale (c . x)  +  minimum pool(x)
 *
 * so codes are multiplied as they are, being exact in bfloat16, and the scale is applied once a group in float32: nothing
 * is rounded but the sums. A merged QA-LoRA adapter is another minimum, a merged (IA)^3 adapter another scale too. Every
 * sum of a row is taken in one fixed order, whatever the other rows are: a row's result does not depend on its batch, not
 * in one bit.
 */
#include "weft.h"

#include "vector.h"

typedef struct Linear Linear;
struct Linear {
    const Step *step;
    const Weight *weight;
    const Weight *merged;         /* of the rows 0..num_merged-1; NULL: like the others */
    const uint16_t *input;        /* (T, K) */
    uint16_t *output;             /* (T, N), or NULL */
    float *sum;                   /* the same in float32, or NULL; where both are, it goes onto the residual stream */
    int32_t module, num_modules;  /* the site's first module in Step.low_rank */
    int32_t module_end[4];        /* where each module's outputs end */
    const Linear *next;           /* the linear site that comes after this one, or NULL */
};

typedef struct {
    const Step *step;
    const Weight *weight;
    const uint16_t *norm; /* (E,) */
    float epsilon;
    int32_t num_out;
    uint16_t *input; /* (S, E) */
    float *logits;   /* (S, num_out) */
    float *best;     /* (S,): the largest logit, NaN if there is one */
    int64_t *token;  /* (S,): where it is first found */
    float *block_best; /* (S, N/32) scratch */
} Head;

enum { TASK_RANKS = 4, MOST_RANKS = 8, TASK_ROWS = 64, ROW_CHUNK = 192, SHARES = 4, MOST_RANGES = 256 };
#define INLINE static inline __attribute__((always_inline))

/* The 16 codes as bfloat16, twice over: vpermw looks at five bits of an index. */
INLINE __m512i code_table(void) {
    static const uint16_t table[32] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
                                       0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
                                       0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
    return _mm512_loadu_si512(table);
}

/* 64 bytes of codes as four vectors of (16 outputs, 2 inputs): input pair p outputs 0-15, 16-31, then pair p + 1. */
INLINE void unpack(const uint16_t *codes, __m512i table, __m512i w[4]) {
    __m512i v = _mm512_loadu_si512(codes);
    w[0] = _mm512_permutexvar_epi16(v, table);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), table);
    w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), table);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), table);
}

/* Memory to send for while products are computed, a line at a time: asked for all at once, the lines would be waited for. */
typedef struct {
    const char *at, *end;
} Range;
typedef struct {
    const char *at, *end; /* of the range in work */
    int next, count;
    Range ranges[MOST_RANGES];
} Ahead;

INLINE void fetch(Ahead *ahead) {
    if (ahead->at < ahead->end) {
        _mm_prefetch(ahead->at, _MM_HINT_T1);
        ahead->at += 64;
    } else if (ahead->next < ahead->count) {
        ahead->at = ahead->ranges[ahead->next].at;
        ahead->end = ahead->ranges[ahead->next++].end;
    }
}

static void send_for(Ahead *ahead, const void *from, int64_t bytes) {
    if (bytes > 0 && ahead->count < MOST_RANGES)
        ahead->ranges[ahead->count++] = (Range){from, (const char *)from + bytes};
}

/* `rows` rows by one block of outputs. Codes are unpacked again for every tile of rows: that is done beside the products,
 * and cheaper than keeping them unpacked (measured: 1.45 us for 8 rows of 576 inputs either way, and 0.48 us to store).
 */
INLINE void tile(const int rows, const int dense, const Weight *weight, int block, Ahead *ahead, const uint16_t *x,
                 const float *pool, int pool_stride, float *out) {
    const int num_in = weight->num_in, group = dense ? num_in : weight->group_size, num_groups = num_in / group;
    const uint16_t *codes = dense ? weight->dense + (int64_t)block * num_in * BLOCK_N
                                  : weight->codes + (int64_t)block * num_in / 4 * BLOCK_N;
    const __m512i table = code_table();
    __m512 total[TILE_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        total[r][0] = total[r][1] = _mm512_setzero_ps();
    for (int g = 0; g < num_groups; g++) {
        __m512 sum[TILE_ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = _mm512_setzero_ps();
        for (int k = g * group; k < (g + 1) * group; k += 4) {
            __m512i w[4];
            if (dense) {
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++, codes += 32) {
                    fetch(ahead);
                    w[i] = _mm512_loadu_si512(codes);
                }
            } else {
                fetch(ahead);
                fetch(ahead);
                fetch(ahead);
                unpack(codes, table, w);
                codes += 32;
            }
#pragma GCC unroll 2
            for (int p = 0; p < 2; p++) {
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    __m512bh pair = broadcast_pair(x + (int64_t)r * num_in + k + 2 * p);
                    sum[r][0] = _mm512_dpbf16_ps(sum[r][0], pair, (__m512bh)w[2 * p]);
                    sum[r][1] = _mm512_dpbf16_ps(sum[r][1], pair, (__m512bh)w[2 * p + 1]);
                }
            }
        }
        if (dense) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                total[r][0] = sum[r][0], total[r][1] = sum[r][1];
        } else {
            const int64_t at = ((int64_t)block * num_groups + g) * BLOCK_N;
            __m512 scale[2], minimum[2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                scale[i] = weight->scale32
                               ? _mm512_loadu_ps(weight->scale32 + at + 16 * i)
                               : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(weight->scale + at + 16 * i)));
                minimum[i] = weight->minimum
                                 ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(weight->minimum + at + 16 * i)))
                                 : _mm512_loadu_ps(weight->minimum32 + at + 16 * i);
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                __m512 pooled = _mm512_set1_ps(pool[(int64_t)r * pool_stride + g]);
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++)
                    total[r][i] = _mm512_fmadd_ps(minimum[i], pooled, _mm512_fmadd_ps(scale[i], sum[r][i], total[r][i]));
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(out + r * BLOCK_N, total[r][0]);
        _mm512_storeu_ps(out + r * BLOCK_N + 16, total[r][1]);
    }
}

/* A block's weights. */
static void send_for_block(Ahead *ahead, const Weight *weight, int block) {
    if (block >= weight->num_out / BLOCK_N)
        return;
    const int words = weight->num_in * (weight->dense ? BLOCK_N : BLOCK_N / 4);
    send_for(ahead, (weight->dense ? weight->dense : weight->codes) + (int64_t)block * words, 2 * words);
}

static void tile_of(int rows, const Weight *weight, int block, Ahead *ahead, const uint16_t *x, const float *pool,
                    int pool_stride, float *out) {
#define CASE(R)                                                                                                                \
    case R:                                                                                                                    \
        if (weight->dense)                                                                                                     \
            tile(R, 1, weight, block, ahead, x, pool, pool_stride, out);                                                              \
        else                                                                                                                   \
            tile(R, 0, weight, block, ahead, x, pool, pool_stride, out);                                                              \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
    }
#undef CASE
}

/* out[r] += b h[r] for neighbouring rows of one adapter, in one block of outputs; `b` points at the block. */
INLINE void expand(const int rows, int rank, const uint16_t *b, const uint16_t *h, int h_stride, float *out) {
    __m512 sum[TILE_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            sum[r][i] = _mm512_loadu_ps(out + r * BLOCK_N + 16 * i);
    for (int k = 0; k < rank; k += 2, b += 2 * BLOCK_N) {
        __m512i w[2];
        if (k + 1 < rank) {
            w[0] = _mm512_loadu_si512(b);
            w[1] = _mm512_loadu_si512(b + BLOCK_N);
        } else {
            w[0] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)b));
            w[1] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(b + 16)));
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const __m512bh pair = broadcast_pair(h + (int64_t)r * h_stride + k);
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++)
                sum[r][i] = _mm512_dpbf16_ps(sum[r][i], pair, (__m512bh)w[i]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
            _mm512_storeu_ps(out + r * BLOCK_N + 16 * i, sum[r][i]);
}

static void expand_of(int rows, int rank, const uint16_t *b, const uint16_t *h, int h_stride, float *out) {
#define CASE(R)                                                                                                                \
    case R:                                                                                                                    \
        expand(R, rank, b, h, h_stride, out);                                                                                  \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
    }
#undef CASE
}

static const LowRank *factors_of(const Linear *op, int module, int slot) {
    return op->step->low_rank + (int64_t)(op->module + module) * op->step->num_slots + slot;
}

/* sums[i][j] = a[i] . x[j] over `count` inputs, 32 at a time, the last ones masked. */
INLINE void dots(const int ranks, const int rows, const uint16_t *a, const uint16_t *x, int64_t a_stride, int64_t x_stride,
                 int count, float sums[MOST_RANKS][4]) {
    __m512 sum[MOST_RANKS][4];
#pragma GCC unroll 8
    for (int i = 0; i < ranks; i++)
#pragma GCC unroll 4
        for (int j = 0; j < rows; j++)
            sum[i][j] = _mm512_setzero_ps();
    for (int k = 0; k < count; k += 32) {
        __mmask32 mask = count - k >= 32 ? 0xffffffffu : (1u << (count - k)) - 1;
        __m512bh left[MOST_RANKS];
#pragma GCC unroll 8
        for (int i = 0; i < ranks; i++)
            left[i] = (__m512bh)_mm512_maskz_loadu_epi16(mask, a + i * a_stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < rows; j++) {
            __m512bh right = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + j * x_stride + k);
#pragma GCC unroll 8
            for (int i = 0; i < ranks; i++)
                sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left[i], right);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ranks; i++)
#pragma GCC unroll 4
        for (int j = 0; j < rows; j++)
            sums[i][j] = _mm512_reduce_add_ps(sum[i][j]);
}

static void dots_of(int ranks, int rows, const uint16_t *a, const uint16_t *x, int64_t a_stride, int64_t x_stride, int count,
                    float sums[MOST_RANKS][4]) {
#define CASE(I, J)                                                                                                             \
    case 4 * I + J:                                                                                                            \
        dots(I, J, a, x, a_stride, x_stride, count, sums);                                                                     \
        break;
#define ROWS(I) CASE(I, 1) CASE(I, 2) CASE(I, 3) CASE(I, 4)
    switch (4 * ranks + rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4)
        /* One row: more ranks at once, or its few sums would wait for each other. */
        CASE(5, 1) CASE(6, 1) CASE(7, 1) CASE(8, 1)
    }
#undef ROWS
#undef CASE
}

static int low_rank_inputs(const Linear *op, const LowRank *factors) {
    return factors->pooled ? op->weight->num_in / op->weight->group_size : op->weight->num_in;
}

static void shrink_tile(const Step *step, const LowRank *factors, int rank, int ranks, int row, int rows, const uint16_t *x,
                        int64_t x_stride, int count) {
    float sums[MOST_RANKS][4];
    dots_of(ranks, rows, factors->a + (int64_t)rank * count, x + row * x_stride, count, x_stride, count, sums);
    for (int j = 0; j < rows; j++) {
        uint16_t *low = step->low + (int64_t)(row + j) * step->low_stride + factors->offset + rank;
        for (int i = 0; i < ranks; i++)
            low[i] = to_bf16(factors->scale * sums[i][j]);
        if (ranks & 1)
            low[ranks] = 0; /* the other half of the last pair */
    }
}

/* low = scale * a x, a few ranks of one adapter at one module for some of its rows at a time. */
void weft_shrink(const void *args, Worker *worker) {
    const Linear *op = args;
    const Step *step = op->step;
    if (!step->num_segments)
        return;
    /* Few ranks at a time only where there are few adapters: a unit costs a trip between the processor's cores. */
    const int unit_ranks = step->num_segments * op->num_modules < SHARES * worker->count ? TASK_RANKS : 4 * TASK_RANKS;
    int unit = weft_next(worker), at = 0;
    for (int s = 0; s < step->num_segments; s++) {
        const Segment segment = step->segments[s];
        for (int m = 0; m < op->num_modules; m++) {
            const LowRank *factors = factors_of(op, m, segment.slot);
            if (!factors->rank)
                continue;
            const int count = low_rank_inputs(op, factors);
            const int64_t x_stride = factors->pooled ? step->pool_stride : op->weight->num_in;
            const uint16_t *x = factors->pooled ? step->pooled : op->input;
            for (int first = 0; first < factors->rank; first += unit_ranks)
                for (int begin = segment.begin; begin < segment.end; begin += TASK_ROWS, at++) {
                    if (at != unit)
                        continue;
                    unit = weft_next(worker);
                    const int last = factors->rank < first + unit_ranks ? factors->rank : first + unit_ranks;
                    const int end = segment.end < begin + TASK_ROWS ? segment.end : begin + TASK_ROWS;
                    const int together = end - begin == 1 ? MOST_RANKS : TASK_RANKS;
                    for (int rank = first; rank < last; rank += together)
                        for (int row = begin; row < end; row += 4)
                            shrink_tile(step, factors, rank, last - rank < together ? last - rank : together, row,
                                        end - row < 4 ? end - row : 4, x, x_stride, count);
                }
        }
    }
}

static void add_deltas(const Linear *op, int module, int block, int row, int rows, float *out) {
    const Step *step = op->step;
    for (int begin = 0, end; begin < rows; begin = end) {
        const int slot = step->slot[row + begin];
        for (end = begin + 1; end < rows && step->slot[row + end] == slot; end++)
            ;
        if (slot < 0)
            continue;
        const LowRank *factors = factors_of(op, module, slot);
        if (factors->rank)
            expand_of(end - begin, factors->rank, factors->b + (int64_t)block * factors->rank * BLOCK_N,
                      step->low + (int64_t)(row + begin) * step->low_stride + factors->offset, step->low_stride,
                      out + begin * BLOCK_N);
    }
}

static void store(const Linear *op, const Weight *weight, int block, int row, int rows, const float *out) {
    const int num_out = op->weight->num_out;
    for (int r = 0; r < rows; r++) {
        __m512 y[2] = {_mm512_loadu_ps(out + r * BLOCK_N), _mm512_loadu_ps(out + r * BLOCK_N + 16)};
        const int64_t at = (int64_t)(row + r) * num_out + (int64_t)block * BLOCK_N;
        for (int i = 0; i < 2; i++) {
            if (weight->bias)
                y[i] = _mm512_add_ps(y[i], _mm512_loadu_ps(weight->bias + block * BLOCK_N + 16 * i));
            if (op->output) {
                _mm256_storeu_si256((__m256i *)(op->output + at + 16 * i), (__m256i)_mm512_cvtneps_pbh(y[i]));
            } else if (op->sum) {
                _mm512_storeu_ps(op->sum + at + 16 * i, y[i]);
            } else {
                float *hidden = op->step->hidden + at + 16 * i;
                _mm512_storeu_ps(hidden, _mm512_add_ps(_mm512_loadu_ps(hidden), y[i]));
            }
        }
    }
}

static void send_for_expand(Ahead *ahead, const Linear *op, int block) {
    int module = 0;
    while (module + 1 < op->num_modules && op->module_end[module] <= block * BLOCK_N)
        module++;
    const int first = module ? op->module_end[module - 1] / BLOCK_N : 0;
    for (int s = 0; s < op->step->num_segments; s++) {
        const LowRank *factors = factors_of(op, module, op->step->segments[s].slot);
        const int64_t count = factors->rank * BLOCK_N;
        send_for(ahead, factors->b + (block - first) * count, 2 * count);
    }
}

/* The share of `block` in fetching the first factors of the next site. */
static void send_for_shrink(Ahead *ahead, const Linear *op, int block) {
    const int num_blocks = op->weight->num_out / BLOCK_N;
    for (int s = 0; op->next && s < op->step->num_segments; s++)
        for (int m = 0; m < op->next->num_modules; m++) {
            const LowRank *factors = factors_of(op->next, m, op->step->segments[s].slot);
            const int64_t lines = ((int64_t)factors->rank * low_rank_inputs(op->next, factors) + 31) / 32;
            const int64_t begin = lines * block / num_blocks, end = lines * (block + 1) / num_blocks;
            send_for(ahead, factors->a + begin * 32, (end - begin) * 64);
        }
}

/* What this worker will want while and after it computes `block`: weights and adapters' factors of the block `on` blocks
 * further, in this site or the next, and a share of the next site's first factors. */
static void look_ahead(Ahead *ahead, const Linear *op, const Weight *weight, int block, int on, int first_chunk) {
    const int num_blocks = op->weight->num_out / BLOCK_N, later = block + on;
    ahead->at = ahead->end = NULL;
    ahead->next = ahead->count = 0;
    if (later < num_blocks) {
        send_for_block(ahead, weight, later);
        send_for_expand(ahead, op, later);
    } else if (op->next) {
        send_for_block(ahead, op->next->weight, later - num_blocks);
        send_for_expand(ahead, op->next, later - num_blocks);
    }
    if (first_chunk)
        send_for_shrink(ahead, op, block);
}

static void rows_by_block(const Linear *op, const Weight *weight, int block, int begin, int end, Ahead *ahead) {
    const Step *step = op->step;
    int module = 0;
    while (module + 1 < op->num_modules && op->module_end[module] <= block * BLOCK_N)
        module++;
    const int first = module ? op->module_end[module - 1] / BLOCK_N : 0;
    /* Tiles as equal as they can be: a tile of one row would wait for its own sums. */
    const int num_tiles = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
    for (int i = 0, row = begin; i < num_tiles; i++) {
        const int rows = (end - row + num_tiles - i - 1) / (num_tiles - i);
        float out[TILE_ROWS * BLOCK_N] __attribute__((aligned(64)));
        tile_of(rows, weight, block, ahead, op->input + (int64_t)row * weight->num_in,
                step->pool + (int64_t)row * step->pool_stride, step->pool_stride, out);
        if (step->num_segments)
            add_deltas(op, module, block - first, row, rows, out);
        store(op, weight, block, row, rows, out);
        row += rows;
    }
}

/* Few rows: the weights' way from memory is what takes time, and neighbouring blocks are one stream, which the processor
 * fetches ahead. Many rows: the product is, and single blocks are shared out most evenly. */
static int blocks_at_once(int rows, int num_blocks, const Worker *worker) {
    const int some = rows < TILE_ROWS ? num_blocks / (SHARES * worker->count) : 1;
    return some > 1 ? some : 1;
}

void weft_linear(const void *args, Worker *worker) {
    const Linear *op = args;
    const Step *step = op->step;
    Ahead ahead;
    /* Rows go in chunks whose inputs stay in the cache; a chunk is all of one kind of weight. */
    const int num_blocks = op->weight->num_out / BLOCK_N, some = blocks_at_once(step->num_rows, num_blocks, worker);
    const int num_units = (num_blocks + some - 1) / some;
    for (int unit = weft_next(worker), at = 0, begin = 0; begin < step->num_rows;) {
        const int merged = op->merged && begin < step->num_merged;
        const int limit = merged ? step->num_merged : step->num_rows;
        const int end = limit < begin + ROW_CHUNK ? limit : begin + ROW_CHUNK;
        for (; unit < at + num_units; unit = weft_next(worker))
            for (int block = (unit - at) * some; block < num_blocks && block < (unit - at + 1) * some; block++) {
                const Weight *weight = merged ? op->merged : op->weight;
                /* The block after this one in memory is this worker's next, or its neighbour's. */
                look_ahead(&ahead, op, weight, block, some > 1 ? 1 : worker->count, begin == 0);
                rows_by_block(op, weight, block, begin, end, &ahead);
            }
        at += num_units;
        begin = end;
    }
}

/* The logits of one block of the vocabulary, and the best of each row among them: NaN if there is one. */
static void head_block(const Head *op, int block, int later) {
    const Weight *weight = op->weight;
    const int num_logits = op->step->num_logits, num_blocks = (op->num_out + BLOCK_N - 1) / BLOCK_N;
    const int columns = op->num_out - block * BLOCK_N < BLOCK_N ? op->num_out - block * BLOCK_N : BLOCK_N;
    const __mmask16 here[2] = {columns < 16 ? (1 << columns) - 1 : 0xffff, columns < 16 ? 0 : (1 << (columns - 16)) - 1};
    const int num_tiles = (num_logits + TILE_ROWS - 1) / TILE_ROWS;
    Ahead ahead = {.count = 0};
    send_for_block(&ahead, weight, later);
    for (int i = 0, s = 0; i < num_tiles; i++) {
        const int rows = (num_logits - s + num_tiles - i - 1) / (num_tiles - i);
        float out[TILE_ROWS * BLOCK_N] __attribute__((aligned(64)));
        tile_of(rows, weight, block, &ahead, op->input + (int64_t)s * weight->num_in, NULL, 0, out);
        for (int r = 0; r < rows; r++, s++) {
            float *logits = op->logits + (int64_t)s * op->num_out + block * BLOCK_N;
            __m512 y[2];
            int lost = 0;
            for (int j = 0; j < 2; j++) {
                y[j] = _mm512_mask_loadu_ps(_mm512_set1_ps(-__builtin_inff()), here[j], out + r * BLOCK_N + 16 * j);
                if (weight->bias)
                    y[j] = _mm512_add_ps(y[j], _mm512_maskz_loadu_ps(here[j], weight->bias + block * BLOCK_N + 16 * j));
                _mm512_mask_storeu_ps(logits + 16 * j, here[j], y[j]);
                lost |= _mm512_cmp_ps_mask(y[j], y[j], _CMP_UNORD_Q);
            }
            op->block_best[(int64_t)s * num_blocks + block] =
                lost ? __builtin_nanf("") : _mm512_reduce_max_ps(_mm512_max_ps(y[0], y[1]));
        }
    }
}

/* The last norm, for the rows whose logits are wanted. */
void weft_head_input(const void *args, Worker *worker) {
    const Head *op = args;
    const Step *step = op->step;
    const int hidden = op->weight->num_in;
    for (int s = weft_next(worker); s < step->num_logits; s = weft_next(worker))
        rms_norm(step->hidden + step->last[s] * hidden, op->norm, hidden, op->epsilon, op->input + (int64_t)s * hidden);
}

/* Their logits. */
void weft_head(const void *args, Worker *worker) {
    const Head *op = args;
    const int num_blocks = (op->num_out + BLOCK_N - 1) / BLOCK_N;
    const int some = blocks_at_once(op->step->num_logits, num_blocks, worker);
    for (int unit = weft_next(worker); unit * some < num_blocks; unit = weft_next(worker))
        for (int block = unit * some; block < num_blocks && block < (unit + 1) * some; block++)
            head_block(op, block, block + (some > 1 ? 1 : worker->count));
}

/* Their greedy choices. */
void weft_choose(const void *args, Worker *worker) {
    const Head *op = args;
    const Step *step = op->step;
    const int num_blocks = (op->num_out + BLOCK_N - 1) / BLOCK_N;
    for (int s = weft_next(worker); s < step->num_logits; s = weft_next(worker)) {
        const float *blocks = op->block_best + (int64_t)s * num_blocks;
        int found = 0;
        for (int b = 1; b < num_blocks; b++)
            if (!(blocks[found] != blocks[found] || blocks[found] >= blocks[b]))
                found = b;
        op->best[s] = blocks[found];
        const float *row = op->logits + (int64_t)s * op->num_out;
        int64_t token = (int64_t)found * BLOCK_N;
        while (row[token] != blocks[found] && row[token] == row[token])
            token++;
        op->token[s] = token;
    }
}
