/* The native decoder's data: what Python hands over, field by field as in layout.py.
 *
 * Everything here is read only while a program runs, except the buffers of a Step. Numbers are bfloat16 (uint16_t) unless
 * they are float. Legend: T rows of the step, K inputs, N outputs, G groups of K, D head size, L cached tokens.
 */
#ifndef WEFT_H
#define WEFT_H

#include <stdatomic.h>
#include <stdint.h>

enum { LANES = 16, BLOCK_N = 32, BLOCK_TOKENS = 16, TILE_ROWS = 8 };

/* One linear weight (N, K), outputs in blocks of 32. Either int4: codes, scale and minimum; or dense. */
typedef struct {
    const uint16_t *codes;   /* [N/32][K/4][32]: lane 2 o + k % 2 of a word holds four codes, see unpack() */
    const uint16_t *scale;   /* float16 [N/32][G][32] */
    const uint16_t *minimum; /* float16 [N/32][G][32], or NULL */
    const float *minimum32;  /* the same in float32 (merged weights), or NULL */
    const float *scale32;    /* likewise beside minimum32, instead of scale; or NULL */
    const uint16_t *dense;   /* bfloat16 [N/32][K/2][32][2], or NULL */
    const float *bias;       /* (N,), or NULL */
    int32_t num_out, num_in, group_size, unused;
} Weight;

/* One adapter's factors at one module: adds scale * b (a x). rank 0: it leaves the module alone. */
typedef struct {
    const uint16_t *a; /* (rank, K), or (rank, G) over the pooled input */
    const uint16_t *b; /* [N/32][rank/2][32][2], the last of an odd number of ranks as [32] */
    int32_t rank, pooled;
    float scale;
    int32_t offset; /* where the module's a x begins in a row of Step.low */
} LowRank;

/* What one adapter does to the numbers of one place, x <- scale x + shift; scale NULL: nothing. */
typedef struct {
    const float *scale, *shift; /* (width,); shift may be NULL */
} RowScale;

/* Rows begin..end-1 wear the adapter in `slot`. */
typedef struct {
    int32_t slot, begin, end, unused;
} Segment;

/* One sequence's new tokens: rows begin..begin+count-1, the first at position `start`; `table` is where its block ids begin. */
typedef struct {
    int32_t begin, count, start, table;
} Span;

/* One step: its rows, and the buffers that the operators pass on. */
typedef struct {
    int32_t num_rows, num_merged, num_spans, num_segments, num_logits, num_slots;
    const int64_t *token;    /* (T,); below 0: row -1 - token of `embedded` */
    const float *embedded;   /* (rows of virtual tokens, E) */
    const int64_t *position; /* (T,) */
    const int32_t *slot;             /* (T,): the adapter of each row, -1 for none */
    const Segment *segments;
    const Span *spans;
    const int32_t *blocks;
    const int64_t *last;     /* rows whose logits are wanted */
    const LowRank *low_rank; /* [module][slot] */
    const RowScale *scales;  /* [place][slot] */
    float *hidden;           /* (T, E): the residual stream */
    uint16_t *normed;        /* (T, E): the input of qkv and gate_up */
    uint16_t *wide;          /* (T, widest linear output) */
    float *sum;              /* (T, E): what a sublayer adds to the residual stream, where adapters change it first */
    uint16_t *query;         /* (T, heads, D) */
    uint16_t *inner;         /* (T, max(heads D, I)): the input of attention_out and mlp_out */
    float *pool;             /* (T, most groups): sums of the groups of the linear input */
    uint16_t *pooled;        /* the same, rounded */
    uint16_t *low;           /* (T, low_stride): scaled a x of each row's adapter */
    int32_t low_stride, pool_stride;
} Step;

/* Threads that run one program together; see team.c. */
typedef struct Team Team;
typedef struct {
    Team *team;
    int count; /* of the team's workers */
    int unit;  /* taken on entering and not yet given out by weft_next; or -1 */
} Worker;

/* One worker's part in an operator: units of it, as long as there are any. */
typedef void (*Run)(const void *op, Worker *worker);
typedef struct {
    int32_t kind, unused;
    const void *args;
} Op;

/* The next unit of the operator, each number given to one worker, in rising order. */
int weft_next(Worker *worker);

void weft_embed(const void *op, Worker *worker);
void weft_norm(const void *op, Worker *worker);
void weft_gate(const void *op, Worker *worker);
void weft_add(const void *op, Worker *worker);
void weft_rotate(const void *op, Worker *worker);
void weft_attention(const void *op, Worker *worker);
void weft_pool(const void *op, Worker *worker);
void weft_scale(const void *op, Worker *worker);
void weft_shrink(const void *op, Worker *worker);
void weft_linear(const void *op, Worker *worker);
void weft_head_input(const void *op, Worker *worker);
void weft_head(const void *op, Worker *worker);
void weft_choose(const void *op, Worker *worker);

#endif
