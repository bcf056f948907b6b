/* What `PAGODA_MALLOC=sample` is asked about: sample.rs says what must be found. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Each in 256 bytes of its own, so that an address in it is known by its start. */
#define PLACE __attribute__((noinline, noclone, aligned(256)))

PLACE void *small(void) { void *volatile p = malloc(40); return p; }
PLACE void *middle(void) { void *volatile p = malloc(3000); return p; }
PLACE void *big(void) { void *volatile p = malloc(300000); return p; }
PLACE void *cleared(void) { void *volatile p = calloc(10, 50); return p; }
PLACE void *aligned(void) { void *volatile p = aligned_alloc(256, 2048); return p; }
PLACE void *posix(void) { void *p; if (posix_memalign(&p, 64, 1000)) abort(); return p; }
PLACE void *resized(void) { void *volatile p = realloc(malloc(10), 700); return p; }
PLACE void *passing(void) { void *volatile p = malloc(64); return p; }

struct kind { const char *name; void *(*make)(void); int count; void **held; };
static struct kind kinds[] = {
    {"small", small, 200000, 0}, {"middle", middle, 6000, 0}, {"big", big, 60, 0},
    {"cleared", cleared, 20000, 0}, {"aligned", aligned, 6000, 0}, {"posix", posix, 10000, 0},
    {"resized", resized, 20000, 0}, {"passing", passing, 100000, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

int pagoda_malloc_profile(const char *path) __attribute__((weak));

PLACE static void *make_all(void *unused) {
    (void)unused;
    for (int k = 0; k < KINDS; k++) {
        kinds[k].held = calloc(kinds[k].count, sizeof(void *));
        for (int i = 0; i < kinds[k].count; i++) {
            kinds[k].held[i] = kinds[k].make();
            if (kinds[k].make == passing) free(kinds[k].held[i]);
        }
    }
    return 0;
}

PLACE static void *free_half(void *unused) {
    (void)unused;
    for (int k = 0; k < KINDS; k++)
        for (int i = 0; i < kinds[k].count && kinds[k].make != passing; i += 2) free(kinds[k].held[i]);
    return 0;
}

PLACE static void *nothing(void *unused) { return malloc(1), unused; }

static void in_a_thread(void *(*work)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, 0, work, 0)) abort();
    pthread_join(thread, 0);
}

PLACE int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "pairs")) {
        for (int i = atoi(argv[2]); i > 0; i--) { void *volatile p = malloc(64); free(p); }
        return 0;
    }
    for (int k = 0; k < KINDS; k++) printf("%s %zu\n", kinds[k].name, (size_t)kinds[k].make);
    printf("make_all %zu\nmain %zu\n", (size_t)make_all, (size_t)main);
    if (argc > 1 && !strcmp(argv[1], "threads")) {
        in_a_thread(make_all);
        in_a_thread(free_half);
    } else {
        make_all(0);
        free_half(0);
    }
    if (argc > 2 && !strcmp(argv[1], "fork")) {
        fflush(stdout);
        in_a_thread(nothing);
        pid_t child = fork();
        int status = 0;
        if (child == 0) {
            /* The child frees the rest of what is small, and says what it has then. */
            for (int i = 1; i < kinds[0].count; i += 2) free(kinds[0].held[i]);
            _exit(pagoda_malloc_profile && pagoda_malloc_profile(argv[2]) ? 0 : 1);
        }
        if (waitpid(child, &status, 0) != child || status) return 1;
    }
    return 0;
}
