#include "libvirt-calls.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <iterator>
#include <system_error>
#include <thread>
#include <utility>

#include "libvirt-loop.h"

namespace {

constexpr size_t kMostThreads = 128;
// of one lane at once: more make no server answer sooner, and threads in each other's way
constexpr size_t kMostOfLane = 8;
constexpr auto kIdle = std::chrono::seconds(5);

using Function = uintptr_t (*)(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,
                               uintptr_t);

}  // namespace

CallThreads::CallThreads(uintptr_t saveError) : saveError_(saveError), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

CallThreads::~CallThreads() { close(wake_); }

void CallThreads::Submit(std::unique_ptr<ForeignCall> call) {
  std::unique_lock lock(mutex_);
  Lane& lane = lanes_[call->lane];
  if (call->lane != 0 && lane.running >= kMostOfLane) {
    lane.waiting.push_back(std::move(call));
    return;
  }
  lane.running++;
  Start(lock, std::move(call));
}

void CallThreads::Stretch(uint32_t number) {
  std::unique_lock lock(mutex_);
  const auto found = lanes_.find(number);
  if (found == lanes_.end() || found->second.waiting.empty()) return;
  auto call = std::move(found->second.waiting.front());
  found->second.waiting.pop_front();
  found->second.running++;
  Start(lock, std::move(call));
}

std::unique_ptr<ForeignCall> CallThreads::NextOf(uint32_t number) {
  Lane& lane = lanes_[number];
  for (const int watch : LibvirtLoop::TakeDeferred()) lane.watches.push_back(watch);
  if (lane.waiting.empty() || lane.running > kMostOfLane) {
    lane.running--;
    return nullptr;
  }
  auto next = std::move(lane.waiting.front());
  lane.waiting.pop_front();
  return next;
}

void CallThreads::SettleQuiet() {
  std::vector<int> watches;
  {
    const std::lock_guard lock(mutex_);
    for (auto at = lanes_.begin(); at != lanes_.end();) {
      auto& [number, lane] = *at;
      const bool quiet = lane.running == 0 && lane.waiting.empty();
      // calls of their own have nothing to do with each other
      if (quiet || number == 0) watches.insert(watches.end(), lane.watches.begin(), lane.watches.end());
      if (number == 0) lane.watches.clear();
      at = quiet ? lanes_.erase(at) : std::next(at);
    }
  }
  LibvirtLoop::Settle(watches);
}

void CallThreads::Start(std::unique_lock<std::mutex>& lock, std::unique_ptr<ForeignCall> call) {
  waiting_.push_back(std::move(call));
  if (!idle_.empty()) {
    const auto sleeper = idle_.back();
    idle_.pop_back();
    sleeper->woken = true;
    lock.unlock();
    sleeper->wake.notify_one();
    return;
  }
  if (threads_ == kMostThreads) return;
  threads_++;
  lock.unlock();
  try {
    std::thread([self = shared_from_this()] { self->Run(); }).detach();
  } catch (const std::system_error&) {
    lock.lock();
    threads_--;
    if (threads_ == 0) throw;  // nobody will ever take it
  }
}

void CallThreads::Run() {
  LibvirtLoop::Defer();
  const auto self = std::make_shared<Sleeper>();
  std::unique_lock lock(mutex_);
  while (WaitForCall(lock, self)) {
    auto call = std::move(waiting_.front());
    waiting_.pop_front();
    while (call != nullptr) {
      lock.unlock();
      LibvirtLoop::ActFor(call->lane);
      Perform(*call);
      lock.lock();
      auto next = NextOf(call->lane);
      done_.push_back(std::move(call));
      call = std::move(next);
      if (done_.size() > 1) continue;
      // not with the lock held: the owner would wake up only to wait for it
      lock.unlock();
      WakeOwner();
      lock.lock();
    }
  }
  threads_--;
}

bool CallThreads::WaitForCall(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Sleeper>& self) {
  while (waiting_.empty() && !stopped_) {
    self->woken = false;
    idle_.push_back(self);
    self->wake.wait_for(lock, kIdle, [&] { return self->woken || stopped_; });
    if (self->woken) continue;
    std::erase(idle_, self);
    return !waiting_.empty();
  }
  return !waiting_.empty();
}

// The calling conventions of 64-bit Linux pass integers and pointers alike, and surplus arguments do no harm.
void CallThreads::Perform(ForeignCall& call) const {
  const auto& a = call.arguments;
  const uintptr_t raw = reinterpret_cast<Function>(call.function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
  call.result = call.answersPointer ? static_cast<int64_t>(raw) : static_cast<int32_t>(raw);
  const bool failed = call.answersPointer ? raw == 0 : call.result < 0;
  if (failed) call.error = reinterpret_cast<uintptr_t (*)()>(saveError_)();
}

void CallThreads::Woken() const {
  uint64_t times;
  [[maybe_unused]] const ssize_t got = read(wake_, &times, sizeof times);
}

std::vector<std::unique_ptr<ForeignCall>> CallThreads::TakeDone() {
  const std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}

std::vector<Notice> CallThreads::TakeNotices() {
  const std::lock_guard lock(mutex_);
  return std::exchange(notices_, {});
}

void CallThreads::Tell(uintptr_t opaque, int64_t number) {
  const std::lock_guard lock(mutex_);
  if (stopped_) return;
  notices_.push_back({false, 0, opaque, 0, number});
  WakeOwner();
}

int CallThreads::Ask(uintptr_t opaque, uintptr_t data, int64_t number) {
  std::unique_lock lock(mutex_);
  if (stopped_) return -1;
  Question question{nextToken_++};
  questions_.push_back(&question);
  notices_.push_back({true, question.token, opaque, data, number});
  WakeOwner();
  answers_.wait(lock, [&] { return question.answered || stopped_; });
  std::erase(questions_, &question);
  return question.answer;
}

void CallThreads::Answer(double token, int answer) {
  const std::lock_guard lock(mutex_);
  for (Question* question : questions_) {
    if (question->token != token) continue;
    question->answer = answer;
    question->answered = true;
  }
  answers_.notify_all();
}

void CallThreads::Stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  waiting_.clear();
  for (auto& [number, lane] : lanes_) lane.waiting.clear();
  for (const auto& sleeper : idle_) sleeper->wake.notify_one();
  answers_.notify_all();
}

void CallThreads::WakeOwner() const {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
}
