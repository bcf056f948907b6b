/* Catches its own segmentation fault, mends the page, and goes on; then jumps out of a second. */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char *page;
static sigjmp_buf out;
static volatile int faults, code;

static void mend(int sig, siginfo_t *info, void *context) {
    faults++;
    code = info->si_code;
    if ((char *)info->si_addr < page || (char *)info->si_addr >= page + 4096) siglongjmp(out, 1);
    mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

int main(void) {
    double kept = 1.0 / 3.0;
    struct sigaction action = {.sa_sigaction = mend, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    page[123] = 45;
    printf("mended: %d, faults %d, code %d, %.17g\n", page[123], faults, code, kept);
    if (sigsetjmp(out, 1) == 0) {
        *(volatile char *)16 = 1;
        puts("not reached");
    }
    printf("jumped out: faults %d, code %d\n", faults, code);
    return faults;
}
