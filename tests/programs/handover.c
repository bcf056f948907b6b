/* Eight threads allocate blocks, fill them, hand them to the next thread through a slot behind a
 * mutex, and check and free what they were handed. Prints sums that do not depend on who ran when. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 8, ROUNDS = 4000, SLOTS = 32 };

struct block {
    struct block *next;
    uint32_t size, seed;
    unsigned char bytes[];
};

static struct lane {
    pthread_mutex_t lock;
    pthread_cond_t room, news;
    struct block *first;
    int count;
} lanes[THREADS];

static uint64_t sums[THREADS];
static int wrong;

static void fill(struct block *b) {
    for (uint32_t i = 0; i < b->size; i++) b->bytes[i] = (unsigned char)(b->seed + i * 7);
}

static uint64_t check(struct block *b) {
    uint64_t sum = b->seed;
    for (uint32_t i = 0; i < b->size; i++) {
        if (b->bytes[i] != (unsigned char)(b->seed + i * 7)) __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        sum += b->bytes[i];
    }
    return sum;
}

static void *produce(void *argument) {
    int me = (int)(intptr_t)argument;
    uint32_t random = 12345u + me;
    struct lane *to = &lanes[(me + 1) % THREADS];
    for (int i = 0; i < ROUNDS; i++) {
        random = random * 1664525u + 1013904223u;
        uint32_t size = random >> 16 & 1023;
        if (i % 500 == 0) size = 200000; /* its own mapping */
        struct block *b = malloc(sizeof *b + size);
        if (!b) abort();
        b->size = size;
        b->seed = random;
        fill(b);
        pthread_mutex_lock(&to->lock);
        while (to->count == SLOTS) pthread_cond_wait(&to->room, &to->lock);
        b->next = to->first;
        to->first = b;
        to->count++;
        pthread_cond_signal(&to->news);
        pthread_mutex_unlock(&to->lock);
    }
    return 0;
}

static void *consume(void *argument) {
    int me = (int)(intptr_t)argument;
    struct lane *from = &lanes[me];
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&from->lock);
        while (from->count == 0) pthread_cond_wait(&from->news, &from->lock);
        struct block *b = from->first;
        from->first = b->next;
        from->count--;
        pthread_cond_signal(&from->room);
        pthread_mutex_unlock(&from->lock);
        sums[me] += check(b);
        free(b);
    }
    return 0;
}

int main(void) {
    pthread_t threads[2 * THREADS];
    for (int i = 0; i < THREADS; i++) {
        pthread_mutex_init(&lanes[i].lock, 0);
        pthread_cond_init(&lanes[i].room, 0);
        pthread_cond_init(&lanes[i].news, 0);
    }
    for (int i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[2 * i], 0, produce, (void *)(intptr_t)i)) abort();
        if (pthread_create(&threads[2 * i + 1], 0, consume, (void *)(intptr_t)i)) abort();
    }
    for (int i = 0; i < 2 * THREADS; i++) pthread_join(threads[i], 0);
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++) sum += sums[i];
    printf("sum %llu, %d wrong\n", (unsigned long long)sum, wrong);
    return wrong != 0;
}
