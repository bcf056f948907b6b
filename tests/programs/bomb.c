// A fork bomb that gives up: every process forks until that was refused a few times (or some were
// killed, and the rest went on for too long), stays for a moment so that the machine is full, and
// ends.
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct counts { int forks, refusals, odd; };

int main(void) {
    struct counts *all = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t first = getpid();
    while (all->refusals < 20 && all->forks < 5000) {
        pid_t child = fork();
        if (child > 0) __atomic_fetch_add(&all->forks, 1, __ATOMIC_SEQ_CST);
        if (child < 0) {
            __atomic_fetch_add(errno == ENOMEM || errno == EAGAIN ? &all->refusals : &all->odd, 1, __ATOMIC_SEQ_CST);
        }
    }
    struct timespec moment = {0, 300000000};
    nanosleep(&moment, 0);
    while (wait(0) > 0 || errno == ENOMEM) {}
    if (getpid() != first) _exit(0);
    printf("%s forks, %s refusals, %d odd errors\n", all->forks > 20 ? "many" : "few",
           all->refusals > 0 ? "some" : "no", all->odd);
    return 0;
}
