/* Every thread has a run of the parts of its own, the same share of every job, so that a layer's rows are where the thread's core made
 * their input; who is done with his own takes what is left of the others', so nothing waits for a helper that is late. `state` counts the
 * helpers inside a job; the caller closes the job when no part is left and returns when the count is zero, so no helper ever sees a job
 * change under it. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "cortado_threads.h"

#include <sched.h>

enum { OPEN = 1 << 30, SPINS = 4000 };

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

/* The first of `owner`'s own parts among `threads` threads; 64 bits, as the product may be large. */
static int first_part(int owner, int parts, int threads)
{
    return (int)((long long)owner * parts / threads);
}

static void claim(cortado_pool *pool, int self)
{
    const int parts = pool->parts, threads = pool->helpers + 1;
    int turn, part;
    for (turn = 0; turn < threads; turn++) {
        const int owner = (self + turn) % threads;
        const int stop = first_part(owner + 1, parts, threads);
        while ((part = __atomic_fetch_add(&pool->own[owner].next, 1, __ATOMIC_RELAXED)) < stop)
            pool->task(pool->arg, part);
    }
}

/* Returns the number of a job that is not `seen`; a stop looks like one. */
static int wait_for_job(cortado_pool *pool, int seen)
{
    int spins, job;
    for (spins = 0; spins < SPINS; spins++) {
        job = __atomic_load_n(&pool->jobs, __ATOMIC_ACQUIRE);
        if (job != seen)
            return job;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    __atomic_fetch_add(&pool->sleeping, 1, __ATOMIC_SEQ_CST);
    while ((job = __atomic_load_n(&pool->jobs, __ATOMIC_SEQ_CST)) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    __atomic_fetch_sub(&pool->sleeping, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->mutex);
    return job;
}

static int enter(cortado_pool *pool)
{
    int state = __atomic_load_n(&pool->state, __ATOMIC_RELAXED);
    while (state >= OPEN) {
        if (__atomic_compare_exchange_n(&pool->state, &state, state + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return 1;
    }
    return 0;
}

static void *help(void *argument)
{
    cortado_pool *pool = (cortado_pool *)argument;
    const int self = 1 + __atomic_fetch_add(&pool->come, 1, __ATOMIC_RELAXED);
    int seen = 0;
    for (;;) {
        seen = wait_for_job(pool, seen);
        if (__atomic_load_n(&pool->stopping, __ATOMIC_ACQUIRE))
            return 0;
        if (enter(pool)) {
            claim(pool, self);
            __atomic_fetch_sub(&pool->state, 1, __ATOMIC_RELEASE);
        }
    }
}

/* The helpers look at `jobs` after counting themselves as sleeping, this looks at `sleeping` after changing `jobs`: one sees the other. */
static void announce(cortado_pool *pool)
{
    __atomic_fetch_add(&pool->jobs, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool->sleeping, __ATOMIC_SEQ_CST) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
}

int cortado_pool_start(cortado_pool *pool, int threads)
{
    pool->helpers = 0;
    pool->come = pool->state = pool->jobs = pool->sleeping = pool->stopping = 0;
    if (pthread_mutex_init(&pool->mutex, 0) != 0)
        return -1;
    if (pthread_cond_init(&pool->wake, 0) != 0) {
        pthread_mutex_destroy(&pool->mutex);
        return -1;
    }
    if (threads > CORTADO_MAX_THREADS)
        threads = CORTADO_MAX_THREADS;
    while (pool->helpers < threads - 1 && pthread_create(&pool->threads[pool->helpers], 0, help, pool) == 0)
        pool->helpers++;
    return pool->helpers + 1;
}

void cortado_pool_stop(cortado_pool *pool)
{
    int i;
    __atomic_store_n(&pool->stopping, 1, __ATOMIC_RELEASE);
    announce(pool);
    for (i = 0; i < pool->helpers; i++)
        pthread_join(pool->threads[i], 0);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
}

void cortado_parallel_for(void *ctx, void (*task)(void *arg, int part), void *arg, int parts)
{
    cortado_pool *pool = (cortado_pool *)ctx;
    int spins = 0, thread;
    pool->task = task;
    pool->arg = arg;
    pool->parts = parts;
    for (thread = 0; thread <= pool->helpers; thread++)
        __atomic_store_n(&pool->own[thread].next, first_part(thread, parts, pool->helpers + 1), __ATOMIC_RELAXED);
    if (pool->helpers > 0 && parts > 1) {
        __atomic_store_n(&pool->state, OPEN, __ATOMIC_RELEASE);
        announce(pool);
        claim(pool, 0);
        __atomic_fetch_sub(&pool->state, OPEN, __ATOMIC_ACQ_REL);
        while (__atomic_load_n(&pool->state, __ATOMIC_ACQUIRE) != 0) {
            if (++spins < SPINS)
                pause_briefly();
            else
                sched_yield();
        }
    } else {
        claim(pool, 0);
    }
}
