#define _GNU_SOURCE
#include "agent.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.virstream.guest.0"

static struct channel channels[MAX_CHANNELS];
static int channel_count;
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;

double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* A virtio port that nobody has opened on the host takes nothing: such a line is dropped. */
static void put(struct channel *channel, const char *text, size_t length) {
  while (length > 0) {
    ssize_t n = write(channel->fd, text, length);
    if (n > 0) {
      text += n;
      length -= (size_t)n;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    struct pollfd p = {.fd = channel->fd, .events = POLLOUT};
    if (n < 0 && errno == EAGAIN && poll(&p, 1, 1000) == 1 && !(p.revents & POLLHUP)) continue;
    return;
  }
}

static void put_line(struct channel *channel, char *line, size_t length) {
  line[length++] = '\n';
  pthread_mutex_lock(&output);
  for (int i = 0; i < channel_count; i++)
    if (channel == NULL || channel == &channels[i]) put(&channels[i], line, length);
  pthread_mutex_unlock(&output);
}

static size_t clip(int printed, size_t space) {
  return printed < 0 ? 0 : (size_t)printed < space ? (size_t)printed : space - 1;
}

void say(const char *format, ...) {
  char line[1024];
  va_list list;
  va_start(list, format);
  put_line(NULL, line, clip(vsnprintf(line, sizeof line - 1, format, list), sizeof line - 1));
  va_end(list);
}

void say_to(struct channel *channel, const char *format, ...) {
  char line[1024];
  va_list list;
  va_start(list, format);
  put_line(channel, line, clip(vsnprintf(line, sizeof line - 1, format, list), sizeof line - 1));
  va_end(list);
}

void answer(const struct request *request, const char *word, const char *format, ...) {
  char line[1024];
  size_t space = sizeof line - 1;
  size_t n = clip(snprintf(line, space, "%s%s%s ", request->id, *request->id ? " " : "", word), space);
  va_list list;
  va_start(list, format);
  n += clip(vsnprintf(line + n, space - n, format, list), space - n);
  va_end(list);
  while (n > 0 && line[n - 1] == ' ') n--;
  put_line(request->channel, line, n);
}

static int open_port(void) {
  DIR *dir = opendir("/sys/class/virtio-ports");
  if (dir == NULL) return -1;
  int fd = -1;
  for (struct dirent *entry; fd < 0 && (entry = readdir(dir)) != NULL;) {
    char path[400], name[80] = "";
    snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
    FILE *file = fopen(path, "r");
    if (file == NULL) continue;
    if (fgets(name, sizeof name, file) != NULL) name[strcspn(name, "\n")] = 0;
    fclose(file);
    if (strcmp(name, PORT_NAME) != 0) continue;
    snprintf(path, sizeof path, "/dev/%s", entry->d_name);
    fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  }
  closedir(dir);
  return fd;
}

void open_channels(void) {
  int serial = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (serial >= 0) {
    struct termios mode;
    if (tcgetattr(serial, &mode) == 0) {
      cfmakeraw(&mode);
      mode.c_oflag |= OPOST | ONLCR;
      tcsetattr(serial, TCSAFLUSH, &mode);
    }
    channels[channel_count++] = (struct channel){.fd = serial, .serial = true};
  }
  int port = open_port();
  if (port >= 0) channels[channel_count++] = (struct channel){.fd = port};
}

struct job {
  struct request request;
  void (*handle)(struct request *request);
};

static void *run_job(void *data) {
  struct job *job = data;
  job->handle(&job->request);
  free(job);
  return NULL;
}

static void start_job(struct channel *channel, const char *line, void (*handle)(struct request *request)) {
  struct job *job = calloc(1, sizeof *job);
  job->handle = handle;
  job->request.channel = channel;
  if (*line == '#') {
    size_t n = strcspn(line, " ");
    snprintf(job->request.id, sizeof job->request.id, "%.*s", (int)n, line);
    line += n + strspn(line + n, " ");
  }
  snprintf(job->request.line, sizeof job->request.line, "%s", line);
  pthread_t thread;
  if (pthread_create(&thread, NULL, run_job, job) == 0) {
    pthread_detach(thread);
    return;
  }
  answer(&job->request, "error", "no thread");
  free(job);
}

struct reader {
  struct channel *channel;
  void (*handle)(struct request *request);
};

static void *read_lines(void *data) {
  struct reader *reader = data;
  char line[512];
  size_t length = 0;
  for (;;) {
    char buffer[256];
    ssize_t n = read(reader->channel->fd, buffer, sizeof buffer);
    if (n <= 0) {
      struct pollfd p = {.fd = reader->channel->fd, .events = POLLIN};
      if (n == 0 || errno != EAGAIN || poll(&p, 1, 1000) < 0 || (p.revents & POLLHUP)) usleep(50000);
      continue;
    }
    for (ssize_t i = 0; i < n; i++) {
      if (buffer[i] != '\n' && buffer[i] != '\r') {
        if (length < sizeof line - 1) line[length++] = buffer[i];
        continue;
      }
      line[length] = 0;
      if (length > 0) start_job(reader->channel, line, reader->handle);
      length = 0;
    }
  }
  return NULL;
}

void serve_channels(void (*handle)(struct request *request)) {
  static struct reader readers[MAX_CHANNELS];
  for (int i = 0; i < channel_count; i++) {
    readers[i] = (struct reader){.channel = &channels[i], .handle = handle};
    pthread_t thread;
    pthread_create(&thread, NULL, read_lines, &readers[i]);
  }
  for (;;) pause();
}
