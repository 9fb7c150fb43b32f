#include "libvirt-loop.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <ctime>
#include <system_error>
#include <utility>

namespace {

// virEventHandleType
constexpr int kReadable = 1, kWritable = 2, kError = 4, kHangup = 8;
constexpr int kWakeId = 0;
constexpr int kMostAtOnce = 64;
constexpr int64_t kSecond = 1'000'000'000, kMillisecond = 1'000'000;

uint32_t ToEpoll(int events) {
  return (events & kReadable ? EPOLLIN : 0U) | (events & kWritable ? EPOLLOUT : 0U) |
         (events & kError ? EPOLLERR : 0U) | (events & kHangup ? EPOLLHUP : 0U);
}

int FromEpoll(uint32_t events) {
  return (events & EPOLLIN ? kReadable : 0) | (events & EPOLLOUT ? kWritable : 0) | (events & EPOLLERR ? kError : 0) |
         (events & EPOLLHUP ? kHangup : 0);
}

// Of this thread: whether it defers, and the watches that it has to look after again.
thread_local bool defers = false;
thread_local std::vector<int> deferred;
// Of this thread: it is about to look after timers and releases anyway.
thread_local bool handling = false;
// for which connection it calls
thread_local uint32_t actsFor = 0;

// Whether a descriptor is a socket whose other end has a name: one of a pair leads to a program that was started with it.
bool LeadsToServer(int fd) {
  sockaddr_un peer{};
  socklen_t length = sizeof peer;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) return false;
  return peer.sun_family != AF_UNIX || length > offsetof(sockaddr_un, sun_path);
}

int64_t Now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

}  // namespace

LibvirtLoop& LibvirtLoop::Instance() {
  static auto* const loop = new LibvirtLoop();  // never destroyed: threads of libvirt may call it until the very end
  return *loop;
}

LibvirtLoop::LibvirtLoop() : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (epoll_ < 0 || wake_ < 0) throw std::system_error(errno, std::generic_category(), "epoll_create1");
  epoll_event event{EPOLLIN, {.u64 = kWakeId}};
  epoll_ctl(epoll_, EPOLL_CTL_ADD, wake_, &event);
}

void LibvirtLoop::Wake() const {
  if (handling) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
}

void LibvirtLoop::Dispatch() {
  epoll_event events[kMostAtOnce];
  const int count = epoll_wait(epoll_, events, kMostAtOnce, 0);
  handling = true;
  for (int i = 0; i < count; i++) {
    if (events[i].data.u64 == kWakeId) {
      uint64_t seen;
      [[maybe_unused]] const ssize_t got = read(wake_, &seen, sizeof seen);
    } else {
      RunOne(static_cast<int>(events[i].data.u64), events[i].events);
    }
  }
  handling = false;
  RunDue();
  RunReleases();
}

void LibvirtLoop::RunOne(int id, uint32_t events) {
  std::unique_lock lock(mutex_);
  const auto found = watches_.find(id);
  if (found == watches_.end() || found->second.watched == 0) return;
  // what its opaque points to stays until RunReleases, on this same thread
  const Watch watch = found->second;
  lock.unlock();
  if (watch.onHandle != nullptr) {
    watch.onHandle(id, watch.given, FromEpoll(events), watch.opaque);
    return;
  }
  uint64_t expirations;
  if (read(watch.fd, &expirations, sizeof expirations) == sizeof expirations) RunTimer(id);
}

// Calls what is to be called by now, and sees to it that it is called again in time.
void LibvirtLoop::RunTimer(int id) {
  std::unique_lock lock(mutex_);
  auto found = watches_.find(id);
  if (found == watches_.end()) return;
  Watch& timer = found->second;
  const int64_t now = Now();
  if (timer.alarm <= now) timer.alarm = 0;
  if (timer.deadline > now && timer.alarm == 0) SetAlarm(timer);
  if (timer.deadline == 0 || timer.deadline > now) return;
  timer.deadline = 0;
  const auto [callback, opaque] = std::pair(timer.onTimeout, timer.opaque);
  lock.unlock();
  callback(id, opaque);
  lock.lock();
  found = watches_.find(id);
  if (found != watches_.end() && found->second.deadline == 0) Schedule(id, found->second, found->second.interval);
}

void LibvirtLoop::RunDue() {
  std::vector<int> due;
  {
    const std::lock_guard lock(mutex_);
    due.swap(due_);
  }
  for (const int id : due) RunTimer(id);
}

// Negative: never; 0: as soon as the loop comes by, again and again. One that is put off, as libvirt does at every message
// for its keep-alive, costs nothing: its alarm stays and finds that it is too early.
void LibvirtLoop::Schedule(int id, Watch& timer, int milliseconds) {
  timer.interval = milliseconds;
  timer.deadline = milliseconds < 0 ? 0 : Now() + milliseconds * kMillisecond;
  if (milliseconds == 0) {
    due_.push_back(id);
    Wake();
  } else if (milliseconds > 0 && (timer.alarm == 0 || timer.alarm > timer.deadline)) {
    SetAlarm(timer);
  }
}

void LibvirtLoop::SetAlarm(Watch& timer) {
  timer.alarm = timer.deadline;
  const itimerspec when{{}, {timer.alarm / kSecond, timer.alarm % kSecond}};
  timerfd_settime(timer.fd, TFD_TIMER_ABSTIME, &when, nullptr);
}

void LibvirtLoop::RunReleases() {
  std::vector<Release> releases;
  {
    const std::lock_guard lock(mutex_);
    releases.swap(releases_);
  }
  for (const auto& [release, opaque] : releases) release(opaque);
}

void LibvirtLoop::Abandon() {
  const std::lock_guard lock(mutex_);
  for (auto& [id, watch] : watches_) {
    if (watch.watched != 0) epoll_ctl(epoll_, EPOLL_CTL_DEL, watch.fd, nullptr);
    if (watch.ownsFd) close(watch.fd);
  }
  watches_.clear();
  releases_.clear();
}

bool LibvirtLoop::SetEvents(int id, Watch& watch, uint32_t events) {
  if (events == watch.watched) return true;  // libvirt says so after each message
  epoll_event event{events, {.u64 = static_cast<uint64_t>(id)}};
  if (events == 0) {
    epoll_ctl(epoll_, EPOLL_CTL_DEL, watch.fd, nullptr);
    watch.watched = 0;
    return true;
  }
  int result = epoll_ctl(epoll_, watch.watched != 0 ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, watch.fd, &event);
  if (result != 0 && errno == EEXIST) {  // one descriptor may be watched twice; epoll wants another number for that
    const int copy = fcntl(watch.fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return false;
    watch.fd = copy;
    watch.ownsFd = true;
    result = epoll_ctl(epoll_, EPOLL_CTL_ADD, copy, &event);
  }
  watch.watched = result == 0 ? events : 0;
  return result == 0;
}

int LibvirtLoop::Insert(Watch watch, uint32_t events) {
  const std::lock_guard lock(mutex_);
  const int id = next_++;
  watch.wanted = events;
  watch.lane = actsFor;
  if (!SetEvents(id, watch, events)) return -1;
  watches_.emplace(id, watch);
  return id;
}

int LibvirtLoop::Remove(int id) {
  const std::lock_guard lock(mutex_);
  const auto found = watches_.find(id);
  if (found == watches_.end()) return -1;
  Watch& watch = found->second;
  SetEvents(id, watch, 0);
  if (watch.ownsFd) close(watch.fd);
  if (watch.release != nullptr) {
    releases_.push_back({watch.release, watch.opaque});
    Wake();
  }
  watches_.erase(found);
  return 0;
}

int LibvirtLoop::AddHandle(int fd, int events, HandleCallback callback, void* opaque, FreeCallback release) {
  return Instance().Insert({fd, fd, false, 0, 0, callback, nullptr, opaque, release}, ToEpoll(events));
}

void LibvirtLoop::UpdateHandle(int watch, int events) {
  LibvirtLoop& self = Instance();
  const std::lock_guard lock(self.mutex_);
  const auto found = self.watches_.find(watch);
  if (found == self.watches_.end()) return;
  found->second.wanted = ToEpoll(events);
  if (defers && events != 0)
    deferred.push_back(watch);
  else
    self.SetEvents(watch, found->second, found->second.wanted);
}

void LibvirtLoop::Defer() { defers = true; }

std::vector<int> LibvirtLoop::TakeDeferred() { return std::exchange(deferred, {}); }

void LibvirtLoop::Settle(const std::vector<int>& watches) {
  if (watches.empty()) return;
  LibvirtLoop& self = Instance();
  const std::lock_guard lock(self.mutex_);
  for (const int watch : watches) {
    const auto found = self.watches_.find(watch);
    if (found != self.watches_.end()) self.SetEvents(watch, found->second, found->second.wanted);
  }
}

void LibvirtLoop::ActFor(uint32_t lane) { actsFor = lane; }

// libvirt closes a descriptor after it has removed it from the loop: what is here is open, and what it was.
bool LibvirtLoop::HangUp(uint32_t lane) {
  LibvirtLoop& self = Instance();
  const std::lock_guard lock(self.mutex_);
  bool any = false;
  for (const auto& [id, watch] : self.watches_)
    if (watch.lane == lane && watch.onHandle != nullptr && LeadsToServer(watch.given))
      any = shutdown(watch.given, SHUT_RDWR) == 0 || any;
  return any;
}

int LibvirtLoop::RemoveHandle(int watch) { return Instance().Remove(watch); }

int LibvirtLoop::AddTimeout(int milliseconds, TimeoutCallback callback, void* opaque, FreeCallback release) {
  const int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (fd < 0) return -1;
  const int id = Instance().Insert({fd, fd, true, 0, 0, nullptr, callback, opaque, release}, EPOLLIN);
  if (id < 0)
    close(fd);
  else
    UpdateTimeout(id, milliseconds);
  return id;
}

void LibvirtLoop::UpdateTimeout(int timer, int milliseconds) {
  LibvirtLoop& self = Instance();
  const std::lock_guard lock(self.mutex_);
  const auto found = self.watches_.find(timer);
  if (found != self.watches_.end() && found->second.onTimeout != nullptr)
    self.Schedule(timer, found->second, milliseconds);
}

int LibvirtLoop::RemoveTimeout(int timer) { return Instance().Remove(timer); }
