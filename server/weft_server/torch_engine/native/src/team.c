/* A team of threads that runs programs: lists of operators, each split over all workers, with a barrier after each.
 *
 * Workers spin for a moment at a barrier and between programs, since the next operator is microseconds away; then they
 * yield, so that whoever else wants the core gets it; and when no program comes they sleep.
 */
#define _GNU_SOURCE
#include "weft.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

enum { PHASES = 8, SPINS_BEFORE_YIELD = 4000, IDLE_NS = 300000 };

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
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Alignas(64) atomic_int sleeping;
    atomic_int closing;
};

static const Run RUN[] = {weft_embed,  weft_norm,      weft_linear, weft_rotate,
                          weft_attention, weft_gate, weft_add,    weft_head};

static void pause_or_yield(int spins) {
    if (spins < SPINS_BEFORE_YIELD)
        _mm_pause();
    else
        sched_yield();
}

void weft_barrier(Worker *worker) {
    Team *team = worker->team;
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)team->count) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        /* The counter of the phase just over is next used PHASES from now. */
        atomic_store_explicit(&team->work[phase % PHASES].next, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++)
        pause_or_yield(spins);
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

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Waits for a program other than `seen`. */
static void await_program(Team *team, unsigned seen) {
    long begin = now_ns();
    for (int spins = 0; atomic_load_explicit(&team->program, memory_order_acquire) == seen; spins++) {
        pause_or_yield(spins);
        if (spins % 256 == 255 && now_ns() - begin > IDLE_NS) {
            pthread_mutex_lock(&team->mutex);
            atomic_fetch_add(&team->sleeping, 1);
            while (atomic_load(&team->program) == seen && !atomic_load(&team->closing))
                pthread_cond_wait(&team->wake, &team->mutex);
            atomic_fetch_sub(&team->sleeping, 1);
            pthread_mutex_unlock(&team->mutex);
            return;
        }
    }
}

static void *work(void *arg) {
    Worker worker = *(Worker *)arg;
    free(arg);
    for (unsigned seen = 0;; seen++) {
        await_program(worker.team, seen);
        if (atomic_load(&worker.team->closing))
            return NULL;
        run(&worker);
    }
}

static void wake_all(Team *team) {
    if (atomic_load(&team->sleeping)) {
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->wake);
        pthread_mutex_unlock(&team->mutex);
    }
}

void weft_team_close(Team *team);

/* A team of `count` workers, the caller of weft_run being one of them; NULL when threads cannot be started. */
Team *weft_team_open(int count) {
    Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
    if (!team)
        return NULL;
    *team = (Team){.count = count};
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->wake, NULL);
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
    atomic_fetch_add(&team->program, 1);
    wake_all(team);
    Worker self = {team, 0, team->count};
    run(&self);
}

void weft_team_close(Team *team) {
    atomic_store(&team->closing, 1);
    atomic_fetch_add(&team->program, 1);
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
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
