/*
 * The whole user space of the test guest: started as /init, it loads the modules, says READY on ttyS0 (and on the virtio
 * port org.virstream.guest.0) and obeys lines: "[#ID ]COMMAND …" is answered by "[#ID ]ok …" or "[#ID ]error …", after any
 * number of "[#ID ]. …" lines. Commands run side by side: a disk that hangs does not keep `stat` from being answered.
 * Lines that nobody asked for: "READY …", "TICK …", "! …" (a wrong block, a failed request), "POWER …".
 */
#define _GNU_SOURCE
#include "agent.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile bool ticking, leaving;
static struct channel *tick_channel;
static unsigned long boots_ticks;

void power(int how) {
  leaving = true;
  say("POWER %s", how == RB_POWER_OFF ? "off" : "reset");
  sync();
  usleep(20000); /* the last line is still in the UART */
  reboot(how);
  for (;;) pause();
}

static void *tick(void *data) {
  (void)data;
  for (;;) {
    usleep(10000);
    if (ticking) say_to(tick_channel, "TICK %lu %.0f", ++boots_ticks, now_ms());
  }
  return NULL;
}

static void shell(const struct request *request, const char *command) {
  int ends[2];
  if (command == NULL || pipe2(ends, O_CLOEXEC) != 0) {
    answer(request, "error", "sh COMMAND");
    return;
  }
  pid_t pid = fork();
  if (pid == 0) {
    dup2(ends[1], 1);
    dup2(ends[1], 2);
    execl("/bin/busybox", "sh", "-c", command, (char *)NULL);
    _exit(127);
  }
  close(ends[1]);
  FILE *output = fdopen(ends[0], "r");
  char line[700];
  while (fgets(line, sizeof line, output) != NULL) {
    line[strcspn(line, "\n")] = 0;
    answer(request, ".", "%s", line);
  }
  fclose(output);
  int status = 0;
  waitpid(pid, &status, 0);
  answer(request, "ok", "exit=%d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void disk_command(struct request *request, const char *verb, char *name, char *rest) {
  struct disk *disk = find_disk(request, name);
  if (disk == NULL) return;
  uint32_t number = rest == NULL ? 0 : (uint32_t)strtoul(rest, NULL, 10);
  if (strcmp(verb, "base") == 0) set_base(request, disk, rest);
  else if (strcmp(verb, "work") == 0) start_work(request, disk, rest);
  else if (strcmp(verb, "verify") == 0) verify(request, disk, false);
  else if (strcmp(verb, "adopt") == 0) verify(request, disk, true);
  else if (strcmp(verb, "digest") == 0) show_digest(request, disk);
  else if (strcmp(verb, "latency") == 0) show_latency(request, disk);
  else if (strcmp(verb, "write") == 0) write_one(request, disk, number);
  else if (strcmp(verb, "read") == 0) read_one(request, disk, number);
  else if (strcmp(verb, "flush") == 0) flush(request, disk);
  else answer(request, "error", "unknown command '%s'", verb);
}

static void command(struct request *request) {
  char line[sizeof request->line];
  strcpy(line, request->line);
  char *rest = line;
  const char *verb = strsep(&rest, " ");
  if (leaving) return; /* the next life answers */
  if (strcmp(verb, "ping") == 0) answer(request, "ok", "up_ms=%.0f", now_ms());
  else if (strcmp(verb, "disks") == 0) list_disks(request);
  else if (strcmp(verb, "stat") == 0) show_stat(request);
  else if (strcmp(verb, "stop") == 0) stop_work(request, rest);
  else if (strcmp(verb, "sh") == 0) shell(request, rest);
  else if (strcmp(verb, "ticks") == 0) {
    tick_channel = request->channel;
    ticking = rest != NULL && strcmp(rest, "on") == 0;
    answer(request, "ok", "%s", "");
  } else if (strcmp(verb, "poweroff") == 0 || strcmp(verb, "reboot") == 0) {
    answer(request, "ok", "%s", "");
    power(*verb == 'p' ? RB_POWER_OFF : RB_AUTOBOOT);
  } else if (rest != NULL) {
    char *name = strsep(&rest, " ");
    disk_command(request, verb, name, rest);
  } else answer(request, "error", "unknown command '%s'", verb);
}

static void *watch_buttons(void *data) {
  int fd = *(int *)data;
  struct input_event event;
  while (read(fd, &event, sizeof event) == (ssize_t)sizeof event)
    if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) power(RB_POWER_OFF);
  return NULL;
}

static void open_buttons(void) {
  static int fds[16];
  for (int i = 0; i < 16; i++) {
    char path[40];
    snprintf(path, sizeof path, "/dev/input/event%d", i);
    fds[i] = open(path, O_RDONLY | O_CLOEXEC);
    pthread_t thread;
    if (fds[i] >= 0) pthread_create(&thread, NULL, watch_buttons, &fds[i]);
  }
}

static void load_modules(void) {
  FILE *list = fopen("/modules/order", "r");
  char name[100], path[120];
  while (list != NULL && fgets(name, sizeof name, list) != NULL) {
    name[strcspn(name, "\n")] = 0;
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST) say("! module %s: %s", name, strerror(errno));
    close(fd);
  }
  if (list != NULL) fclose(list);
}

int main(void) {
  mount("dev", "/dev", "devtmpfs", 0, "");
  mount("proc", "/proc", "proc", 0, "");
  mount("sys", "/sys", "sysfs", 0, "");
  klogctl(8, NULL, 1); /* the kernel keeps its words out of our lines */
  load_modules();
  open_channels();
  open_buttons();
  pthread_t thread;
  pthread_create(&thread, NULL, tick, NULL);
  struct timespec wall;
  clock_gettime(CLOCK_REALTIME, &wall);
  say("\nREADY up_ms=%.0f time=%ld.%03ld", now_ms(), wall.tv_sec, wall.tv_nsec / 1000000);
  serve_channels(command);
}
