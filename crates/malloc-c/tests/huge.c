// `crowd`: prints how many KiB are resident when 100 threads have some blocks each. Else: what huge pages stand
// behind, and what is resident, with 48 MiB of small blocks live; what is resident when they are free; and what
// of 34 MiB the system gives huge pages to if it is asked.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static long field(const char *name) {
    char line[256];
    long sum = 0, value;
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && sscanf(strchr(line, ':') + 1, "%ld", &value) == 1) sum += value;
    fclose(file);
    return sum;
}

enum { BYTES = 512, BLOCKS = (48 << 20) / BYTES, THREADS = 100, KINDS = 40 };
static void *blocks[BLOCKS];
static pthread_barrier_t barrier;

static void *some(void *unused) {
    (void)unused;
    void *mine[KINDS];
    for (int kind = 0; kind < KINDS; kind++) mine[kind] = memset(malloc(24 * kind + 1), 1, 24 * kind + 1);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    for (int kind = 0; kind < KINDS; kind++) free(mine[kind]);
    return NULL;
}

static void crowd(void) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, some, NULL);
    pthread_barrier_wait(&barrier);
    printf("%ld\n", field("Rss:"));
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "crowd")) {
        crowd();
        return 0;
    }
    for (int i = 0; i < BLOCKS; i++) blocks[i] = memset(malloc(BYTES), 1, BYTES);
    long huge = field("AnonHugePages:"), resident = field("Rss:");
    for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
    long left = field("Rss:");

    char *probe = mmap(NULL, 34 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(probe, 34 << 20, MADV_HUGEPAGE);
    long before = field("AnonHugePages:");
    for (long i = 0; i < 34 << 20; i += 4096) probe[i] = 1;
    printf("%ld %ld %ld %ld\n", huge, resident, left, field("AnonHugePages:") - before);
    return 0;
}
