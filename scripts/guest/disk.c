#define _GNU_SOURCE
#include "agent.h"
#include "pattern.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define CHUNK 64u /* blocks read at once by verify */
#define WORK_MAX 16u
#define LATENCIES (1u << 18) /* requests noted between two `latency` commands, at most */
#define UNSURE 0x80000000u /* the last write of this block failed: old or new content, both are right */

struct disk {
  char name[16];
  uint32_t tag, blocks, seed, base_blocks;
  int fd;
  /* held over each request together with the table's change, so that work and verify can run at the same time */
  pthread_mutex_t lock;
  /* per block the sequence of its last write, 0: never written; `before` is the one before that, for unsure blocks */
  uint32_t *table, *before;
  uint32_t seq;
  uint32_t *buffer;
  atomic_bool stop, working;
  bool slowly, reads_only, writes_only;
  atomic_ulong reads, writes, bad, errors;
  double worst_ms, worst_since_stat_ms;
  _Atomic double began_ms;
  float *latencies; /* ms; NULL: nobody wants to know */
  uint32_t latency_count;
};

static struct disk disks[MAX_DISKS];
static int disk_count;
static pthread_mutex_t disks_lock = PTHREAD_MUTEX_INITIALIZER;

static bool is_disk(const char *name) {
  return strncmp(name, "vd", 2) == 0 || strncmp(name, "sd", 2) == 0 || strncmp(name, "hd", 2) == 0;
}

static struct disk *open_disk(const char *name) {
  char path[40];
  snprintf(path, sizeof path, "/dev/%.15s", name);
  int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
  /* one that has just been plugged in may come between the two: it is not read-only for that */
  if (fd < 0 && errno != ENOENT && errno != ENXIO && errno != ENODEV) fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
  uint64_t size = 0;
  if (fd < 0 || disk_count == MAX_DISKS || ioctl(fd, BLKGETSIZE64, &size) != 0 || size < BLOCK) {
    if (fd >= 0) close(fd);
    return NULL;
  }
  struct disk *disk = &disks[disk_count++];
  snprintf(disk->name, sizeof disk->name, "%.15s", name);
  memcpy(&disk->tag, disk->name, 4);
  disk->fd = fd;
  disk->blocks = (uint32_t)(size / BLOCK);
  disk->table = calloc(disk->blocks, 4);
  disk->before = calloc(disk->blocks, 4);
  disk->buffer = aligned_alloc(BLOCK, CHUNK * BLOCK);
  pthread_mutex_init(&disk->lock, NULL);
  return disk;
}

struct disk *find_disk(const struct request *request, const char *name) {
  struct disk *found = NULL;
  if (is_disk(name)) {
    for (int tries = 0; found == NULL && tries < 100; tries++) {
      if (tries > 0) usleep(100000);
      pthread_mutex_lock(&disks_lock);
      for (int i = 0; i < disk_count; i++)
        if (strcmp(disks[i].name, name) == 0) found = &disks[i];
      if (found == NULL) found = open_disk(name);
      pthread_mutex_unlock(&disks_lock);
    }
  }
  if (found == NULL) answer(request, "error", "no disk '%s'", name);
  return found;
}

void list_disks(const struct request *request) {
  DIR *dir = opendir("/sys/block");
  for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
    if (!is_disk(entry->d_name)) continue;
    char path[300];
    unsigned long long sectors = 0;
    snprintf(path, sizeof path, "/sys/block/%s/size", entry->d_name);
    FILE *file = fopen(path, "r");
    if (file == NULL) continue;
    if (fscanf(file, "%llu", &sectors) == 1) answer(request, ".", "%s %llu", entry->d_name, sectors * 512);
    fclose(file);
  }
  if (dir != NULL) closedir(dir);
  answer(request, "ok", "%s", "");
}

void set_base(const struct request *request, struct disk *disk, char *arguments) {
  uint32_t seed = 0, blocks = disk->blocks;
  if (arguments == NULL || sscanf(arguments, "%u %u", &seed, &blocks) < 1) {
    answer(request, "error", "base DISK SEED [BLOCKS]");
    return;
  }
  pthread_mutex_lock(&disk->lock);
  disk->seed = seed;
  disk->base_blocks = blocks < disk->blocks ? blocks : disk->blocks;
  pthread_mutex_unlock(&disk->lock);
  answer(request, "ok", "blocks=%u", disk->blocks);
}

static void content(const struct disk *disk, uint32_t *words, uint32_t block, uint32_t seq) {
  if (seq != 0) written_block(words, disk->tag, block, seq);
  else base_block(words, block < disk->base_blocks ? disk->seed : 0, block);
}

/* Makes `expected` what the block must hold, and settles what an unsure one does hold. */
static bool is_right(struct disk *disk, const uint32_t *words, uint32_t block) {
  uint32_t expected[WORDS];
  uint32_t seq = disk->table[block];
  content(disk, expected, block, seq & ~UNSURE);
  if (memcmp(words, expected, BLOCK) == 0) {
    disk->table[block] = seq & ~UNSURE;
    return true;
  }
  if (!(seq & UNSURE)) return false;
  content(disk, expected, block, disk->before[block]);
  if (memcmp(words, expected, BLOCK) != 0) return false;
  disk->table[block] = disk->before[block];
  return true;
}

static const char *kind_of(const uint32_t *words) {
  if (words[0] == BASE_MAGIC) return "base";
  if (words[0] == WRITTEN_MAGIC) return "written";
  for (uint32_t i = 0; i < WORDS; i++)
    if (words[i] != 0) return "other";
  return "zero";
}

static void count_bad(struct disk *disk, const uint32_t *words, uint32_t block) {
  if (atomic_fetch_add(&disk->bad, 1) < 8)
    say("! %s block=%u wanted=%u holds=%s,%u,%x,%u", disk->name, block, disk->table[block] & ~UNSURE, kind_of(words), words[1],
        words[2], words[3]);
}

static void count_error(struct disk *disk, const char *what, uint32_t block) {
  int error = errno;
  if (atomic_fetch_add(&disk->errors, 1) < 8) say("! %s %s block=%u: %s", disk->name, what, block, strerror(error));
}

static void begin(struct disk *disk) { disk->began_ms = now_ms(); }
static void end(struct disk *disk) {
  double took = now_ms() - disk->began_ms;
  disk->began_ms = 0;
  if (took > disk->worst_ms) disk->worst_ms = took;
  if (took > disk->worst_since_stat_ms) disk->worst_since_stat_ms = took;
  if (disk->latencies != NULL && disk->latency_count < LATENCIES) disk->latencies[disk->latency_count++] = (float)took;
}

static bool transfer(struct disk *disk, bool writing, uint32_t block, uint32_t count) {
  size_t length = (size_t)count * BLOCK;
  off_t offset = (off_t)block * BLOCK;
  begin(disk);
  ssize_t n = writing ? pwrite(disk->fd, disk->buffer, length, offset) : pread(disk->fd, disk->buffer, length, offset);
  end(disk);
  if (n >= 0 && (size_t)n != length) errno = EIO;
  return n >= 0 && (size_t)n == length;
}

/* with the lock held; answers the number of wrong blocks, -1 when the read failed */
static int checked_read(struct disk *disk, uint32_t block, uint32_t count) {
  if (!transfer(disk, false, block, count)) {
    count_error(disk, "read", block);
    return -1;
  }
  int bad = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (is_right(disk, disk->buffer + i * WORDS, block + i)) continue;
    count_bad(disk, disk->buffer + i * WORDS, block + i);
    bad++;
  }
  disk->reads++;
  return bad;
}

static bool tabled_write(struct disk *disk, uint32_t block, uint32_t count) {
  uint32_t seq = ++disk->seq;
  for (uint32_t i = 0; i < count; i++) written_block(disk->buffer + i * WORDS, disk->tag, block + i, seq);
  bool written = transfer(disk, true, block, count);
  for (uint32_t i = block; i < block + count; i++) {
    if (!written && !(disk->table[i] & UNSURE)) disk->before[i] = disk->table[i];
    disk->table[i] = written ? seq : seq | UNSURE;
  }
  if (!written) count_error(disk, "write", block);
  disk->writes++;
  return written;
}

static uint32_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return (uint32_t)(*state >> 16);
}

static void *work(void *data) {
  struct disk *disk = data;
  uint64_t state = (uint64_t)(now_ms() * 1e6) | 1;
  while (!disk->stop) {
    uint32_t most = disk->blocks < WORK_MAX ? disk->blocks : WORK_MAX;
    uint32_t count = 1 + next_random(&state) % most;
    uint32_t block = next_random(&state) % (disk->blocks - count + 1);
    bool writing = disk->writes_only || (!disk->reads_only && (next_random(&state) & 1));
    pthread_mutex_lock(&disk->lock);
    bool fine = writing ? tabled_write(disk, block, count) : checked_read(disk, block, count) >= 0;
    pthread_mutex_unlock(&disk->lock);
    usleep(!fine ? 20000 : disk->slowly ? 10000 : 100);
  }
  disk->working = false;
  return NULL;
}

void start_work(const struct request *request, struct disk *disk, const char *options) {
  if (atomic_exchange(&disk->working, true)) {
    answer(request, "error", "'%s' is at work already", disk->name);
    return;
  }
  disk->stop = false;
  disk->slowly = options != NULL && strstr(options, "slowly") != NULL;
  disk->reads_only = options != NULL && strstr(options, "reads") != NULL;
  disk->writes_only = options != NULL && strstr(options, "writes") != NULL;
  pthread_t thread;
  if (pthread_create(&thread, NULL, work, disk) != 0) {
    disk->working = false;
    answer(request, "error", "no thread");
    return;
  }
  pthread_detach(thread);
  answer(request, "ok", "blocks=%u", disk->blocks);
}

void stop_work(const struct request *request, const char *name) {
  for (int i = 0; i < disk_count; i++)
    if (name == NULL || strcmp(disks[i].name, name) == 0) disks[i].stop = true;
  for (int i = 0; i < disk_count; i++)
    while (disks[i].stop && disks[i].working) usleep(1000);
  show_stat(request);
}

void show_stat(const struct request *request) {
  unsigned long reads = 0, writes = 0, bad = 0, errors = 0;
  double worst = 0, recent = 0, pending = 0;
  for (int i = 0; i < disk_count; i++) {
    struct disk *disk = &disks[i];
    reads += disk->reads, writes += disk->writes, bad += disk->bad, errors += disk->errors;
    if (disk->worst_ms > worst) worst = disk->worst_ms;
    if (disk->worst_since_stat_ms > recent) recent = disk->worst_since_stat_ms;
    disk->worst_since_stat_ms = 0;
    double began = disk->began_ms;
    if (began > 0 && now_ms() - began > pending) pending = now_ms() - began;
  }
  answer(request, "ok", "reads=%lu writes=%lu bad=%lu errors=%lu max_ms=%.1f recent_max_ms=%.1f pending_ms=%.1f", reads, writes,
         bad, errors, worst, recent, pending);
}

static int compare_floats(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

void show_latency(const struct request *request, struct disk *disk) {
  pthread_mutex_lock(&disk->lock);
  if (disk->latencies == NULL) disk->latencies = calloc(LATENCIES, sizeof *disk->latencies);
  uint32_t count = disk->latency_count;
  float p50 = 0, p99 = 0, most = 0;
  if (disk->latencies != NULL && count > 0) {
    qsort(disk->latencies, count, sizeof *disk->latencies, compare_floats);
    p50 = disk->latencies[count / 2];
    p99 = disk->latencies[(uint64_t)count * 99 / 100];
    most = disk->latencies[count - 1];
  }
  disk->latency_count = 0;
  pthread_mutex_unlock(&disk->lock);
  answer(request, "ok", "count=%u p50_ms=%.3f p99_ms=%.3f max_ms=%.3f", count, p50, p99, most);
}

/* Takes a block that the guest wrote in an earlier life for what it says it is. */
static bool adopt_block(struct disk *disk, const uint32_t *words, uint32_t block) {
  uint32_t expected[WORDS];
  if (words[0] != WRITTEN_MAGIC) return false;
  written_block(expected, disk->tag, block, words[3]);
  if (memcmp(words, expected, BLOCK) != 0) return false;
  disk->table[block] = words[3];
  if (words[3] > disk->seq) disk->seq = words[3];
  return true;
}

void verify(const struct request *request, struct disk *disk, bool adopt) {
  unsigned long bad = 0, err = 0, written = 0;
  long first = -1;
  for (uint32_t block = 0; block < disk->blocks; block += CHUNK) {
    uint32_t count = disk->blocks - block < CHUNK ? disk->blocks - block : CHUNK;
    pthread_mutex_lock(&disk->lock);
    bool whole = transfer(disk, false, block, count);
    for (uint32_t i = 0; i < count; i++) {
      uint32_t *words = disk->buffer + (whole ? i * WORDS : 0);
      if (!whole && !transfer(disk, false, block + i, 1)) {
        count_error(disk, "read", block + i);
        err++;
      } else if (adopt && adopt_block(disk, words, block + i)) {
        written++;
      } else if (!is_right(disk, words, block + i)) {
        count_bad(disk, words, block + i);
        if (bad++ == 0) first = block + i;
      } else if (disk->table[block + i] != 0) {
        written++;
      }
    }
    pthread_mutex_unlock(&disk->lock);
  }
  answer(request, "ok", "bad=%lu err=%lu first=%ld written=%lu blocks=%u", bad, err, first, written, disk->blocks);
}

void show_digest(const struct request *request, struct disk *disk) {
  struct digest digest = {0x811c9dc5u, 0x9747b28cu};
  uint32_t words[WORDS];
  unsigned long unsure = 0;
  pthread_mutex_lock(&disk->lock);
  for (uint32_t block = 0; block < disk->blocks; block++) {
    if (disk->table[block] & UNSURE) unsure++;
    content(disk, words, block, disk->table[block] & ~UNSURE);
    digest_block(&digest, words);
  }
  pthread_mutex_unlock(&disk->lock);
  answer(request, "ok", "digest=%08x%08x unsure=%lu blocks=%u", digest.a, digest.b, unsure, disk->blocks);
}

void write_one(const struct request *request, struct disk *disk, uint32_t block) {
  if (block >= disk->blocks) {
    answer(request, "error", "'%s' has %u blocks", disk->name, disk->blocks);
    return;
  }
  pthread_mutex_lock(&disk->lock);
  bool written = tabled_write(disk, block, 1);
  uint32_t seq = disk->seq;
  pthread_mutex_unlock(&disk->lock);
  answer(request, "ok", "seq=%u err=%d", seq, written ? 0 : 1);
}

void read_one(const struct request *request, struct disk *disk, uint32_t block) {
  if (block >= disk->blocks) {
    answer(request, "error", "'%s' has %u blocks", disk->name, disk->blocks);
    return;
  }
  pthread_mutex_lock(&disk->lock);
  int bad = checked_read(disk, block, 1);
  uint32_t *words = disk->buffer;
  answer(request, "ok", "bad=%d err=%d kind=%s", bad > 0 ? bad : 0, bad < 0 ? 1 : 0, bad < 0 ? "none" : kind_of(words));
  pthread_mutex_unlock(&disk->lock);
}

void flush(const struct request *request, struct disk *disk) {
  int result = fsync(disk->fd);
  answer(request, "ok", "err=%d", result == 0 ? 0 : 1);
}
