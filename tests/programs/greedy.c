/* Asks for memory until it hears no, touches all that it got, and says so. With an argument it
   asks for one mapping that is larger than any machine, too. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
    void *absurd = mmap(0, 1ul << 46, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("64 TiB: %s\n", absurd == MAP_FAILED ? strerror(errno) : "granted");
    fflush(stdout);
    if (argc > 1) return 0;
    for (;;) {
        char *p = malloc(1 << 20);
        if (!p) {
            puts("malloc said no");
            return 9;
        }
        memset(p, 1, 1 << 20);
    }
}
