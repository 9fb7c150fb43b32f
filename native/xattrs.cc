#include <sys/xattr.h>

#include <cerrno>
#include <vector>

#include "addon.h"
#include "errors.h"

namespace {

// Asks `read(buffer, size)` for all there is; the value may grow between asking for its size and reading it.
template <typename Read>
ssize_t ReadWhole(std::vector<char>& buffer, Read read) {
  for (;;) {
    const ssize_t size = read(nullptr, 0);
    if (size < 0) return size;
    buffer.resize(static_cast<size_t>(size) + 1);
    const ssize_t got = read(buffer.data(), buffer.size());
    if (got >= 0 || errno != ERANGE) return got;
  }
}

Napi::Value GetXattr(const Napi::CallbackInfo& info) {
  const std::string path = SystemString(info[0], "path");
  const std::string name = SystemString(info[1], "name");
  std::vector<char> buffer;
  const ssize_t got = ReadWhole(
      buffer, [&](char* data, size_t size) { return lgetxattr(path.c_str(), name.c_str(), data, size); });
  if (got >= 0) return CopyOut(info.Env(), buffer.data(), static_cast<size_t>(got));
  if (errno == ENODATA) return info.Env().Undefined();
  ThrowErrno(info.Env(), errno, "lgetxattr", path);
}

void SetXattr(const Napi::CallbackInfo& info) {
  const std::string path = SystemString(info[0], "path");
  const std::string name = SystemString(info[1], "name");
  const Bytes value = BytesOf(info[2]);
  if (lsetxattr(path.c_str(), name.c_str(), value.data, value.length, 0) != 0) {
    ThrowErrno(info.Env(), errno, "lsetxattr", path);
  }
}

void RemoveXattr(const Napi::CallbackInfo& info) {
  const std::string path = SystemString(info[0], "path");
  const std::string name = SystemString(info[1], "name");
  if (lremovexattr(path.c_str(), name.c_str()) != 0) ThrowErrno(info.Env(), errno, "lremovexattr", path);
}

Napi::Value ListXattr(const Napi::CallbackInfo& info) {
  const std::string path = SystemString(info[0], "path");
  std::vector<char> buffer;
  const ssize_t got =
      ReadWhole(buffer, [&](char* data, size_t size) { return llistxattr(path.c_str(), data, size); });
  if (got < 0) ThrowErrno(info.Env(), errno, "llistxattr", path);
  Napi::Array names = Napi::Array::New(info.Env());
  for (ssize_t at = 0; at < got;) {
    const std::string name(buffer.data() + at);
    names.Set(names.Length(), name);
    at += static_cast<ssize_t>(name.size()) + 1;
  }
  return names;
}

}  // namespace

void InitXattrs(Napi::Env env, Napi::Object exports) {
  exports.Set("getxattr", Napi::Function::New(env, GetXattr, "getxattr"));
  exports.Set("setxattr", Napi::Function::New(env, SetXattr, "setxattr"));
  exports.Set("removexattr", Napi::Function::New(env, RemoveXattr, "removexattr"));
  exports.Set("listxattr", Napi::Function::New(env, ListXattr, "listxattr"));
}
