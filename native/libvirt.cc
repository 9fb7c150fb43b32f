// libvirt in one environment of this process: its event loop, threads for its calls, and functions that it can call back.
// Everything about single functions of libvirt is JavaScript.
#include <dlfcn.h>
#include <napi.h>
#include <uv.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "addon.h"
#include "errors.h"
#include "libvirt-calls.h"
#include "libvirt-loop.h"
#include "libvirt-stats.h"

namespace {

std::mutex currentMutex;
std::shared_ptr<CallThreads> current;  // of the environment that has libvirt

std::shared_ptr<CallThreads> Current() {
  const std::lock_guard lock(currentMutex);
  return current;
}

// virConnectAuthCallbackPtr
int Authenticate(void* credentials, unsigned int count, void* opaque) {
  const auto threads = Current();
  if (threads == nullptr) return -1;
  return threads->Ask(reinterpret_cast<uintptr_t>(opaque), reinterpret_cast<uintptr_t>(credentials), count);
}

// virConnectCloseFunc
void Closed(void*, int reason, void* opaque) {
  const auto threads = Current();
  if (threads != nullptr) threads->Tell(reinterpret_cast<uintptr_t>(opaque), reason);
}

// virErrorFunc: errors are fetched by whoever made the call; libvirt would print them
void Ignore(void*, void*) {}

template <typename F>
Napi::Value Address(Napi::Env env, F* function) {
  return Napi::BigInt::New(env, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(function)));
}

uintptr_t AddressOf(const Napi::Value& value) {
  if (!value.IsBigInt()) throw Napi::TypeError::New(value.Env(), "an address must be a bigint");
  bool lossless;
  return value.As<Napi::BigInt>().Uint64Value(&lossless);
}

struct Handles {
  uv_poll_t loop;
  uv_poll_t calls;
  int open = 2;
  class Libvirt* owner;
  napi_async_cleanup_hook_handle ending = nullptr;
};

class Libvirt {
 public:
  Libvirt(Napi::Env env, uintptr_t saveError, Napi::Function onWake)
      : env_(env), context_(env, "libvirt"), onWake_(Napi::Persistent(onWake)), handles_(new Handles{}) {
    uv_loop_t* loop = nullptr;
    if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Napi::Error::New(env, "no event loop here");
    threads_ = std::make_shared<CallThreads>(saveError);
    uv_poll_init(loop, &handles_->loop, LibvirtLoop::Instance().descriptor());
    uv_poll_init(loop, &handles_->calls, threads_->descriptor());
    handles_->calls.data = handles_->loop.data = handles_;
    handles_->owner = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&handles_->calls));
    uv_unref(reinterpret_cast<uv_handle_t*>(&handles_->loop));
    uv_poll_start(&handles_->loop, UV_READABLE, [](uv_poll_t* poll, int, int) {
      static_cast<Handles*>(poll->data)->owner->Dispatch();
    });
    uv_poll_start(&handles_->calls, UV_READABLE, [](uv_poll_t* poll, int, int) {
      static_cast<Handles*>(poll->data)->owner->Woken();
    });
    const std::lock_guard lock(currentMutex);
    current = threads_;
  }

  CallThreads& threads() const { return *threads_; }

  void Submit(std::unique_ptr<ForeignCall> call) {
    if (inFlight_++ == 0) uv_ref(reinterpret_cast<uv_handle_t*>(&handles_->calls));
    threads_->Submit(std::move(call));
  }

  void End(napi_async_cleanup_hook_handle hook) {
    {
      const std::lock_guard lock(currentMutex);
      current = nullptr;
    }
    threads_->Stop();
    LibvirtLoop::Instance().Abandon();
    handles_->ending = hook;
    for (auto* handle : {reinterpret_cast<uv_handle_t*>(&handles_->loop), reinterpret_cast<uv_handle_t*>(&handles_->calls)})
      uv_close(handle, [](uv_handle_t* closed) {
        auto* handles = static_cast<Handles*>(closed->data);
        if (--handles->open > 0) return;
        napi_remove_async_cleanup_hook(handles->ending);
        delete handles;
      });
  }

 private:
  void Dispatch() {
    const Napi::HandleScope scope(env_);
    const Napi::CallbackScope callbacks(env_, context_);
    LibvirtLoop::Instance().Dispatch();
  }

  void Woken() {
    const Napi::HandleScope scope(env_);
    threads_->Woken();
    const auto calls = threads_->TakeDone();
    const auto told = threads_->TakeNotices();
    if (calls.empty() && told.empty()) return;  // they were taken when another was
    std::vector<napi_value> items;
    for (const auto& call : calls) {
      for (const auto& output : call->outputs) std::memcpy(output.into, output.from->data(), output.from->size());
      if (--inFlight_ == 0) uv_unref(reinterpret_cast<uv_handle_t*>(&handles_->calls));
      items.push_back(Napi::Number::New(env_, call->id));
      items.push_back(call->answersPointer ? Napi::Value(Napi::BigInt::New(env_, static_cast<uint64_t>(call->result)))
                                           : Napi::Value(Napi::Number::New(env_, static_cast<double>(call->result))));
      items.push_back(Napi::BigInt::New(env_, static_cast<uint64_t>(call->error)));
    }
    Napi::Array done = Napi::Array::New(env_, items.size());
    for (uint32_t i = 0; i < items.size(); i++) done.Set(i, items[i]);
    Napi::Array notices = Napi::Array::New(env_);
    uint32_t count = 0;
    for (const Notice& notice : told) notices.Set(count++, ToObject(notice));
    napi_value arguments[] = {done, notices};
    napi_value thrown;
    // in bare Node-API: a worker that is being terminated makes every call fail
    if (napi_make_callback(env_, context_, env_.Global(), onWake_.Value(), 2, arguments, nullptr) == napi_pending_exception &&
        napi_get_and_clear_last_exception(env_, &thrown) == napi_ok)
      napi_fatal_exception(env_, thrown);
    threads_->SettleQuiet();
  }

  Napi::Object ToObject(const Notice& notice) const {
    Napi::Object object = Napi::Object::New(env_);
    object.Set("isQuestion", notice.isQuestion);
    object.Set("token", notice.token);
    object.Set("opaque", static_cast<double>(notice.opaque));
    object.Set("data", Napi::BigInt::New(env_, static_cast<uint64_t>(notice.data)));
    object.Set("number", static_cast<double>(notice.number));
    return object;
  }

  Napi::Env env_;
  Napi::AsyncContext context_;
  Napi::FunctionReference onWake_;
  std::shared_ptr<CallThreads> threads_;
  size_t inFlight_ = 0;
  Handles* handles_;
};

Libvirt* TheLibvirt(const Napi::CallbackInfo& info) { return static_cast<Libvirt*>(info.Data()); }

// call(id, lane, function, answersPointer, args): each argument a number, a bigint, a string, null, or bytes that come back changed,
// which the caller keeps until the call is answered.
void Call(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto call = std::make_unique<ForeignCall>();
  call->id = info[0].As<Napi::Number>().DoubleValue();
  call->lane = info[1].As<Napi::Number>().Uint32Value();
  call->function = AddressOf(info[2]);
  call->answersPointer = info[3].ToBoolean();
  const Napi::Array args = info[4].As<Napi::Array>();
  if (args.Length() > ForeignCall::kMostArguments) throw Napi::RangeError::New(env, "too many arguments");
  for (uint32_t i = 0; i < args.Length(); i++) {
    const Napi::Value arg = args.Get(i);
    uintptr_t& slot = call->arguments[i];
    if (arg.IsNumber()) {
      slot = static_cast<uintptr_t>(arg.As<Napi::Number>().Int64Value());
    } else if (arg.IsBigInt()) {
      slot = AddressOf(arg);
    } else if (arg.IsString()) {
      slot = reinterpret_cast<uintptr_t>(call->memory.emplace_back(arg.As<Napi::String>().Utf8Value()).c_str());
    } else if (arg.IsTypedArray()) {
      Napi::Uint8Array bytes = arg.As<Napi::Uint8Array>();
      std::string& copy = call->memory.emplace_back(reinterpret_cast<const char*>(bytes.Data()), bytes.ByteLength());
      call->outputs.push_back({bytes.Data(), &copy});
      slot = reinterpret_cast<uintptr_t>(copy.data());
    } else if (!arg.IsNull()) {
      throw Napi::TypeError::New(env, "an argument must be a number, a bigint, a string, bytes or null");
    }
  }
  TheLibvirt(info)->Submit(std::move(call));
}

void Stretch(const Napi::CallbackInfo& info) {
  TheLibvirt(info)->threads().Stretch(info[0].As<Napi::Number>().Uint32Value());
}

Napi::Value HangUp(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), LibvirtLoop::HangUp(info[0].As<Napi::Number>().Uint32Value()));
}

void Answer(const Napi::CallbackInfo& info) {
  TheLibvirt(info)->threads().Answer(info[0].As<Napi::Number>().DoubleValue(), info[1].As<Napi::Number>().Int32Value());
}

// This file stays loaded when the environment that loaded it ends: threads run its code, and libvirt knows its functions.
void StayLoaded() {
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(Closed), &self) != 0) dlopen(self.dli_fname, RTLD_NOW | RTLD_NODELETE);
}

bool hosted = false;

// hostLibvirt(saveError, onWake): once in a process, by the one environment that has libvirt
Napi::Value HostLibvirt(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[1].IsFunction()) throw Napi::TypeError::New(env, "onWake must be a function");
  if (Current() != nullptr) ThrowErrno(env, EBUSY, "hostLibvirt");
  StayLoaded();
  auto* libvirt = new Libvirt(env, AddressOf(info[0]), info[1].As<Napi::Function>());
  napi_add_async_cleanup_hook(
      env,
      [](napi_async_cleanup_hook_handle hook, void* data) {
        auto* ended = static_cast<Libvirt*>(data);
        ended->End(hook);
        delete ended;
      },
      libvirt, nullptr);
  Napi::Object host = Napi::Object::New(env);
  host.Set("call", Napi::Function::New(env, Call, "call", libvirt));
  host.Set("stretch", Napi::Function::New(env, Stretch, "stretch", libvirt));
  host.Set("hangUp", Napi::Function::New(env, HangUp, "hangUp", libvirt));
  host.Set("answer", Napi::Function::New(env, Answer, "answer", libvirt));
  Napi::Object functions = Napi::Object::New(env);
  functions.Set("addHandle", Address(env, LibvirtLoop::AddHandle));
  functions.Set("updateHandle", Address(env, LibvirtLoop::UpdateHandle));
  functions.Set("removeHandle", Address(env, LibvirtLoop::RemoveHandle));
  functions.Set("addTimeout", Address(env, LibvirtLoop::AddTimeout));
  functions.Set("updateTimeout", Address(env, LibvirtLoop::UpdateTimeout));
  functions.Set("removeTimeout", Address(env, LibvirtLoop::RemoveTimeout));
  functions.Set("authenticate", Address(env, Authenticate));
  functions.Set("closed", Address(env, Closed));
  functions.Set("ignore", Address(env, Ignore));
  functions.Set("domainNumbers", Address(env, DomainNumbers));
  host.Set("functions", functions);
  host.Set("isFirst", !std::exchange(hosted, true));
  return host;
}

}  // namespace

void InitLibvirt(Napi::Env env, Napi::Object exports) {
  exports.Set("hostLibvirt", Napi::Function::New(env, HostLibvirt, "hostLibvirt"));
}
