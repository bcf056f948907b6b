/* A chain of forks, each of which changes its private memory; everybody checks what is his. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 300 };

int main(void) {
    volatile int *mine = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile int *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ends[2];
    pipe(ends);
    for (int i = 0; i < PAGES; i++) mine[i * 1024] = i;
    int depth = 0;
    pid_t child = 0;
    while (depth < 12 && (child = fork()) == 0) {
        depth++;
        for (int i = depth; i < PAGES; i += 7) mine[i * 1024] += depth * 1000;
        __sync_fetch_and_add(shared, depth);
    }
    int status = 0;
    if (depth < 12 && waitpid(child, &status, 0) != child) return 1;
    long sum = 0;
    for (int i = 0; i < PAGES; i++) sum += mine[i * 1024];
    char line[64];
    int n = snprintf(line, sizeof line, "depth %d sum %ld\n", depth, sum);
    write(ends[1], line, n);
    if (depth) _exit(depth);
    close(ends[1]);
    char buffer[4096];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) fwrite(buffer, 1, got, stdout);
    printf("shared %d, child's status %d\n", *shared, WEXITSTATUS(status));
    return 0;
}
