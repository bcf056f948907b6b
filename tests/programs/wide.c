/* Memory is asked for above the addresses that four levels of page tables reach, then touched
 * there without having been given. Says where the memory is; ends by SIGSEGV. */
#include <stdio.h>
#include <sys/mman.h>

int main(void)
{
    char *place = (char *)(1ul << 50);
    char *given = mmap(place, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (given == MAP_FAILED)
        return 1;
    *given = 1;
    puts((unsigned long)given < 1ul << 47 ? "low" : "high");
    fflush(stdout);
    *(volatile char *)place = 1;
    return 0;
}
