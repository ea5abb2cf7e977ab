/* A team of threads that runs programs: lists of operators, each split over all workers, with a barrier after each.
 *
 * A worker that waits at a barrier spins for as long as another may have lost its core to a third thread, a slice or two of
 * the system's scheduler, and does not give its own core away: whoever took that too would hold up the next barriers in
 * turn. (Measured on two cores beside a thread that loads an adapter: steps of 9 ms became 50 when waiting workers slept or
 * yielded after 50 us, and 20 when they spun.) Between programs workers spin for a moment and then sleep.
 */
#define _GNU_SOURCE
#include "weft.h"

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A pause takes about 11 ns. */
enum { PHASES = 8, BARRIER_SPINS = 1000000, IDLE_SPINS = 8000 };

struct Team {
    int count;
    pthread_t *threads;
    const Op *ops;
    int num_ops;
    _Alignas(64) atomic_uint program; /* increases with every program */
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint phase;
    struct {
        _Alignas(64) atomic_int next;
    } work[PHASES];
    _Alignas(64) atomic_int sleeping;
    atomic_int closing;
};

static const Run RUN[] = {weft_embed,  weft_norm,      weft_linear, weft_rotate,
                          weft_attention, weft_gate, weft_add,    weft_head};

/* Returns once `*word` is no longer `value`. */
static void await_change(Team *team, atomic_uint *word, unsigned value, int spins) {
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != value)
            return;
        _mm_pause();
    }
    atomic_fetch_add(&team->sleeping, 1);
    while (atomic_load(word) == value)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
    atomic_fetch_sub(&team->sleeping, 1);
}

/* Changes `*word`, for everybody who awaits it. */
static void announce(Team *team, atomic_uint *word, unsigned value) {
    atomic_store(word, value);
    if (atomic_load(&team->sleeping))
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void weft_barrier(Worker *worker) {
    Team *team = worker->team;
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)team->count) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        /* The counter of the phase just over is next used PHASES from now. */
        atomic_store_explicit(&team->work[phase % PHASES].next, 0, memory_order_relaxed);
        announce(team, &team->phase, phase + 1);
        return;
    }
    await_change(team, &team->phase, phase, BARRIER_SPINS);
}

int weft_next(Worker *worker) {
    Team *team = worker->team;
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    return atomic_fetch_add_explicit(&team->work[phase % PHASES].next, 1, memory_order_relaxed);
}

static void run(Worker *worker) {
    /* Copied: once the last barrier has let go, the caller may already be setting the next program. */
    const Op *ops = worker->team->ops;
    int num_ops = worker->team->num_ops;
    for (int i = 0; i < num_ops; i++) {
        RUN[ops[i].kind](ops[i].args, worker);
        weft_barrier(worker);
    }
}

static void *work(void *arg) {
    Worker worker = *(Worker *)arg;
    free(arg);
    for (unsigned seen = 0;; seen++) {
        await_change(worker.team, &worker.team->program, seen, IDLE_SPINS);
        if (atomic_load(&worker.team->closing))
            return NULL;
        run(&worker);
    }
}

void weft_team_close(Team *team);

/* A team of `count` workers, the caller of weft_run being one of them; NULL when threads cannot be started. */
Team *weft_team_open(int count) {
    Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
    if (!team)
        return NULL;
    *team = (Team){.count = count};
    team->threads = calloc(count, sizeof(pthread_t));
    for (int i = 1; i < count; i++) {
        Worker *worker = malloc(sizeof(Worker));
        *worker = (Worker){team, i, count};
        if (pthread_create(&team->threads[i], NULL, work, worker)) {
            free(worker);
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
    announce(team, &team->program, atomic_load(&team->program) + 1);
    Worker self = {team, 0, team->count};
    run(&self);
}

void weft_team_close(Team *team) {
    atomic_store(&team->closing, 1);
    announce(team, &team->program, atomic_load(&team->program) + 1);
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
