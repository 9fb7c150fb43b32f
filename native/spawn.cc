#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "addon.h"
#include "children.h"
#include "errors.h"
#include "spawn-child.h"

namespace {

constexpr size_t kStackSize = 64 * 1024;

// The strings that a plan's argv and envp point into.
struct Strings {
  std::vector<std::string> args;
  std::vector<std::string> env;
};

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

uint32_t Id(const Napi::Value& value, const char* what) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  // (uint32_t)-1 means "leave as it is" to the kernel
  if (!(number >= 0 && number < UINT_MAX) || number != static_cast<uint32_t>(number)) {
    throw Napi::RangeError::New(value.Env(), std::string(what) + " must be a whole number from 0 to 4294967294");
  }
  return static_cast<uint32_t>(number);
}

void ReadFds(const Napi::Object& options, SpawnPlan& plan) {
  const Napi::Env env = options.Env();
  const Napi::Value list = options.Get("fds");
  if (!list.IsArray()) throw Napi::TypeError::New(env, "fds must be an array");
  const auto array = list.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {
    const auto entry = Napi::Value(array.Get(i)).As<Napi::Object>();
    plan.fds.push_back({Descriptor(entry.Get("source")), Descriptor(entry.Get("target"))});
  }
  std::sort(plan.fds.begin(), plan.fds.end(), [](const auto& a, const auto& b) { return a.target < b.target; });
  for (size_t i = 0; i < plan.fds.size(); i++) {
    if (i > 0 && plan.fds[i].target == plan.fds[i - 1].target) throw Napi::TypeError::New(env, "fds has a target twice");
  }
  for (int standard = 0; standard < 3; standard++) {
    if (static_cast<size_t>(standard) >= plan.fds.size() || plan.fds[static_cast<size_t>(standard)].target != standard) {
      throw Napi::TypeError::New(env, "fds must have the targets 0, 1 and 2");
    }
  }
  plan.moved.assign(plan.fds.size(), -1);
}

void ReadIdentity(const Napi::Object& options, SpawnPlan& plan) {
  const Napi::Value uid = options.Get("uid");
  const Napi::Value gid = options.Get("gid");
  const Napi::Value groups = options.Get("groups");
  plan.setUid = !uid.IsUndefined();
  if (plan.setUid) plan.uid = Id(uid, "uid");
  plan.setGid = !gid.IsUndefined();
  if (plan.setGid) plan.gid = Id(gid, "gid");
  plan.setGroups = plan.setUid || !groups.IsUndefined();
  if (groups.IsUndefined()) return;
  if (!groups.IsArray()) throw Napi::TypeError::New(options.Env(), "groups must be an array");
  const auto array = groups.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) plan.groups.push_back(Id(array.Get(i), "group"));
}

void ReadStrings(const Napi::Object& options, SpawnPlan& plan, Strings& strings) {
  plan.file = SystemString(options.Get("file"), "file");
  if (plan.file.empty() || plan.file[0] != '/') throw Napi::TypeError::New(options.Env(), "file must be an absolute path");
  const Napi::Value args = options.Get("args");
  if (!args.IsArray() || args.As<Napi::Array>().Length() == 0) {
    throw Napi::TypeError::New(options.Env(), "args must be an array with argv[0]");
  }
  const auto array = args.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) strings.args.push_back(SystemString(array.Get(i), "argument"));
  const Napi::Value env = options.Get("env");
  if (!env.IsObject()) throw Napi::TypeError::New(options.Env(), "env must be an object");
  const Napi::Array names = env.As<Napi::Object>().GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); i++) {
    const std::string name = SystemString(names.Get(i), "name of an environment variable");
    strings.env.push_back(name + "=" + SystemString(env.As<Napi::Object>().Get(name), "environment variable"));
  }
  plan.argv = Pointers(strings.args);
  plan.envp = Pointers(strings.env);
}

std::string OptionalString(const Napi::Object& options, const char* name) {
  const Napi::Value value = options.Get(name);
  return value.IsUndefined() ? std::string() : SystemString(value, name);
}

void ReadRest(const Napi::Object& options, SpawnPlan& plan) {
  plan.cwd = OptionalString(options, "cwd");
  plan.selinuxLabel = OptionalString(options, "selinuxLabel");
  const std::string profile = OptionalString(options, "apparmorProfile");
  if (!profile.empty()) plan.apparmorCommand = "exec " + profile;
  const Napi::Value mask = options.Get("umask");
  plan.setUmask = !mask.IsUndefined();
  if (plan.setUmask) plan.mask = static_cast<mode_t>(Id(mask, "umask") & 0777);
  plan.newSession = options.Get("newSession").ToBoolean();
}

int ChildMain(void* argument) {
  RunSpawnChild(*static_cast<SpawnPlan*>(argument));
}

// Starts the child on a stack of its own. It shares our memory until exec, which spares copying the page tables of a
// large process; a child that changes its user gets a copy, because another user must not see ours for a moment.
pid_t StartChild(SpawnPlan& plan) {
  void* stack = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return -1;
  const bool share = !plan.setUid && !plan.setGid && !plan.setGroups;
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);  // no handler of ours may run in the child
  const pid_t pid =
      clone(ChildMain, static_cast<char*>(stack) + kStackSize, SIGCHLD | (share ? CLONE_VM | CLONE_VFORK : 0), &plan);
  const int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  munmap(stack, kStackSize);
  errno = error;
  return pid;
}

std::string PathOf(const SpawnPlan& plan, FailedPath path) {
  switch (path) {
    case FailedPath::file:
      return plan.file;
    case FailedPath::cwd:
      return plan.cwd;
    case FailedPath::selinux:
      return kSelinuxExecPath;
    case FailedPath::apparmor:
      return kApparmorExecPath;
    case FailedPath::none:
      break;
  }
  return "";
}

Napi::Value Spawn(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsObject()) throw Napi::TypeError::New(env, "options must be an object");
  const auto options = info[0].As<Napi::Object>();
  SpawnPlan plan;
  Strings strings;
  ReadStrings(options, plan, strings);
  ReadFds(options, plan);
  ReadIdentity(options, plan);
  ReadRest(options, plan);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) ThrowErrno(env, errno, "spawn pipe2");
  plan.errorPipe = ends[1];
  const pid_t pid = StartChild(plan);
  const int cloneError = errno;
  close(ends[1]);
  SpawnFailure failure{};
  ssize_t got = 0;
  if (pid > 0) {
    do {
      got = read(ends[0], &failure, sizeof failure);
    } while (got < 0 && errno == EINTR);
  }
  close(ends[0]);
  if (pid < 0) ThrowErrno(env, cloneError, "spawn clone");
  if (got == 0) {  // exec closed the pipe
    RememberChild(pid);
    return Napi::Number::New(env, pid);
  }
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  ThrowErrno(env, failure.error, std::string("spawn ") + failure.syscall, PathOf(plan, failure.path));
}

}  // namespace

void InitSpawn(Napi::Env env, Napi::Object exports) {
  exports.Set("spawn", Napi::Function::New(env, Spawn, "spawn"));
}
