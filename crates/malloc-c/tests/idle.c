// Threads that allocate, threads that free, and then nobody calls malloc any more.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

static void must(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "not so: %s\n", what);
  _exit(1);
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


// The thread that is called pagoda-malloc; 0 = there is none. How many threads there are at all.
static int helper(int *threads) {
  DIR *all = opendir("/proc/self/task");
  struct dirent *entry;
  int found = 0, count = 0;
  while (all && (entry = readdir(all))) {
    char path[300], name[32] = "";
    if (entry->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
    FILE *file = fopen(path, "r");
    if (file && fgets(name, sizeof name, file) && !strcmp(name, "pagoda-malloc\n")) found = atoi(entry->d_name);
    if (file) fclose(file);
    count++;
  }
  closedir(all);
  if (threads) *threads = count;
  return found;
}

// A number from the helper's status.
static unsigned long status(const char *field, int base) {
  char path[64], line[256];
  unsigned long value = ~0ul;
  snprintf(path, sizeof path, "/proc/self/task/%d/status", helper(0));
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    if (!strncmp(line, field, strlen(field))) value = strtoul(line + strlen(field) + 1, 0, base);
  must(file && value != ~0ul, field);
  fclose(file);
  return value;
}

// Up and down by so many KiB, until malloc expects it to go on.
static void waves(long kib) {
  for (int round = 0; round < 20; round++) {
    long count = kib * 2;
    char **wave = malloc(count * sizeof *wave);
    for (long i = 0; i < count; i++) {
      size_t bytes = i % 50 ? 16 + i * 37 % 1000 : 20000;
      wave[i] = malloc(bytes);
      memset(wave[i], 1, bytes);
    }
    for (long i = 0; i < count; i++) free(wave[i]);
    free(wave);
  }
}

static void *waving(void *kib) {
  waves((long)kib);
  pthread_barrier_wait(&made);
  pthread_barrier_wait(&freed);
  return 0;
}

static long before, peak, after;

// Another thread goes up and down; then nobody calls for a second. KiB before, at once, and then.
static void idle_after_waves(long kib) {
  pthread_t thread;
  free(malloc(40));
  pthread_barrier_init(&made, 0, 2);
  pthread_barrier_init(&freed, 0, 2);
  before = resident();
  pthread_create(&thread, 0, waving, (void *)kib);
  pthread_barrier_wait(&made);
  peak = resident();
  sleep_ms(1000);
  after = resident();
  pthread_barrier_wait(&freed);
  pthread_join(thread, 0);
}

static volatile int on_helper, heard;
static void hear(int number) {
  (void)number;
  heard++;
  if (syscall(SYS_gettid) != getpid()) on_helper = 1;
}

static void signals(void) {
  idle_after_waves(4096);
  must(helper(0), "there is a helper");
  signal(SIGUSR1, hear);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  for (int i = 0; i < 1000; i++) {
    // Blocked here, it goes to any thread that does not block it.
    sigprocmask(SIG_BLOCK, &set, 0);
    kill(getpid(), SIGUSR1);
    sigprocmask(SIG_UNBLOCK, &set, 0);
  }
  must(heard == 1000 && !on_helper, "signals go to threads of the program");
  must((status("SigBlk:", 16) | 0x40100) == ~0ul, "all signals are blocked");
  sleep_ms(1000);
  unsigned long switches = status("voluntary_ctxt_switches:", 10);
  sleep_ms(1500);
  must(status("voluntary_ctxt_switches:", 10) == switches, "it sleeps while nobody calls");
}

static void forks(void) {
  pthread_t thread;
  int threads, result;
  idle_after_waves(4096);
  must(helper(0), "there is a helper");
  for (int i = 0; i < 200; i++) {
    // Keeps the helper busy while the process forks.
    pthread_create(&thread, 0, (void *(*)(void *))waves, (void *)256);
    pid_t child = fork();
    if (child == 0) {
      alarm(20);
      must(!helper(&threads) && threads == 1, "the child has no helper");
      waves(512);
      must(!helper(&threads) && threads == 1, "nor while it has one thread");
      if (i % 50 == 0) {
        idle_after_waves(4096);
        must(helper(0), "a child with threads has one again");
        must(after < peak - (1 << 10), "and gives back");
      }
      _exit(0);
    }
    must(waitpid(child, &result, 0) == child && result == 0, "the child ends well");
    pthread_join(thread, 0);
  }
  must(helper(0), "the parent keeps it");
}

static void *ends_late(void *unused) {
  sleep_ms(200);
  return unused;
}

int main(int n, char **words) {
  const char *what = n > 1 ? words[1] : "";
  pthread_t thread;
  int threads;
  if (!strcmp(what, "burst") && n == 4) {
    owners = atol(words[2]);
    freers = atol(words[3]);
    must(owners <= MOST, "not so many owners");
    burst();
  } else if (!strcmp(what, "waves")) {
    idle_after_waves(4096);
    printf("%ld %ld %d\n", peak - before, after - before, helper(0) != 0);
  } else if (!strcmp(what, "alone")) {
    waves(4096);
    sleep_ms(500);
    must(!helper(&threads) && threads == 1, "one thread stays one");
  } else if (!strcmp(what, "small")) {
    waves(40);
    pthread_create(&thread, 0, (void *(*)(void *))waves, (void *)40);
    pthread_join(thread, 0);
    sleep_ms(500);
    must(!helper(0), "little is not worth a thread");
  } else if (!strcmp(what, "signals")) {
    signals();
  } else if (!strcmp(what, "forks")) {
    forks();
  } else if (!strcmp(what, "user")) {
    // Asks all threads that the C library knows.
    idle_after_waves(4096);
    must(helper(0), "there is a helper");
    must(setgid(65534) == 0 && setuid(65534) == 0, "another user");
    must(status("Seccomp:", 10) == 2, "a helper of another user can do nothing");
    waves(4096);
  } else if (!strcmp(what, "plain")) {
    idle_after_waves(4096);
    must(helper(0), "there is a helper");
    must(status("Seccomp:", 10) == 0 && status("NoNewPrivs:", 10) == 0, "it has nothing to give up");
  } else if (!strcmp(what, "leaves")) {
    idle_after_waves(4096);
    must(helper(0), "there is a helper");
    pthread_create(&thread, 0, ends_late, 0);
    pthread_exit(0);
  } else if (!strcmp(what, "exit")) {
    pthread_create(&thread, 0, (void *(*)(void *))waves, (void *)4096);
    waves(2048);
    exit(0);
  } else {
    return 2;
  }
  return 0;
}
