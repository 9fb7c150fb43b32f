#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>

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
// large process; a child that changes its user gets a copy, because another user must not see ours for a moment,
// and so does one that stops before exec, since who shares stops us.
pid_t StartChild(SpawnPlan& plan) {
  void* stack = mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return -1;
  const bool share = !plan.setUid && !plan.setGid && !plan.setGroups && plan.control < 0;
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

// What an error of the child may name.
struct Paths {
  std::string file;
  std::string cwd;
  std::string connection;
};

const std::string& PathOf(const Paths& paths, FailedPath path) {
  static const std::string none, selinux(kSelinuxExecPath), apparmor(kApparmorExecPath);
  switch (path) {
    case FailedPath::file:
      return paths.file;
    case FailedPath::cwd:
      return paths.cwd;
    case FailedPath::connection:
      return paths.connection;
    case FailedPath::selinux:
      return selinux;
    case FailedPath::apparmor:
      return apparmor;
    case FailedPath::none:
      break;
  }
  return none;
}

void Reap(pid_t pid) {
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

// Waits until the child has become the program, or throws what it failed with. Closes the pipe.
void AwaitExec(Napi::Env env, pid_t pid, int errorPipe, const Paths& paths) {
  SpawnFailure failure{};
  ssize_t got;
  do {
    got = read(errorPipe, &failure, sizeof failure);
  } while (got < 0 && errno == EINTR);
  close(errorPipe);
  if (got == 0) {  // exec closed the pipe
    RememberChild(pid);
    return;
  }
  Reap(pid);
  ThrowErrno(env, failure.error, std::string("spawn ") + failure.syscall, PathOf(paths, failure.path));
}

void ReadOptions(const Napi::CallbackInfo& info, SpawnPlan& plan, Strings& strings) {
  if (!info[0].IsObject()) throw Napi::TypeError::New(info.Env(), "options must be an object");
  const auto options = info[0].As<Napi::Object>();
  ReadStrings(options, plan, strings);
  ReadFds(options, plan);
  ReadIdentity(options, plan);
  ReadRest(options, plan);
}

Napi::Value Spawn(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  SpawnPlan plan;
  Strings strings;
  ReadOptions(info, plan, strings);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) ThrowErrno(env, errno, "spawn pipe2");
  plan.errorPipe = ends[1];
  const pid_t pid = StartChild(plan);
  const int cloneError = errno;
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    ThrowErrno(env, cloneError, "spawn clone");
  }
  AwaitExec(env, pid, ends[0], {plan.file, plan.cwd, ""});
  return Napi::Number::New(env, pid);
}

// --- children that stop before exec ---

struct HeldChild {
  int errorPipe;
  int control;
  Paths paths;
};

std::mutex heldGuard;

std::map<pid_t, HeldChild>& HeldChildren() {
  static auto* held = new std::map<pid_t, HeldChild>();
  return *held;
}

HeldChild TakeHeld(Napi::Env env, const Napi::Value& value) {
  const std::lock_guard lock(heldGuard);
  const auto found = HeldChildren().find(static_cast<pid_t>(Id(value, "pid")));
  if (found == HeldChildren().end()) ThrowErrno(env, ESRCH, "resume");
  HeldChild child = found->second;
  HeldChildren().erase(found);
  return child;
}

void ReadConnection(const Napi::Value& value, SpawnPlan& plan) {
  if (value.IsUndefined()) return;
  const std::string path = SystemString(value, "path");
  if (path.empty()) ThrowErrno(value.Env(), EINVAL, "connect");
  if (path.size() >= sizeof plan.connectTo.sun_path) ThrowErrno(value.Env(), ENAMETOOLONG, "connect", path);
  plan.connects = true;
  plan.connectTo.sun_family = AF_UNIX;
  std::memcpy(plan.connectTo.sun_path, path.c_str(), path.size() + 1);
  plan.connectLength = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
}

// The first word of a held child, with its connection: false when it ended before it could say it.
bool ReceiveConnection(int control, int& connection) {
  char byte;
  iovec part{&byte, 1};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = buffer;
  message.msg_controllen = sizeof buffer;
  ssize_t got;
  do {
    got = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got != 1) return false;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr) std::memcpy(&connection, CMSG_DATA(header), sizeof connection);
  return true;
}

Napi::Value SpawnHeld(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  SpawnPlan plan;
  Strings strings;
  ReadOptions(info, plan, strings);
  ReadConnection(info[1], plan);

  int ends[2];
  int pair[2];
  if (pipe2(ends, O_CLOEXEC) != 0) ThrowErrno(env, errno, "spawn pipe2");
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    const int error = errno;
    close(ends[0]);
    close(ends[1]);
    ThrowErrno(env, error, "spawn socketpair");
  }
  plan.errorPipe = ends[1];
  plan.controlOther = pair[0];
  plan.control = pair[1];
  const pid_t pid = StartChild(plan);
  const int cloneError = errno;
  close(ends[1]);
  close(pair[1]);
  int connection = -1;
  const Paths paths{plan.file, plan.cwd, plan.connectTo.sun_path};
  if (pid > 0 && ReceiveConnection(pair[0], connection)) {
    const std::lock_guard lock(heldGuard);
    HeldChildren().insert_or_assign(pid, HeldChild{ends[0], pair[0], paths});
  } else {
    close(pair[0]);
    if (pid < 0) {
      close(ends[0]);
      ThrowErrno(env, cloneError, "spawn clone");
    }
    AwaitExec(env, pid, ends[0], paths);
    ThrowErrno(env, ESRCH, "spawn");  // killed by someone
  }
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("pid", Napi::Number::New(env, pid));
  if (connection >= 0) answer.Set("connection", Napi::Number::New(env, connection));
  return answer;
}

void ResumeHeld(const Napi::CallbackInfo& info) {
  const HeldChild child = TakeHeld(info.Env(), info[0]);
  const char byte = 1;
  const ssize_t sent = send(child.control, &byte, 1, MSG_NOSIGNAL);
  const int error = errno;
  close(child.control);
  const auto pid = static_cast<pid_t>(Id(info[0], "pid"));
  if (sent == 1) return AwaitExec(info.Env(), pid, child.errorPipe, child.paths);
  close(child.errorPipe);  // killed by someone
  Reap(pid);
  ThrowErrno(info.Env(), error, "resume");
}

void DropHeld(const Napi::CallbackInfo& info) {
  const HeldChild child = TakeHeld(info.Env(), info[0]);
  const auto pid = static_cast<pid_t>(Id(info[0], "pid"));
  kill(pid, SIGKILL);
  close(child.control);
  close(child.errorPipe);
  Reap(pid);
}

}  // namespace

void InitSpawn(Napi::Env env, Napi::Object exports) {
  exports.Set("spawn", Napi::Function::New(env, Spawn, "spawn"));
  exports.Set("spawnHeld", Napi::Function::New(env, SpawnHeld, "spawnHeld"));
  exports.Set("resumeHeld", Napi::Function::New(env, ResumeHeld, "resumeHeld"));
  exports.Set("dropHeld", Napi::Function::New(env, DropHeld, "dropHeld"));
}
