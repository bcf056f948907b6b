/* 64 MiB in mixed sizes, each page touched once: what malloc and the kernel below it need for that, in
 * counts of the time-stamp counter. Started as the first process by `cargo xtask bench malloc`. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>
#include <x86intrin.h>

enum { BYTES = 64 << 20, PAGE = 4096, MOST = 1 << 17 };
static char *blocks[MOST];

/* Of sixteen blocks thirteen are below 1 KiB, two below 32 KiB, one below 256 KiB. */
static size_t size(unsigned long number) {
  static const size_t below[16] = {1000, 1000, 1000, 1000, 1000, 1000, 1000,     1000,
                                   1000, 1000, 1000, 1000, 1000, 32 << 10, 32 << 10, 256 << 10};
  return 16 + (number >> 33) % below[(number >> 29) % 16];
}

int main(void) {
  unsigned long number = 1;
  size_t held = 0, count = 0;
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  unsigned long before = __rdtsc();
  while (held < BYTES && count < MOST) {
    number = number * 6364136223846793005u + 1442695040888963407u;
    size_t bytes = size(number);
    char *block = malloc(bytes);
    if (!block) return 1;
    for (size_t at = 0; at < bytes; at += PAGE) block[at] = 1;
    block[bytes - 1] = 1;
    blocks[count++] = block;
    held += bytes;
  }
  unsigned long counts = __rdtsc() - before;
  printf("mmbench: case=malloc ops=%zu reps=1 min=%lu median=%lu\n", count, counts, counts);
  printf("mmbench: done\n");
  fflush(stdout);
  tcdrain(1);
  if (getpid() == 1) reboot(RB_AUTOBOOT);
  return 0;
}
