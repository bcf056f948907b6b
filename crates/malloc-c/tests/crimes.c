/* Mistakes with memory, one for each name. Each must be reported in hardened mode. */
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void free_sized(void *, size_t);
void free_aligned_sized(void *, size_t, size_t);
void delete_sized(void *, size_t) __asm__("_ZdlPvm");
void *new_array(size_t) __asm__("_Znam");
void delete_array(void *) __asm__("_ZdaPv");

static char global[256];
static void *freed_there(void *block) { free(block); return NULL; }

static void churn(void) {
    for (int i = 0; i < 4000; i++) free(malloc(1 + i % 900));
}

/* Large blocks change their length again and again, and keep what is in them. */
static void resize(void) {
    unsigned *block = NULL;
    size_t held = 0;
    for (int turn = 0; turn < 400; turn++) {
        size_t count = turn % 7 ? 20000 + turn * 977 : 35000;
        block = realloc(block, count * sizeof *block);
        for (size_t i = 0; i < held && i < count; i++) if (block[i] != (unsigned)(i * 31)) abort();
        for (size_t i = 0; i < count; i++) block[i] = i * 31;
        held = count;
    }
    free(block);
    free(aligned_alloc(65536, 100));
    free(aligned_alloc(65536, 300000));
}

#define CRIME(name) if (!strcmp(crime, #name))

int main(int argc, char **argv) {
    const char *crime = argc > 1 ? argv[1] : "";
    char *volatile small = malloc(100), *volatile medium = malloc(5000);
    char *volatile large = malloc(300000), *volatile other = malloc(100);
    memset(small, 1, 100), memset(medium, 1, 5000), memset(large, 1, 300000);
    CRIME(double_free_small) { free(small); free(small); }
    CRIME(double_free_small_with_others_between) {
        free(small); free(other); for (int i = 0; i < 50; i++) free(malloc(100)); free(small);
    }
    CRIME(double_free_medium) { free(medium); free(medium); }
    CRIME(double_free_large) { free(large); free(large); }
    CRIME(double_free_by_another_thread) {
        pthread_t thread; free(small);
        pthread_create(&thread, NULL, freed_there, small); pthread_join(thread, NULL);
    }
    CRIME(double_free_of_anothers_block) {
        pthread_t thread;
        pthread_create(&thread, NULL, freed_there, small); pthread_join(thread, NULL); free(small);
    }
    CRIME(free_of_what_realloc_moved) { char *moved = realloc(small, 50000); (void)moved; free(small); }
    CRIME(interior_small) { free(small + 16); }
    CRIME(interior_small_odd) { free(small + 7); }
    CRIME(interior_medium) { free(medium + 1024); }
    CRIME(interior_large) { free(large + 4096); }
    CRIME(interior_aligned) { char *block = aligned_alloc(256, 1024); free(block + 256); }
    CRIME(before_the_start) { free(small - 16); }
    CRIME(behind_the_end) { free(small + 100); }
    CRIME(free_of_the_stack) { char local[64]; char *volatile p = local; free(p); }
    CRIME(free_of_a_global) { char *volatile p = global + 64; free(p); }
    CRIME(free_of_a_literal) { char *volatile p = (char *)"literal"; free(p); }
    CRIME(free_of_code) { free((void *)main); }
    CRIME(free_of_a_mapping) { free(mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)); }
    CRIME(free_of_a_wild_number) { free((void *)0x123450); }
    CRIME(free_of_memory_never_handed_out) { free(small + 100 * 1024 * 1024); }
    CRIME(one_behind_small) { small[100] = 0; free(small); }
    CRIME(one_behind_a_round_size) { char *block = malloc(128); block[128] = 0; free(block); }
    CRIME(one_behind_medium) { medium[5000] = 0; free(medium); }
    CRIME(one_behind_large) { char *block = malloc(200001); block[200001] = 0; free(block); }
    CRIME(far_behind_large) { large[300000] = 0; }
    CRIME(read_behind_large) { return large[304000]; }
    CRIME(string_one_too_long) {
        char *block = malloc(5); strcpy(block, strlen(argv[1]) > 3 ? "12345" : "1"); free(block);
    }
    CRIME(many_behind) { memset(small, 2, 130); free(small); }
    CRIME(behind_and_never_freed) { small[100] = 0; }
    CRIME(behind_then_realloc) { small[101] = 0; free(realloc(small, 110)); }
    CRIME(one_before_small) { small[-1] = 0; free(small); }
    CRIME(some_before_medium) { memset(medium - 12, 0, 12); free(medium); }
    CRIME(one_before_large) { large[-1] = 0; free(large); }
    CRIME(write_after_free) { free(small); small[10] = 2; churn(); }
    CRIME(write_after_free_at_exit) { free(small); small[99] = 2; }
    CRIME(write_after_free_medium) { free(medium); medium[8] = 2; churn(); }
    CRIME(write_after_free_large) { free(large); large[1000] = 2; }
    CRIME(read_after_free_large) { free(large); return large[1000]; }
    CRIME(realloc_after_free) { free(small); small = realloc(small, 200); }
    CRIME(realloc_of_an_interior) { small = realloc(small + 32, 200); }
    CRIME(realloc_of_the_stack) { char local[64]; char *volatile p = local; p = realloc(p, 100); }
    CRIME(size_of_a_freed_block) { free(small); return (int)malloc_usable_size(small); }
    CRIME(free_sized_wrong) { free_sized(small, 99); }
    CRIME(free_aligned_sized_wrong) { free_aligned_sized(aligned_alloc(64, 200), 64, 300); }
    CRIME(delete_with_a_wrong_size) { delete_sized(small, 96); }
    CRIME(delete_array_interior) { delete_array((char *)new_array(80) + 8); }
    CRIME(written_as_if_usable_were_more) { memset(small, 3, malloc_usable_size(small) + 4); free(small); }
    CRIME(one_behind_large_made_longer) { large = realloc(large, 900000); large[900000] = 0; free(large); }
    CRIME(far_behind_large_made_shorter) { large = realloc(large, 200000); large[204096] = 0; }
    CRIME(use_of_large_that_realloc_moved) { char *moved = realloc(large, 900000); moved[0] = large[0]; }
    CRIME(nothing_wrong) { resize(); free(small); free(medium); free(large); free(other); churn(); puts("well"); }
    return 0;
}
