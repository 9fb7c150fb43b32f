#pragma once
#include <napi.h>
#include <string>

// Throws an error like Node's own: message `ENOENT: no such file or directory, open '/x'`, with errno (negative),
// code, syscall and, unless empty, path.
[[noreturn]] void ThrowErrno(Napi::Env env, int error, const std::string& syscall, const std::string& path = "");

// The text of a JavaScript string that is handed to a system call: TypeError when it is none or holds a NUL.
std::string SystemString(const Napi::Value& value, const char* what);

// A file descriptor argument: TypeError when it is no number, RangeError when negative.
int Descriptor(const Napi::Value& value);

// The bytes of a Uint8Array argument, valid while the call lasts.
struct Bytes {
  const uint8_t* data;
  size_t length;
};
Bytes BytesOf(const Napi::Value& value);

// A fresh ArrayBuffer of ours as Uint8Array.
Napi::Uint8Array CopyOut(Napi::Env env, const void* data, size_t length);
