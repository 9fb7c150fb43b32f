// Open-file-description locks: they belong to the open file, not to the process, so a descriptor that is passed to
// another process takes its lock along, and closing another descriptor of the same file doesn't drop them.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "addon.h"
#include "errors.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

namespace {

int64_t Offset(const Napi::Value& value, const char* what) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= 0 && number <= 9007199254740991.0)) {
    throw Napi::RangeError::New(value.Env(), std::string(what) + " must be a safe integer >= 0");
  }
  return value.As<Napi::Number>().Int64Value();
}

struct flock Range(short type, const Napi::Value& start, const Napi::Value& length) {
  struct flock range {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = Offset(start, "start");
  range.l_len = Offset(length, "length");
  return range;
}

struct flock RangeOf(const Napi::Value& value) {
  const auto lock = value.As<Napi::Object>();
  const std::string type = SystemString(lock.Get("type"), "type");
  if (type != "read" && type != "write") throw Napi::TypeError::New(value.Env(), "type must be 'read' or 'write'");
  return Range(type == "write" ? F_WRLCK : F_RDLCK, lock.Get("start"), lock.Get("length"));
}

Napi::Value LockFile(const Napi::CallbackInfo& info) {
  struct flock range = RangeOf(info[1]);
  if (fcntl(Descriptor(info[0]), F_OFD_SETLK, &range) == 0) return Napi::Boolean::New(info.Env(), true);
  if (errno == EAGAIN || errno == EACCES) return Napi::Boolean::New(info.Env(), false);
  ThrowErrno(info.Env(), errno, "fcntl");
}

void UnlockFile(const Napi::CallbackInfo& info) {
  struct flock range = Range(F_UNLCK, info[1], info[2]);
  if (fcntl(Descriptor(info[0]), F_OFD_SETLK, &range) != 0) ThrowErrno(info.Env(), errno, "fcntl");
}

Napi::Value TestLock(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  struct flock range = RangeOf(info[1]);
  if (fcntl(Descriptor(info[0]), F_OFD_GETLK, &range) != 0) ThrowErrno(env, errno, "fcntl");
  if (range.l_type == F_UNLCK) return env.Undefined();
  Napi::Object found = Napi::Object::New(env);
  found.Set("type", range.l_type == F_WRLCK ? "write" : "read");
  found.Set("start", Napi::Number::New(env, static_cast<double>(range.l_start)));
  found.Set("length", Napi::Number::New(env, static_cast<double>(range.l_len)));
  found.Set("pid", Napi::Number::New(env, range.l_pid));
  return found;
}

Napi::Value CopyFd(const Napi::CallbackInfo& info) {
  const int pid = Descriptor(info[0]);
  const int process = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (process < 0) ThrowErrno(info.Env(), errno, "pidfd_open");
  const int copy = static_cast<int>(syscall(SYS_pidfd_getfd, process, Descriptor(info[1]), 0));
  const int error = errno;
  close(process);
  if (copy < 0) ThrowErrno(info.Env(), error, "pidfd_getfd");
  return Napi::Number::New(info.Env(), copy);
}

}  // namespace

void InitLocks(Napi::Env env, Napi::Object exports) {
  exports.Set("lockFile", Napi::Function::New(env, LockFile, "lockFile"));
  exports.Set("unlockFile", Napi::Function::New(env, UnlockFile, "unlockFile"));
  exports.Set("testLock", Napi::Function::New(env, TestLock, "testLock"));
  exports.Set("copyFd", Napi::Function::New(env, CopyFd, "copyFd"));
}
