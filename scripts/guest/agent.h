/* The parts of the guest agent: channel.c (lines in and out), disk.c (blocks), agent.c (commands, boot). */
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define MAX_DISKS 32
#define MAX_CHANNELS 2

/* --- lines ------------------------------------------------------------------------------------------------- */

struct channel {
  int fd;
  bool serial;
};
/* who asked: the answer carries the id that the request carried */
struct request {
  struct channel *channel;
  char id[24];
  char line[512];
};

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void say_to(struct channel *channel, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "[#id ]ok …", "[#id ]error …" and "[#id ]. …" (one line of many) */
void answer(const struct request *request, const char *word, const char *format, ...) __attribute__((format(printf, 3, 4)));
void open_channels(void);
/* calls `handle` in a new thread for each line; never returns */
void serve_channels(void (*handle)(struct request *request));

double now_ms(void);
void power(int how);

/* --- disks ------------------------------------------------------------------------------------------------- */

struct disk;
/* waits some seconds for the disk to appear; NULL and an error answer when it does not */
struct disk *find_disk(const struct request *request, const char *name);
void list_disks(const struct request *request);
void set_base(const struct request *request, struct disk *disk, char *arguments);
void start_work(const struct request *request, struct disk *disk, const char *options);
void stop_work(const struct request *request, const char *name);
void show_stat(const struct request *request);
/* how long the requests since the last such command took; the first one begins to take notes */
void show_latency(const struct request *request, struct disk *disk);
void verify(const struct request *request, struct disk *disk, bool adopt);
void show_digest(const struct request *request, struct disk *disk);
void write_one(const struct request *request, struct disk *disk, uint32_t block);
void read_one(const struct request *request, struct disk *disk, uint32_t block);
void flush(const struct request *request, struct disk *disk);
