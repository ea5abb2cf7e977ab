/* A team of threads that runs programs: lists of operators, each shared out in units, one operator after another.
 *
 * An operator is over once every unit of it that was taken is done. Nobody waits for a worker that has taken none: one
 * that lost its core to another thread between two units is not missed, the others do its share, and when it is back it
 * joins them at whatever operator they have come to. (Measured on two cores beside a thread that loads an adapter, eight
 * requests, steps of 10 ms: with a barrier at which all workers had to arrive, single steps took up to 200 ms; now 20 to
 * 45, the longest those in which a unit was begun by a worker that lost its core.)
 *
 * The whole state of a program is one word, changed atomically: which operator it is at, how many workers are inside, and
 * the next unit to take. Workers look at operators only while inside, and a program does not go on before all have left.
 */
#define _GNU_SOURCE
#include "weft.h"

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A worker looks SPINS times, a pause being about 11 ns, and then sleeps. Where it waits for another's last unit it first
 * offers its core that many times: the other has lost its own to a third thread, for a slice or two of the system's
 * scheduler, and while it is away nothing is done here. */
enum { SPINS = 8000, IDLE_OFFERS = 0, WAIT_OFFERS = 100 };

/* A state: [operator 19][open 1][inside 12][next unit 32]. Open while a program runs. */
typedef uint64_t State;
static const State INSIDE = 1ull << 32, OPEN = 1ull << 44, OPERATOR = 1ull << 45;
/* An operator that no program has: a sleeper may have seen the end of any program, and must see that this is another. */
static const State CLOSED = ~0ull << 45;
enum { MOST_WORKERS = 4095 };

static int is_open(State state) { return (state & OPEN) != 0; }
static uint32_t operator_of(State state) { return state / OPERATOR; }
static uint32_t inside_of(State state) { return state % OPEN / INSIDE; }

struct Team {
    int count;
    pthread_t *threads;
    const Op *ops; /* read only from inside */
    int num_ops;
    _Alignas(64) _Atomic State state;
    _Alignas(64) atomic_int sleeping;
    atomic_int closing;
};

/* By Op.kind, as in layout.py. */
static const Run RUN[] = {weft_embed, weft_norm, weft_shrink, weft_linear, weft_rotate,     weft_attention,
                          weft_pool,  weft_gate, weft_add,    weft_head_input, weft_head, weft_choose,
                          weft_scale};

/* The half of the state that tells operators apart, which sleepers watch. */
static const uint32_t *watched(Team *team) { return (const uint32_t *)&team->state + 1; }

/* The state once its operator or its being open is another than `seen`'s; `seen` may be all there is for a long time. */
static State await_change(Team *team, State seen, int offers) {
    for (int offer = 0; offer <= offers; offer++) {
        if (offer)
            sched_yield();
        for (int i = 0; i < SPINS; i++) {
            State state = atomic_load_explicit(&team->state, memory_order_acquire);
            if (state / OPEN != seen / OPEN)
                return state;
            _mm_pause();
        }
    }
    atomic_fetch_add(&team->sleeping, 1);
    State state;
    while ((state = atomic_load(&team->state)) / OPEN == seen / OPEN)
        syscall(SYS_futex, watched(team), FUTEX_WAIT_PRIVATE, (uint32_t)(state >> 32), NULL, NULL, 0);
    atomic_fetch_sub(&team->sleeping, 1);
    return state;
}

/* After a change of the operator, or of open. */
static void wake(Team *team) {
    if (atomic_load(&team->sleeping))
        syscall(SYS_futex, watched(team), FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

int weft_next(Worker *worker) {
    int unit = worker->unit;
    if (unit >= 0)
        worker->unit = -1;
    else
        unit = (uint32_t)atomic_fetch_add_explicit(&worker->team->state, 1, memory_order_relaxed);
    return unit;
}

/* Leaves the operator, which has no unit left to take; the last one out goes on to the next. Returns the state left. */
static State leave(Team *team) {
    State state = atomic_load_explicit(&team->state, memory_order_relaxed), after;
    do {
        const uint32_t next = operator_of(state) + 1;
        if (inside_of(state) > 1)
            after = state - INSIDE;
        else
            after = next * OPERATOR + (next < (uint32_t)team->num_ops ? OPEN : 0);
    } while (!atomic_compare_exchange_weak(&team->state, &state, after));
    if (after / OPEN != state / OPEN)
        wake(team);
    return after;
}

/* Works on the program that is open, from the operator it is at, until it is over. Returns the state seen then. */
static State run(Team *team, State state) {
    while (is_open(state)) {
        /* In, with the next unit, in one step: whoever is inside keeps the program from going on. */
        if (!atomic_compare_exchange_weak(&team->state, &state, state + INSIDE + 1))
            continue;
        Worker worker = {team, team->count, (uint32_t)state};
        const uint32_t at = operator_of(state);
        const Op *op = team->ops + at;
        RUN[op->kind](op->args, &worker);
        state = leave(team);
        if (is_open(state) && operator_of(state) == at)
            state = await_change(team, state, WAIT_OFFERS);
    }
    return state;
}

static void *work(void *arg) {
    Team *team = arg;
    State state = 0;
    /* Asked before every wait: whoever came late to a program may have seen CLOSED already, and would wait for more. */
    while (!atomic_load(&team->closing))
        state = run(team, await_change(team, state, IDLE_OFFERS));
    return NULL;
}

void weft_team_close(Team *team);

/* A team of `count` workers, the caller of weft_run being one of them; NULL when threads cannot be started. */
Team *weft_team_open(int count) {
    if (count > MOST_WORKERS)
        return NULL;
    Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
    if (!team)
        return NULL;
    *team = (Team){.count = count};
    team->threads = calloc(count, sizeof(pthread_t));
    for (int i = 1; i < count; i++) {
        if (pthread_create(&team->threads[i], NULL, work, team)) {
            team->count = i;
            weft_team_close(team);
            return NULL;
        }
    }
    return team;
}

/* Runs a program to its end. One caller at a time. */
void weft_run(Team *team, const Op *ops, int num_ops) {
    team->ops = ops;
    team->num_ops = num_ops;
    atomic_store(&team->state, OPEN);
    wake(team);
    run(team, OPEN);
}

void weft_team_close(Team *team) {
    atomic_store(&team->closing, 1);
    atomic_store(&team->state, CLOSED);
    wake(team);
    for (int i = 1; i < team->count; i++)
        pthread_join(team->threads[i], NULL);
    free(team->threads);
    free(team);
}

/* Whether this processor has what the operators are compiled for. */
int weft_supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("fma");
}
