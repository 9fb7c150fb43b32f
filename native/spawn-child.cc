#include "spawn-child.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>

const char kSelinuxExecPath[] = "/proc/thread-self/attr/exec";
const char kApparmorExecPath[] = "/proc/thread-self/attr/apparmor/exec";

namespace {

#ifndef CLOSE_RANGE_CLOEXEC
constexpr unsigned CLOSE_RANGE_CLOEXEC = 1u << 2;
#endif

[[noreturn]] void Fail(const SpawnPlan& plan, const char* syscall, FailedPath path = FailedPath::none) {
  const SpawnFailure failure{errno, syscall, path};
  ssize_t written;
  do {
    written = write(plan.errorPipe, &failure, sizeof failure);
  } while (written < 0 && errno == EINTR);
  _exit(127);
}

void ResetSignals() {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  // fails for SIGKILL, SIGSTOP and the C library's own, none of which is ours to set
  for (int number = 1; number < NSIG; number++) sigaction(number, &action, nullptr);
}

int AboveAll(const SpawnPlan& plan) {
  const int last = plan.fds.empty() ? 2 : plan.fds.back().target;
  return (last > 2 ? last : 2) + 1;
}

bool IsTarget(const SpawnPlan& plan, int fd) {
  for (const FdMapping& mapping : plan.fds) {
    if (mapping.target == fd) return true;
  }
  return false;
}

// For kernels that can't do it in one call (before 5.11): marks each open descriptor that is listed in /proc.
void CloseOthersOneByOne(const SpawnPlan& plan) {
  const int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) Fail(plan, "open /proc/self/fd");
  alignas(dirent64) char buffer[4096];
  for (;;) {
    const long got = syscall(SYS_getdents64, directory, buffer, sizeof buffer);
    if (got < 0) Fail(plan, "getdents64");
    if (got == 0) break;
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const dirent64*>(buffer + at);
      at += entry->d_reclen;
      int fd = 0;
      const char* digit = entry->d_name;
      for (; *digit >= '0' && *digit <= '9'; digit++) fd = fd * 10 + (*digit - '0');
      if (digit == entry->d_name || *digit != '\0' || IsTarget(plan, fd)) continue;
      fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
  }
  close(directory);
}

bool CloseRange(int first, unsigned last) {
  return syscall(SYS_close_range, static_cast<unsigned>(first), last, CLOSE_RANGE_CLOEXEC) == 0;
}

// Everything but the targets goes at exec, so that the error pipe lives until then.
void CloseOthers(const SpawnPlan& plan) {
  int next = 0;
  bool done = true;
  for (const FdMapping& mapping : plan.fds) {
    if (mapping.target > next) done = done && CloseRange(next, static_cast<unsigned>(mapping.target - 1));
    next = mapping.target + 1;
  }
  done = done && CloseRange(next, UINT_MAX);
  if (!done) CloseOthersOneByOne(plan);
}

// A source may be another mapping's target: all sources are moved above every target first.
void MapDescriptors(SpawnPlan& plan) {
  const int above = AboveAll(plan);
  const int pipe = fcntl(plan.errorPipe, F_DUPFD_CLOEXEC, above);
  if (pipe < 0) Fail(plan, "fcntl");
  plan.errorPipe = pipe;
  if (plan.control >= 0) {
    plan.control = fcntl(plan.control, F_DUPFD_CLOEXEC, above);
    if (plan.control < 0) Fail(plan, "fcntl");
    close(plan.controlOther);  // so that a parent that dies is the end of the stream
  }
  for (size_t i = 0; i < plan.fds.size(); i++) {
    plan.moved[i] = fcntl(plan.fds[i].source, F_DUPFD_CLOEXEC, above);
    if (plan.moved[i] < 0) Fail(plan, "fcntl");
  }
  for (size_t i = 0; i < plan.fds.size(); i++) {
    if (dup2(plan.moved[i], plan.fds[i].target) < 0) Fail(plan, "dup2");
  }
  CloseOthers(plan);
}

bool WriteAttribute(const char* path, const std::string& text) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t written = write(fd, text.c_str(), text.size());
  const int error = errno;
  close(fd);
  errno = error;
  return written == static_cast<ssize_t>(text.size());
}

void SetLabels(const SpawnPlan& plan) {
  if (!plan.selinuxLabel.empty() && !WriteAttribute(kSelinuxExecPath, plan.selinuxLabel)) {
    Fail(plan, "write", FailedPath::selinux);
  }
  if (plan.apparmorCommand.empty() || WriteAttribute(kApparmorExecPath, plan.apparmorCommand)) return;
  // before Linux 5.1 AppArmor had the shared file only
  if (errno == ENOENT && WriteAttribute(kSelinuxExecPath, plan.apparmorCommand)) return;
  Fail(plan, "write", FailedPath::apparmor);
}

// The bare system calls: the C library's wrappers would change all threads of a process that this child still shares.
void SetIdentity(const SpawnPlan& plan) {
  if (plan.setGroups && syscall(SYS_setgroups, plan.groups.size(), plan.groups.data()) != 0) Fail(plan, "setgroups");
  if (plan.setGid && syscall(SYS_setresgid, plan.gid, plan.gid, plan.gid) != 0) Fail(plan, "setresgid");
  if (plan.setUid && syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid) != 0) Fail(plan, "setresuid");
}

constexpr time_t kConnectSeconds = 10;

// Stays open in the program, under whichever number is free.
int Connect(const SpawnPlan& plan) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) Fail(plan, "socket");
  timeval patience{kConnectSeconds, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  int result;
  do {
    result = connect(fd, reinterpret_cast<const sockaddr*>(&plan.connectTo), plan.connectLength);
  } while (result != 0 && errno == EINTR);
  if (result != 0) Fail(plan, "connect", FailedPath::connection);
  patience = {};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  return fd;
}

// Tells the parent that this process is there, and waits until it may go on.
void Hold(const SpawnPlan& plan) {
  const int connection = plan.connects ? Connect(plan) : -1;
  char byte = 1;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (connection >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof connection);
    memcpy(CMSG_DATA(header), &connection, sizeof connection);
  }
  if (sendmsg(plan.control, &message, MSG_NOSIGNAL) != 1) _exit(127);
  ssize_t got;
  do {
    got = read(plan.control, &byte, 1);
  } while (got < 0 && errno == EINTR);
  if (got != 1) _exit(127);  // nobody is left who could want this program
}

}  // namespace

void RunSpawnChild(SpawnPlan& plan) {
  ResetSignals();
  if (plan.newSession && setsid() < 0) Fail(plan, "setsid");
  if (plan.setUmask) umask(plan.mask);
  MapDescriptors(plan);
  if (plan.control >= 0) Hold(plan);
  SetLabels(plan);
  SetIdentity(plan);
  // as the user that the program runs as: a directory that it may not enter is an error here
  if (!plan.cwd.empty() && chdir(plan.cwd.c_str()) != 0) Fail(plan, "chdir", FailedPath::cwd);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve(plan.file.c_str(), plan.argv.data(), plan.envp.data());
  Fail(plan, "execve", FailedPath::file);
}
