/* What must survive switches, signals and forks: vector registers, the rounding mode, the x87
 * control word; and calls and stacks under signals: restarts, EINTR, an exhausted stack. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t rung;

/* Leaves nothing of the interrupted program's vector state as it was. */
static void clobber(int signal)
{
    uint32_t strange = 0x7f80;
    __asm__ volatile("pxor %%xmm0, %%xmm0; pxor %%xmm7, %%xmm7; pxor %%xmm15, %%xmm15; ldmxcsr %0"
                     : : "m"(strange) : "xmm0", "xmm7", "xmm15");
    rung++;
}

/* Puts a pattern into registers, spins for a while, and counts what is not the pattern. */
static int spin(uint64_t pattern, long turns, uint32_t mode)
{
    uint64_t found[3], wanted[3] = { pattern, ~pattern, pattern * 3 };
    uint32_t mode_found;
    uint16_t x87 = 0x0c7f, x87_found;
    __asm__ volatile("fldcw %6; ldmxcsr %5; movq %3, %%xmm0; movq 8+%3, %%xmm7; movq 16+%3, %%xmm15;"
                     "1: dec %4; jnz 1b;"
                     "movq %%xmm0, %0; movq %%xmm7, 8+%0; movq %%xmm15, 16+%0; stmxcsr %1; fnstcw %2"
                     : "=o"(found), "=m"(mode_found), "=m"(x87_found)
                     : "o"(wanted), "r"(turns), "m"(mode), "m"(x87)
                     : "xmm0", "xmm7", "xmm15", "memory", "cc");
    int wrong = memcmp(found, wanted, sizeof found) != 0;
    return wrong + (mode_found != mode) * 10 + (x87_found != x87) * 100;
}

static void *worker(void *argument)
{
    uint64_t number = (uintptr_t)argument;
    long wrong = 0;
    for (int round = 0; round < 20; round++)
        wrong += spin(number * 0x0123456789abcdef, 400000, 0x1f80 | (number & 3) << 13);
    return (void *)wrong;
}

static void registers(void)
{
    pthread_t threads[6];
    long wrong = 0;
    struct sigaction action = { .sa_handler = clobber, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, off = { { 0, 0 }, { 0, 0 } };
    setitimer(ITIMER_REAL, &often, NULL);
    for (uintptr_t i = 0; i < 6; i++)
        pthread_create(&threads[i], NULL, worker, (void *)(i + 1));
    for (int i = 0; i < 6; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong += (long)result;
    }
    setitimer(ITIMER_REAL, &off, NULL);
    printf("six threads under signals: %ld wrong, signals came: %d\n", wrong, rung > 0);
}

static void forked(void)
{
    uint64_t pattern = 0xfeedfacecafebeef, found;
    uint32_t mode = 0x5f80, mode_found;
    long pid;
    __asm__ volatile("ldmxcsr %3; movq %4, %%xmm9; syscall; movq %%xmm9, %0; stmxcsr %1"
                     : "=m"(found), "=m"(mode_found), "=a"(pid)
                     : "m"(mode), "m"(pattern), "a"(57L)
                     : "xmm9", "rcx", "r11", "memory");
    int right = found == pattern && mode_found == mode;
    if (pid == 0)
        _exit(right ? 5 : 6);
    int status = 0;
    waitpid(pid, &status, 0);
    printf("a fork keeps them: parent %d, child %d\n", right, WEXITSTATUS(status) == 5);
}

static void interrupted(int flags)
{
    int ends[2];
    pipe(ends);
    struct sigaction action = { .sa_handler = clobber, .sa_flags = flags };
    sigaction(SIGUSR1, &action, NULL);
    pid_t child = fork();
    if (child == 0) {
        usleep(100000);
        kill(getppid(), SIGUSR1);
        usleep(100000);
        write(ends[1], "x", 1);
        _exit(0);
    }
    char byte = '-';
    errno = 0;
    long count = read(ends[0], &byte, 1);
    printf("a read under a signal: %ld, '%c', errno %d\n", count, byte, errno);
    waitpid(child, NULL, 0);
    close(ends[0]), close(ends[1]);
}

static sigjmp_buf back;
static volatile int code, near_stack;

static void overflowed(int signal, siginfo_t *info, void *context)
{
    code = info->si_code;
    intptr_t distance = (char *)info->si_addr - (char *)&back;
    near_stack = distance != 0;
    siglongjmp(back, 1);
}

static int deeper(volatile char *above)
{
    volatile char room[4096];
    room[0] = above[0];
    return deeper(room) + room[0];
}

static void exhausted(int alternative)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit small = { 256 << 10, 256 << 10 }, none = { 0, 0 };
        setrlimit(RLIMIT_CORE, &none);
        setrlimit(RLIMIT_STACK, &small);
        stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
        if (alternative)
            sigaltstack(&stack, NULL);
        struct sigaction action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };
        action.sa_sigaction = overflowed;
        sigaction(SIGSEGV, &action, NULL);
        if (sigsetjmp(back, 1) == 0) {
            char top = 0;
            deeper(&top);
        }
        _exit(code * 10 + near_stack);
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("an exhausted stack, alternative %d: signal %d, status %d\n", alternative,
           WTERMSIG(status), WEXITSTATUS(status));
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    registers();
    forked();
    interrupted(SA_RESTART);
    interrupted(0);
    exhausted(1);
    exhausted(0);
    return 29;
}
