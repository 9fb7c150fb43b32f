/*
 * What the blocks of a test disk hold. test/support/pattern.ts is the same in TypeScript: a test there holds both together.
 * A block is 4 KiB, 1024 little-endian words. Everything is 32-bit arithmetic, so that JavaScript is quick at it too.
 */
#include <stdint.h>
#include <string.h>

#define BLOCK 4096u
#define WORDS (BLOCK / 4)
#define BASE_MAGIC 0x31425356u    /* 'VSB1' */
#define WRITTEN_MAGIC 0x31575356u /* 'VSW1' */

static inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}

static inline uint32_t mix3(uint32_t a, uint32_t b, uint32_t c) { return mix(mix(mix(a) ^ b) ^ c); }

static inline void fill(uint32_t *words, uint32_t x) {
  x |= 1;
  for (uint32_t i = 4; i < WORDS; i++) {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    words[i] = x;
  }
}

/* The block of the base image: zero in a quarter of the 64 KiB regions and in a sixteenth of the other blocks. Seed 0: all zero. */
static inline void base_block(uint32_t *words, uint32_t seed, uint32_t block) {
  if (seed == 0 || (mix3(seed, 0x52, block >> 4) & 3) == 0 || (mix3(seed, 0x5a, block) & 15) == 0) {
    memset(words, 0, BLOCK);
    return;
  }
  words[0] = BASE_MAGIC;
  words[1] = block;
  words[2] = seed;
  words[3] = 0;
  fill(words, mix3(seed, 0x46, block));
}

/* The block as the guest wrote it: `disk` is the first four letters of its name, `seq` counts the writes of that disk. */
static inline void written_block(uint32_t *words, uint32_t disk, uint32_t block, uint32_t seq) {
  words[0] = WRITTEN_MAGIC;
  words[1] = block;
  words[2] = disk;
  words[3] = seq;
  fill(words, mix3(disk, block, seq));
}

struct digest {
  uint32_t a, b;
};

static inline void digest_block(struct digest *digest, const uint32_t *words) {
  uint32_t a = digest->a, b = digest->b;
  for (uint32_t i = 0; i < WORDS; i++) {
    a = (a ^ words[i]) * 0x01000193u;
    b = ((b << 5 | b >> 27) + words[i]) * 0x9e3779b1u;
  }
  digest->a = a;
  digest->b = b;
}
