/* Timers of every kind: on the wall's clock and on CPU time, that signal the process, one thread,
 * or nobody; their overruns, their errors, and the limit of CPU time. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id __sev_fields.sigev_notify_thread_id
#endif

static volatile int rung, code, value, overrun, number;
static volatile pid_t taker;

static void ring(int signal, siginfo_t *info, void *context)
{
    rung++;
    number = signal;
    code = info->si_code;
    value = info->si_value.sival_int;
    overrun = info->si_overrun;
    taker = syscall(SYS_gettid);
}

static void listen_to(int signal)
{
    struct sigaction action = { .sa_flags = SA_SIGINFO | SA_RESTART };
    action.sa_sigaction = ring;
    sigaction(signal, &action, NULL);
}

static struct itimerspec every(long first_ms, long then_ms)
{
    struct itimerspec spec = {
        { then_ms / 1000, then_ms % 1000 * 1000000 }, { first_ms / 1000, first_ms % 1000 * 1000000 }
    };
    return spec;
}

static void pause_ms(long ms)
{
    struct timespec left = { ms / 1000, ms % 1000 * 1000000 };
    while (nanosleep(&left, &left) == -1 && errno == EINTR)
        ;
}

static timer_t make(clockid_t clock, int how, int signal, int number)
{
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = how;
    event.sigev_signo = signal;
    event.sigev_value.sival_int = number;
    event.sigev_notify_thread_id = syscall(SYS_gettid);
    int id = -1;
    if (syscall(SYS_timer_create, clock, &event, &id))
        return perror("timer_create"), (timer_t)-1L;
    return (timer_t)(long)id;
}

/* The bare calls: a C library may keep timers of its own in between. */
static int set(timer_t id, int flags, struct itimerspec spec, struct itimerspec *old)
{
    return syscall(SYS_timer_settime, (int)(long)id, flags, &spec, old);
}
static struct itimerspec get(timer_t id)
{
    struct itimerspec spec;
    memset(&spec, -1, sizeof spec);
    syscall(SYS_timer_gettime, (int)(long)id, &spec);
    return spec;
}
static int missed(timer_t id) { return syscall(SYS_timer_getoverrun, (int)(long)id); }
static int drop(timer_t id) { return syscall(SYS_timer_delete, (int)(long)id); }

/* Works for so long, or until a timer has rung that often: Linux looks at CPU time once a tick, and on a busy
   machine few ticks meet this program. */
static void burn_until(clockid_t clock, long ms, int times)
{
    struct timespec start, now;
    clock_gettime(clock, &start);
    do {
        for (volatile int turn = 0; turn < 50000; turn++)
            ;
        clock_gettime(clock, &now);
    } while (rung < times &&
             (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < ms);
}

static void burn(clockid_t clock, long ms)
{
    burn_until(clock, ms, INT_MAX);
}

static void wall_clocks(void)
{
    clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME };
    for (int i = 0; i < 3; i++) {
        rung = 0;
        timer_t id = make(clocks[i], SIGEV_SIGNAL, SIGUSR1, 40 + i);
        set(id, 0, every(20, 0), NULL);
        pause_ms(60);
        struct itimerspec left = get(id);
        printf("clock %d: rung %d, signal %d, code %d, value %d, left %ld.%ld\n", i, rung, number,
               code, value, (long)left.it_value.tv_sec, left.it_value.tv_nsec);
        struct itimerspec moment = every(0, 0);
        clock_gettime(clocks[i], &moment.it_value);
        moment.it_value.tv_nsec += 300000000;
        if (moment.it_value.tv_nsec >= 1000000000)
            moment.it_value.tv_nsec -= 1000000000, moment.it_value.tv_sec++;
        set(id, TIMER_ABSTIME, moment, NULL);
        pause_ms(10);
        int early = rung;
        pause_ms(400);
        printf("    absolute: early %d, then %d\n", early, rung);
        moment.it_value.tv_sec = 0, moment.it_value.tv_nsec = 1;
        set(id, TIMER_ABSTIME, moment, NULL);
        pause_ms(10);
        int deleted = drop(id);
        printf("    in the past: %d, deleted %d, again %d\n", rung, deleted, drop(id));
    }
}

static void overruns(void)
{
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    rung = 0;
    timer_t id = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR2, 5);
    set(id, 0, every(10, 300), NULL);
    pause_ms(50);
    printf("pending: rung %d, ", rung);
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    printf("then %d, missed %d\n", rung, missed(id));
    sigprocmask(SIG_BLOCK, &mask, NULL);
    set(id, 0, every(10, 10), NULL);
    pause_ms(200);
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    int told = missed(id);
    printf("overruns: many: %d, told both ways alike: %d\n", overrun >= 5, told == overrun);
    drop(id);
    struct itimerspec old;
    id = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
    set(id, 0, every(100000, 7000), NULL);
    int result = set(id, 0, every(20, 50000), &old);
    printf("    old %d: %ld left, every %ld\n", result, (long)old.it_value.tv_sec + 1,
           (long)old.it_interval.tv_sec);
    pause_ms(50);
    struct itimerspec left = get(id);
    printf("    nobody is told: %ld left of %ld\n", (long)left.it_value.tv_sec + 1,
           (long)left.it_interval.tv_sec);
    set(id, 0, every(20, 0), NULL);
    pause_ms(50);
    left = get(id);
    printf("    once: %ld.%ld, deleted %d\n", (long)left.it_value.tv_sec, left.it_value.tv_nsec,
           drop(id));
}

static void *own_timer(void *unused)
{
    timer_t id = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 3, 9);
    rung = 0;
    set(id, 0, every(20, 0), NULL);
    pause_ms(60);
    printf("thread: rung %d, by itself %d, value %d\n", rung, taker == syscall(SYS_gettid), value);
    drop(id);
    id = make(CLOCK_THREAD_CPUTIME_ID, SIGEV_THREAD_ID, SIGRTMIN + 3, 10);
    rung = 0;
    set(id, 0, every(30, 0), NULL);
    pause_ms(100);
    int asleep = rung;
    burn_until(CLOCK_THREAD_CPUTIME_ID, 5000, 1);
    printf("    CPU time: asleep %d, at work %d, value %d\n", asleep, rung, value);
    return NULL;
}

static void cpu_time(void)
{
    int kinds[] = { ITIMER_VIRTUAL, ITIMER_PROF }, signals[] = { SIGVTALRM, SIGPROF };
    for (int i = 0; i < 2; i++) {
        rung = 0;
        listen_to(signals[i]);
        struct itimerval spec = { { 0, 10000 }, { 0, 10000 } }, old;
        setitimer(kinds[i], &spec, NULL);
        pause_ms(100);
        int asleep = rung;
        burn_until(CLOCK_PROCESS_CPUTIME_ID, 5000, 3);
        memset(&spec, 0, sizeof spec);
        setitimer(kinds[i], &spec, &old);
        int after = rung;
        burn(CLOCK_PROCESS_CPUTIME_ID, 50);
        printf("interval timer %d: asleep few %d, at work many %d, every %ld, off %d, signal %d\n",
               kinds[i], asleep <= 1, after >= 3, (long)old.it_interval.tv_usec, rung == after,
               number == signals[i]);
    }
    rung = 0;
    timer_t id = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGUSR1, 77);
    set(id, 0, every(30, 0), NULL);
    pause_ms(80);
    int asleep = rung;
    burn_until(CLOCK_PROCESS_CPUTIME_ID, 5000, 1);
    printf("process: asleep %d, at work %d, value %d\n", asleep, rung, value);
    drop(id);
}

static void errors(void)
{
    int id;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    struct itimerspec bad = every(10, 0);
    bad.it_value.tv_nsec = 1000000000;
    long result;
#define SAY(call) \
    (errno = 0, result = (call), printf("%s: %ld, errno %d\n", #call, result, errno))
    SAY(syscall(SYS_timer_create, 77, NULL, &id));
    SAY(syscall(SYS_timer_create, CLOCK_MONOTONIC_COARSE, NULL, &id));
    SAY(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, 1L));
    SAY(syscall(SYS_timer_create, CLOCK_MONOTONIC, 1L, &id));
    event.sigev_signo = 65;
    SAY(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id));
    event.sigev_signo = 10, event.sigev_notify = 3;
    SAY(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id));
    event.sigev_notify = SIGEV_THREAD_ID, event.sigev_notify_thread_id = 1 << 21;
    SAY(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id));
    SAY(syscall(SYS_timer_settime, 12345, 0, &bad, NULL));
    SAY(syscall(SYS_timer_gettime, 12345, &bad));
    SAY(syscall(SYS_timer_getoverrun, 12345));
    SAY(syscall(SYS_timer_delete, -1));
    syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &id);
    SAY(syscall(SYS_timer_settime, id, 0, &bad, NULL));
    SAY(syscall(SYS_timer_settime, id, 0, NULL, NULL));
    SAY(syscall(SYS_timer_settime, id, 0, 1L, NULL));
    SAY(syscall(SYS_timer_delete, id));
    SAY(syscall(SYS_setitimer, 3, NULL, NULL));
    SAY(syscall(SYS_getitimer, 3, &bad));
}

static void limit(void)
{
    pid_t child = fork();
    if (child == 0) {
        struct rlimit seconds = { 1, 3 };
        setrlimit(RLIMIT_CPU, &seconds);
        for (;;)
            ;
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("beyond the limit: signal %d\n", WTERMSIG(status));
    timer_t id = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 1);
    set(id, 0, every(50, 0), NULL);
    child = fork();
    if (child == 0) {
        rung = 0;
        pause_ms(100);
        printf("a child inherits none: %d, %d\n", rung, missed(id));
        exit(0);
    }
    waitpid(child, NULL, 0);
    printf("the parent's rang\n");
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    listen_to(SIGUSR1);
    listen_to(SIGUSR2);
    listen_to(SIGRTMIN + 3);
    wall_clocks();
    overruns();
    pthread_t thread;
    pthread_create(&thread, NULL, own_timer, NULL);
    pthread_join(thread, NULL);
    cpu_time();
    errors();
    limit();
    return 23;
}
