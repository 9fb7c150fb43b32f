// Processes are watched through pidfds on the environment's own event loop. What libuv holds (Poll) outlives the
// JavaScript object until uv_close is through; when an environment ends, it waits for that (Watches).
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>
#include <unordered_set>

#include "addon.h"
#include "children.h"
#include "errors.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

class ProcessWatch;

struct Poll {
  uv_poll_t handle;
  int pidfd;
  ProcessWatch* owner;  // nullptr once closed
  std::shared_ptr<Watches> watches;
};

// All polls of one environment.
class Watches {
 public:
  std::unordered_set<Poll*> polls;
  napi_async_cleanup_hook_handle ending = nullptr;

  static void Ended(uv_handle_t* handle) {
    auto* poll = static_cast<Poll*>(handle->data);
    const std::shared_ptr<Watches> watches = poll->watches;
    close(poll->pidfd);
    watches->polls.erase(poll);
    delete poll;
    watches->FinishWhenEmpty();
  }

  void FinishWhenEmpty() {
    if (ending == nullptr || !polls.empty()) return;
    napi_remove_async_cleanup_hook(std::exchange(ending, nullptr));
  }
};

class ProcessWatch : public Napi::ObjectWrap<ProcessWatch> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "ProcessWatch",
                       {InstanceAccessor<&ProcessWatch::Pid>("pid"), InstanceMethod<&ProcessWatch::Kill>("kill"),
                        InstanceMethod<&ProcessWatch::Close>("close"), InstanceMethod<&ProcessWatch::KeepLoop>("ref"),
                        InstanceMethod<&ProcessWatch::ReleaseLoop>("unref")});
  }

  explicit ProcessWatch(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ProcessWatch>(info), context_(info.Env(), "ProcessWatch") {
    const Napi::Env env = info.Env();
    if (!info[0].IsNumber()) throw Napi::TypeError::New(env, "pid must be a number");
    if (!info[1].IsFunction()) throw Napi::TypeError::New(env, "onExit must be a function");
    pid_ = info[0].As<Napi::Number>().Int32Value();
    onExit_ = Napi::Persistent(info[1].As<Napi::Function>());
    Start(env);
  }

  void Detach() {
    if (poll_ == nullptr) return;
    poll_->owner = nullptr;
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_->handle), Watches::Ended);
    poll_ = nullptr;
    onExit_.Reset();
    Unref();  // may be collected from now on
  }

 private:
  void Start(Napi::Env env) {
    const auto& watches = env.GetInstanceData<AddonState>()->watches;
    uv_loop_t* loop = nullptr;
    if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Napi::Error::New(env, "no event loop here");
    const long pidfd = syscall(SYS_pidfd_open, pid_, 0);
    if (pidfd < 0) ThrowErrno(env, errno, "pidfd_open");
    auto* poll = new Poll{{}, static_cast<int>(pidfd), this, watches};
    const int failed = uv_poll_init(loop, &poll->handle, poll->pidfd);
    if (failed != 0) {
      close(poll->pidfd);
      delete poll;
      ThrowErrno(env, -failed, "uv_poll_init");
    }
    poll->handle.data = poll;
    watches->polls.insert(poll);
    poll_ = poll;
    Ref();
    const int unstarted = uv_poll_start(&poll->handle, UV_READABLE, Readable);
    if (unstarted != 0) {
      Detach();
      ThrowErrno(env, -unstarted, "uv_poll_start");
    }
  }

  static void Readable(uv_poll_t* handle, int, int) {
    auto* self = static_cast<Poll*>(handle->data)->owner;
    if (self != nullptr) self->Exited();
  }

  // How the process ended; false when it is not our child. Reaps it when spawn() started it; Node reaps its own.
  bool ReadStatus(siginfo_t& status) const {
    const bool reap = IsSpawnedHere(pid_);
    const int options = WEXITED | WNOHANG | (reap ? 0 : WNOWAIT);
    int result;
    do {
      result = waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(poll_->pidfd), &status, options);
    } while (result != 0 && errno == EINTR);
    if (result != 0 || status.si_pid != pid_) return false;
    if (reap) ForgetChild(pid_);
    return true;
  }

  void Exited() {
    const napi_env env = Env();
    const Napi::HandleScope scope(env);
    siginfo_t status{};
    const bool ours = ReadStatus(status);
    const bool returned = ours && status.si_code == CLD_EXITED;
    exited_ = true;
    const napi_value callback = onExit_.Value();
    const napi_value self = Value();
    Detach();
    Tell(env, self, callback, returned ? &status.si_status : nullptr, ours && !returned ? &status.si_status : nullptr);
  }

  // In bare Node-API: while a worker is being terminated every call may fail, and the C++ wrapper takes that as fatal.
  void Tell(napi_env env, napi_value self, napi_value callback, const int* code, const int* signal) {
    napi_value exit;
    if (napi_create_object(env, &exit) != napi_ok) return;
    if (!SetNumberOrNull(env, exit, "code", code) || !SetNumberOrNull(env, exit, "signal", signal)) return;
    if (napi_make_callback(env, context_, self, callback, 1, &exit, nullptr) != napi_pending_exception) return;
    napi_value thrown;
    if (napi_get_and_clear_last_exception(env, &thrown) == napi_ok) napi_fatal_exception(env, thrown);
  }

  static bool SetNumberOrNull(napi_env env, napi_value object, const char* name, const int* number) {
    napi_value value;
    const napi_status made = number == nullptr ? napi_get_null(env, &value) : napi_create_int32(env, *number, &value);
    return made == napi_ok && napi_set_named_property(env, object, name, value) == napi_ok;
  }

  Napi::Value Pid(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), pid_); }

  Napi::Value Kill(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    if (exited_) return Napi::Boolean::New(env, false);
    if (poll_ == nullptr) ThrowErrno(env, EBADF, "pidfd_send_signal");
    if (!info[0].IsNumber()) throw Napi::TypeError::New(env, "signal must be a number");
    const int signal = info[0].As<Napi::Number>().Int32Value();
    if (syscall(SYS_pidfd_send_signal, poll_->pidfd, signal, nullptr, 0) == 0) return Napi::Boolean::New(env, true);
    if (errno == ESRCH) return Napi::Boolean::New(env, false);
    ThrowErrno(env, errno, "pidfd_send_signal");
  }

  void Close(const Napi::CallbackInfo&) { Detach(); }
  void KeepLoop(const Napi::CallbackInfo&) {
    if (poll_ != nullptr) uv_ref(reinterpret_cast<uv_handle_t*>(&poll_->handle));
  }
  void ReleaseLoop(const Napi::CallbackInfo&) {
    if (poll_ != nullptr) uv_unref(reinterpret_cast<uv_handle_t*>(&poll_->handle));
  }

  pid_t pid_ = 0;
  bool exited_ = false;
  Poll* poll_ = nullptr;
  Napi::FunctionReference onExit_;
  Napi::AsyncContext context_;
};

namespace {

// The environment ends (a worker was terminated, say): its loop may only go when none of our handles is left on it.
void EnvironmentEnds(napi_async_cleanup_hook_handle hook, void* data) {
  const std::shared_ptr<Watches> watches = *static_cast<std::shared_ptr<Watches>*>(data);
  delete static_cast<std::shared_ptr<Watches>*>(data);
  watches->ending = hook;
  for (Poll* poll : watches->polls) {
    if (poll->owner == nullptr) continue;  // closing already
    poll->owner->Detach();
  }
  watches->FinishWhenEmpty();
}

Napi::Value WatchProcess(const Napi::CallbackInfo& info) {
  return info.Env().GetInstanceData<AddonState>()->processWatch.New({info[0], info[1]});
}

}  // namespace

void InitProcessWatch(Napi::Env env, Napi::Object exports) {
  auto* state = env.GetInstanceData<AddonState>();
  state->watches = std::make_shared<Watches>();
  state->processWatch = Napi::Persistent(ProcessWatch::Define(env));
  auto* data = new std::shared_ptr<Watches>(state->watches);
  if (napi_add_async_cleanup_hook(env, EnvironmentEnds, data, nullptr) != napi_ok) {
    delete data;
    throw Napi::Error::New(env, "can't register the clean-up of process watches");
  }
  exports.Set("watchProcess", Napi::Function::New(env, WatchProcess, "watchProcess"));
}
