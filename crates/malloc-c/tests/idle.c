// Threads that allocate, threads that free, and then nobody calls malloc any more.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 16 };
static long owners, freers, count;
static char **blocks[MOST];
static pthread_barrier_t made, freed;

static long resident(void) {
  char text[256] = "";
  FILE *file = fopen("/proc/self/statm", "r");
  long pages = 0;
  if (!file || !fgets(text, sizeof text, file) || sscanf(text, "%*d %ld", &pages) != 1) abort();
  fclose(file);
  return pages * 4;
}

static void *owner(void *number) {
  long me = (long)number;
  unsigned long seed = me;
  for (long i = 0; i < count; i++) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    size_t bytes = 16 + (seed >> 33) % 2000;
    blocks[me][i] = malloc(bytes);
    memset(blocks[me][i], 1, bytes);
  }
  pthread_barrier_wait(&made);
  pthread_barrier_wait(&freed);
  for (;;) pause();
}

// Each frees its share of what everybody made, from all over the place.
static void *freer(void *number) {
  pthread_barrier_wait(&made);
  for (long o = 0; o < owners; o++)
    for (long i = (long)number; i < count; i += freers) free(blocks[o][i * 7919 % count]);
  pthread_barrier_wait(&freed);
  for (;;) pause();
}

static void sleep_ms(long ms) {
  struct timespec left = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&left, &left)) {
  }
}

// Prints how many percent of what was allocated went back to the system, after a second without calls.
static void burst(void) {
  pthread_t thread;
  count = 103000 / owners;
  for (long o = 0; o < owners; o++) {
    blocks[o] = malloc(count * sizeof(char *));
    memset(blocks[o], 1, count * sizeof(char *));
  }
  pthread_barrier_init(&made, 0, owners + freers + 1);
  pthread_barrier_init(&freed, 0, owners + freers + 1);
  long before = resident();
  for (long i = 0; i < owners; i++) pthread_create(&thread, 0, owner, (void *)i);
  for (long i = 0; i < freers; i++) pthread_create(&thread, 0, freer, (void *)i);
  pthread_barrier_wait(&made);
  long peak = resident();
  pthread_barrier_wait(&freed);
  sleep_ms(1000);
  long after = resident();
  printf("%ld\n", 100 * (peak - after) / (peak - before));
  fflush(stdout);
}

int main(int n, char **words) {
  if (n != 3) return 2;
  owners = atol(words[1]);
  freers = atol(words[2]);
  if (owners > MOST) return 2;
  burst();
  return 0;
}
