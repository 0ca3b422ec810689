/* Shifts the wall clock of a process under test: LD_PRELOAD, with TEST_CLOCK_FOLDER naming a folder.
 *
 * The process makes a file named by its pid there; the 8 bytes in it are nanoseconds that are added
 * to CLOCK_REALTIME, from the moment they are written. CLOCK_MONOTONIC and the like stay as they
 * are. Waits until a moment of the wall clock are told to the kernel in its own time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define WALL_CLOCK_S 1000000000 /* a time later than this is one of the wall clock (2001 on) */

static volatile int64_t nothing_ns = 0;
static volatile int64_t *shift_ns = &nothing_ns;

static void open_shift(void) {
    const char *folder = getenv("TEST_CLOCK_FOLDER");
    char path[4096];
    if (!folder || snprintf(path, sizeof path, "%s/%d", folder, (int)getpid()) >= (int)sizeof path)
        return;
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        return;
    if (ftruncate(file, sizeof(int64_t)) == 0) {
        void *seen = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
        if (seen != MAP_FAILED)
            shift_ns = seen;
    }
    close(file);
}

__attribute__((constructor)) static void start(void) {
    open_shift();
    pthread_atfork(NULL, NULL, open_shift);
}

static struct timespec moved(struct timespec at, int64_t by_ns) {
    int64_t ns = at.tv_nsec + by_ns % NS_PER_S;
    at.tv_sec += by_ns / NS_PER_S + (ns >= NS_PER_S) - (ns < 0);
    at.tv_nsec = ns < 0 ? ns + NS_PER_S : ns >= NS_PER_S ? ns - NS_PER_S : ns;
    return at;
}

static int is_wall(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE; }

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next)
        next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int rc = next(id, now);
    if (rc == 0 && is_wall(id))
        *now = moved(*now, *shift_ns);
    return rc;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &fine))
        return -1;
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (out)
        *out = fine.tv_sec;
    return fine.tv_sec;
}

static struct timespec of_kernel(const struct timespec *until) {
    return until->tv_sec > WALL_CLOCK_S ? moved(*until, -*shift_ns) : *until;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *until) {
    static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!next) /* the version that programs of today link, not the first one there ever was */
        next = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlvsym(
            RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec real = of_kernel(until);
    return next(condition, mutex, &real);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    static int (*next)(sem_t *, const struct timespec *);
    if (!next)
        next = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec real = of_kernel(until);
    return next(semaphore, &real);
}
