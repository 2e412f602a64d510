/* A small thread pool for NAME_run_threads, on POSIX threads. C99 and C++; no memory is allocated.
 *
 *     static cortado_pool pool;
 *     cortado_pool_start(&pool, 4);
 *     NAME_run_threads(arena, in, out, cortado_parallel_for, &pool);     as often as wanted
 *     cortado_pool_stop(&pool);
 *
 * A pool serves one call at a time; give each thread of the program that runs models its own. Helping threads spin for some
 * microseconds after a job, so that the next layer finds them awake, then sleep. Compile with GCC or Clang, link with -pthread.
 */
#ifndef CORTADO_THREADS_H
#define CORTADO_THREADS_H

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CORTADO_MAX_THREADS 64

/* All fields are private. */
typedef struct cortado_pool {
    void (*task)(void *arg, int part);
    void *arg;
    int parts;
    int helpers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t threads[CORTADO_MAX_THREADS - 1];
    int come; /* helpers that have started */
    char line0[64]; /* what several threads write has cache lines of its own */
    struct {
        int next; /* the next part of this thread's own that nobody has taken */
        char line[60];
    } own[CORTADO_MAX_THREADS];
    char line1[64];
    int state; /* helpers inside the job, plus OPEN while it takes more */
    char line2[64];
    int jobs;     /* started so far, wrapping around */
    int sleeping; /* helpers that need a signal */
    int stopping;
} cortado_pool;

/* threads: that work on a call, the caller included; 1 .. CORTADO_MAX_THREADS. Returns how many there are, fewer where the system
 * refuses to start more, or -1 where it refuses a mutex. */
int cortado_pool_start(cortado_pool *pool, int threads);

/* Ends the helping threads. No call may be under way. */
void cortado_pool_stop(cortado_pool *pool);

/* Calls task(arg, part) for every part in 0 .. parts - 1 on the pool's threads and the caller; returns when all are done. */
void cortado_parallel_for(void *pool, void (*task)(void *arg, int part), void *arg, int parts);

#ifdef __cplusplus
}
#endif

#endif /* CORTADO_THREADS_H */
