#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

// One call of a C function whose arguments are integers and pointers, on whichever thread is free.
struct ForeignCall {
  static constexpr size_t kMostArguments = 9;

  double id;
  uint32_t lane;  // 0: of its own
  uintptr_t function;
  bool answersPointer;
  uintptr_t arguments[kMostArguments] = {};
  // memory that the arguments point to: of the call, so that it outlives whoever asked
  std::deque<std::string> memory;
  // what of it goes back into the owner's memory, by the owner
  struct Output {
    void* into;
    const std::string* from;
  };
  std::vector<Output> outputs;

  int64_t result = 0;
  uintptr_t error = 0;  // where the function failed
};

// What a thread of libvirt tells or asks the environment.
struct Notice {
  bool isQuestion;
  double token;
  uintptr_t opaque;
  uintptr_t data;
  int64_t number;
};

// Calls C functions on threads of their own, which nobody ever joins: a call that hangs keeps neither the event loop, nor
// libuv's threads, nor the end of the process waiting. An error is fetched by the thread that failed, where libvirt keeps it.
class CallThreads : public std::enable_shared_from_this<CallThreads> {
 public:
  // `saveError` is virSaveLastError.
  explicit CallThreads(uintptr_t saveError);
  ~CallThreads();
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

  // Readable when there is something to take.
  int descriptor() const { return wake_; }
  // Before it is taken.
  void Woken() const;

  // Of one lane a few run at a time; the others wait for them, and are gone on with by the same threads.
  void Submit(std::unique_ptr<ForeignCall> call);
  // One more of a lane runs, if one waits.
  void Stretch(uint32_t lane);
  std::vector<std::unique_ptr<ForeignCall>> TakeDone();
  std::vector<Notice> TakeNotices();
  // For the owner, once it has done what followed from what it took: connections that have no call under way are the loop's.
  void SettleQuiet();
  void Tell(uintptr_t opaque, int64_t number);
  // Waits for Answer(); -1 once stopped.
  int Ask(uintptr_t opaque, uintptr_t data, int64_t number);
  void Answer(double token, int answer);
  // The environment is gone: no more waking, calls in flight end unheard.
  void Stop();

 private:
  struct Question {
    double token;
    bool answered = false;
    int answer = -1;
  };

  struct Sleeper {
    std::condition_variable wake;
    bool woken = false;
  };

  struct Lane {
    size_t running = 0;
    std::deque<std::unique_ptr<ForeignCall>> waiting;
    std::vector<int> watches;  // of the loop, which its calls have taken away and do not need any more
  };

  void Run();
  void Start(std::unique_lock<std::mutex>& lock, std::unique_ptr<ForeignCall> call);
  // A call of the lane has ended: the one that the same thread goes on with, if any.
  std::unique_ptr<ForeignCall> NextOf(uint32_t lane);
  // With the lock held at both ends; false: no call came, and the thread is not needed.
  bool WaitForCall(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Sleeper>& self);
  void Perform(ForeignCall& call) const;
  void WakeOwner() const;

  const uintptr_t saveError_;
  const int wake_;
  std::mutex mutex_;
  std::condition_variable answers_;
  std::deque<std::unique_ptr<ForeignCall>> waiting_;
  std::unordered_map<uint32_t, Lane> lanes_;
  std::vector<std::unique_ptr<ForeignCall>> done_;
  std::vector<Notice> notices_;
  std::vector<Question*> questions_;
  size_t threads_ = 0;
  // whoever fell asleep last is woken first: the others are still cold, and end when they are not needed
  std::vector<std::shared_ptr<Sleeper>> idle_;
  double nextToken_ = 1;
  bool stopped_ = false;
};
