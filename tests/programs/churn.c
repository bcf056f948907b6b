/* Allocates much: blocks of all sizes, kept in a table, checked before they go. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 4000, TURNS = 200000 };

static unsigned char *block[SLOTS];
static size_t length[SLOTS];
static uint64_t state = 88172645463325252u;

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void check(int slot) {
    for (size_t i = 0; i < length[slot]; i += 61)
        if (block[slot][i] != (unsigned char)(slot + i)) {
            printf("block %d is wrong at %zu\n", slot, i);
            exit(3);
        }
}

int main(void) {
    uint64_t bytes = 0, sum = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        int slot = next() % SLOTS;
        size_t size = 1 + (next() & ((1u << (next() % 15)) - 1));
        if (block[slot]) {
            check(slot);
            if (turn % 3 == 0) {
                block[slot] = realloc(block[slot], size);
            } else {
                free(block[slot]);
                block[slot] = turn % 2 ? calloc(1, size) : malloc(size);
            }
        } else {
            block[slot] = malloc(size);
        }
        if (!block[slot]) {
            puts("out of memory");
            return 2;
        }
        length[slot] = size;
        for (size_t i = 0; i < size; i++)
            block[slot][i] = (unsigned char)(slot + i);
        bytes += size;
        sum = sum * 31 + block[slot][size / 2];
    }
    for (int slot = 0; slot < SLOTS; slot++)
        if (block[slot]) check(slot), free(block[slot]);
    printf("%d turns, %llu bytes, checksum %016llx\n", TURNS, (unsigned long long)bytes,
           (unsigned long long)sum);
    return 7;
}
