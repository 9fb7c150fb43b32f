#pragma once
#include <sys/epoll.h>
#include <uv.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

// libvirt's event loop (virEventRegisterImpl) on an epoll descriptor that an environment's own loop watches. The six
// functions may be called by any thread, at once and without waking anybody; what libvirt wants to have called is called by
// the environment's thread only. Lives as long as the process, since libvirt never lets go of it.
class LibvirtLoop {
 public:
  using HandleCallback = void (*)(int watch, int fd, int events, void* opaque);
  using TimeoutCallback = void (*)(int timer, void* opaque);
  using FreeCallback = void (*)(void* opaque);

  static LibvirtLoop& Instance();

  int descriptor() const { return epoll_; }

  // On the environment's thread: what is ready now.
  void Dispatch();
  // Everything known is forgotten and never called; nothing is freed either.
  void Abandon();

  // The calling thread from now on only notes which descriptors are wanted again, for Settle(): a call takes its
  // connection's away from the loop and gives it back at its end, in vain where another call follows.
  static void Defer();
  // What it has noted.
  static std::vector<int> TakeDeferred();
  static void Settle(const std::vector<int>& watches);

  // Descriptors that the calling thread adds from now on are of this lane.
  static void ActFor(uint32_t lane);
  // Sockets of a lane are shut down: whoever waits at one finds that the other side is gone. False: it has none but such to
  // programs of libvirt's own (ssh), whose end libvirt would wait for.
  static bool HangUp(uint32_t lane);

  static int AddHandle(int fd, int events, HandleCallback callback, void* opaque, FreeCallback release);
  static void UpdateHandle(int watch, int events);
  static int RemoveHandle(int watch);
  static int AddTimeout(int milliseconds, TimeoutCallback callback, void* opaque, FreeCallback release);
  static void UpdateTimeout(int timer, int milliseconds);
  static int RemoveTimeout(int timer);

 private:
  struct Watch {
    int given;  // the caller's descriptor
    int fd;     // that or a copy of it; a timer's own
    bool ownsFd;
    uint32_t watched;  // by epoll for these; what nobody wants to hear of is not there, since it would report hang-ups for ever
    uint32_t wanted;   // what it will be watched for, once whoever deferred that has settled
    HandleCallback onHandle;
    TimeoutCallback onTimeout;
    void* opaque;
    FreeCallback release;
    uint32_t lane = 0;
    // of a timer, in milliseconds and nanoseconds of the monotonic clock; 0: never
    int interval = -1;
    int64_t deadline = 0;  // when it is to be called
    int64_t alarm = 0;     // when its descriptor becomes readable: at the deadline, or too early after it was put off
  };
  struct Release {
    FreeCallback release;
    void* opaque;
  };

  LibvirtLoop();
  int Insert(Watch watch, uint32_t events);
  bool SetEvents(int id, Watch& watch, uint32_t events);
  int Remove(int id);
  void RunOne(int id, uint32_t events);
  void RunTimer(int id);
  void RunDue();
  void RunReleases();
  void Schedule(int id, Watch& timer, int milliseconds);
  static void SetAlarm(Watch& timer);
  void Wake() const;

  std::mutex mutex_;
  std::unordered_map<int, Watch> watches_;
  std::vector<Release> releases_;
  std::vector<int> due_;  // timers of 0 ms
  int next_ = 1;
  int epoll_ = -1;
  int wake_ = -1;
};
