/* Threads write and read pages while another takes them away, protects them, and forks. What a
 * stale translation would show: a write that lands in a page that is gone already, a write to a
 * page that was made read-only, a child that sees what its parent wrote after the fork. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WRITERS = 4, PAGES = 16, PAGE = 4096, ROUNDS = 150 };

static volatile unsigned char *area;
static volatile int stop;
static volatile unsigned counters[WRITERS][16];
static __thread sigjmp_buf back;
static int wrong;

static void fault(int signal) { siglongjmp(back, signal); }

static void *write_on(void *argument) {
    unsigned me = (unsigned)(uintptr_t)argument, n = 0;
    while (!stop) {
        if (sigsetjmp(back, 1)) continue;
        for (int page = 0; page < PAGES; page++) {
            volatile unsigned *place = (volatile unsigned *)(area + page * PAGE) + me;
            *place = ++n;
            counters[me][0] = n;
        }
    }
    return 0;
}

static void *map(void *at, int fixed) {
    void *p = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

int main(void) {
    struct sigaction action = { .sa_handler = fault, .sa_flags = SA_NODEFER };
    sigaction(SIGSEGV, &action, 0);
    area = map(0, 0);
    pthread_t threads[WRITERS];
    for (long i = 0; i < WRITERS; i++) {
        if (pthread_create(&threads[i], 0, write_on, (void *)i)) abort();
    }
    static unsigned before[PAGES][WRITERS], after[PAGES][WRITERS];
    for (int round = 0; round < ROUNDS; round++) {
        /* Read-only: from here on nothing changes, whatever the writers do. */
        mprotect((void *)area, PAGES * PAGE, PROT_READ);
        for (int pass = 0; pass < 2; pass++) {
            for (int page = 0; page < PAGES; page++)
                for (int i = 0; i < WRITERS; i++)
                    (pass ? after : before)[page][i] = ((volatile unsigned *)(area + page * PAGE))[i];
            for (volatile int wait = 0; wait < 3000; wait++) ;
        }
        if (memcmp(before, after, sizeof before)) wrong++, printf("written while read-only\n");
        mprotect((void *)area, PAGES * PAGE, PROT_READ | PROT_WRITE);

        /* Gone: the frames that come back go to the next pages touched, which must stay clean. */
        unsigned char *fresh = map(0, 0);
        munmap((void *)area, PAGES * PAGE);
        for (int pass = 0; pass < 2; pass++) {
            for (int i = 0; i < PAGES * PAGE; i++) {
                if (fresh[i] == pass * 0x5a) continue;
                wrong++, printf("somebody else's byte\n");
                break;
            }
            memset(fresh, 0x5a, PAGES * PAGE);
        }
        map((void *)area, MAP_FIXED);
        munmap(fresh, PAGES * PAGE);

        /* A child sees the moment of the fork and nothing later. */
        if (round % 10 == 0) {
            pid_t child = fork();
            if (child == 0) {
                int changed = 0;
                for (int page = 0; page < PAGES; page++)
                    for (int i = 0; i < WRITERS; i++)
                        before[page][i] = ((volatile unsigned *)(area + page * PAGE))[i];
                for (volatile int wait = 0; wait < 20000; wait++) ;
                for (int page = 0; page < PAGES; page++)
                    for (int i = 0; i < WRITERS; i++)
                        changed |= before[page][i] != ((volatile unsigned *)(area + page * PAGE))[i];
                _exit(changed ? 7 : 0);
            }
            int status;
            if (waitpid(child, &status, 0) != child || status) wrong++, printf("child: %x\n", status);
        }
    }
    stop = 1;
    for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], 0);
    int silent = 0;
    for (int i = 0; i < WRITERS; i++) silent += counters[i][0] == 0;
    printf("%d rounds, %d wrong, %d silent\n", ROUNDS, wrong, silent);
    return wrong != 0;
}
