/* A neighbour of the benchmark's servers: a process that computes for ever, without a system call, and counts its
 * passes in a file that is mapped, for others to read meanwhile. A pass goes through the memory of one level-2
 * cache, so that cold caches cost it time, too. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = 256 * 1024 / sizeof(uint64_t) };
static uint64_t memory[WORDS];

int main(int count, char **arguments) {
    if (count != 2)
        errx(2, "expected FILE");
    int file = open(arguments[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof(uint64_t)) < 0)
        err(1, "%s", arguments[1]);
    volatile uint64_t *passes = mmap(NULL, sizeof *passes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (passes == MAP_FAILED)
        err(1, "map %s", arguments[1]);
    for (uint64_t state = 1;; ++*passes)
        for (int each = 0; each < WORDS; each++)
            memory[each] = state = state * 6364136223846793005u + memory[each];
}
