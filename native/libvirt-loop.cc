#include "libvirt-loop.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace {

// virEventHandleType
constexpr int kReadable = 1, kWritable = 2, kError = 4, kHangup = 8;
constexpr int kWakeId = 0;
constexpr int kMostAtOnce = 64;

uint32_t ToEpoll(int events) {
  return (events & kReadable ? EPOLLIN : 0U) | (events & kWritable ? EPOLLOUT : 0U) |
         (events & kError ? EPOLLERR : 0U) | (events & kHangup ? EPOLLHUP : 0U);
}

int FromEpoll(uint32_t events) {
  return (events & EPOLLIN ? kReadable : 0) | (events & EPOLLOUT ? kWritable : 0) | (events & EPOLLERR ? kError : 0) |
         (events & EPOLLHUP ? kHangup : 0);
}

// Negative: never; 0: as soon as the loop comes by, again and again.
void SetTimer(int fd, int milliseconds) {
  itimerspec when{};
  if (milliseconds == 0) when.it_value.tv_nsec = 1;
  if (milliseconds > 0) when.it_value = {milliseconds / 1000, (milliseconds % 1000) * 1'000'000L};
  when.it_interval = when.it_value;
  timerfd_settime(fd, 0, &when, nullptr);
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
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
}

void LibvirtLoop::Dispatch() {
  epoll_event events[kMostAtOnce];
  const int count = epoll_wait(epoll_, events, kMostAtOnce, 0);
  for (int i = 0; i < count; i++) {
    if (events[i].data.u64 == kWakeId) {
      uint64_t seen;
      [[maybe_unused]] const ssize_t got = read(wake_, &seen, sizeof seen);
    } else {
      RunOne(static_cast<int>(events[i].data.u64), events[i].events);
    }
  }
  RunReleases();
}

void LibvirtLoop::RunOne(int id, uint32_t events) {
  std::unique_lock lock(mutex_);
  const auto found = watches_.find(id);
  if (found == watches_.end() || !found->second.added) return;
  // what its opaque points to stays until RunReleases, on this same thread
  const Watch watch = found->second;
  lock.unlock();
  if (watch.onHandle != nullptr) {
    watch.onHandle(id, watch.given, FromEpoll(events), watch.opaque);
    return;
  }
  uint64_t expirations;
  if (read(watch.fd, &expirations, sizeof expirations) == sizeof expirations) watch.onTimeout(id, watch.opaque);
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
    if (watch.added) epoll_ctl(epoll_, EPOLL_CTL_DEL, watch.fd, nullptr);
    if (watch.ownsFd) close(watch.fd);
  }
  watches_.clear();
  releases_.clear();
}

bool LibvirtLoop::SetEvents(int id, Watch& watch, uint32_t events) {
  epoll_event event{events, {.u64 = static_cast<uint64_t>(id)}};
  if (events == 0) {
    if (watch.added) epoll_ctl(epoll_, EPOLL_CTL_DEL, watch.fd, nullptr);
    watch.added = false;
    return true;
  }
  int result = epoll_ctl(epoll_, watch.added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, watch.fd, &event);
  if (result != 0 && errno == EEXIST) {  // one descriptor may be watched twice; epoll wants another number for that
    const int copy = fcntl(watch.fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return false;
    watch.fd = copy;
    watch.ownsFd = true;
    result = epoll_ctl(epoll_, EPOLL_CTL_ADD, copy, &event);
  }
  watch.added = result == 0;
  return watch.added;
}

int LibvirtLoop::Insert(Watch watch, uint32_t events) {
  const std::lock_guard lock(mutex_);
  const int id = next_++;
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
  return Instance().Insert({fd, fd, false, false, callback, nullptr, opaque, release}, ToEpoll(events));
}

void LibvirtLoop::UpdateHandle(int watch, int events) {
  LibvirtLoop& self = Instance();
  const std::lock_guard lock(self.mutex_);
  const auto found = self.watches_.find(watch);
  if (found != self.watches_.end()) self.SetEvents(watch, found->second, ToEpoll(events));
}

int LibvirtLoop::RemoveHandle(int watch) { return Instance().Remove(watch); }

int LibvirtLoop::AddTimeout(int milliseconds, TimeoutCallback callback, void* opaque, FreeCallback release) {
  const int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (fd < 0) return -1;
  SetTimer(fd, milliseconds);
  const int id = Instance().Insert({fd, fd, true, false, nullptr, callback, opaque, release}, EPOLLIN);
  if (id < 0) close(fd);
  return id;
}

void LibvirtLoop::UpdateTimeout(int timer, int milliseconds) {
  LibvirtLoop& self = Instance();
  const std::lock_guard lock(self.mutex_);
  const auto found = self.watches_.find(timer);
  if (found != self.watches_.end() && found->second.onTimeout != nullptr) SetTimer(found->second.fd, milliseconds);
}

int LibvirtLoop::RemoveTimeout(int timer) { return Instance().Remove(timer); }
