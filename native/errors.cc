#include "errors.h"

#include <uv.h>

#include <cstring>

void ThrowErrno(Napi::Env env, int error, const std::string& syscall, const std::string& path) {
  const std::string code = uv_err_name(-error);
  std::string message = code + ": " + uv_strerror(-error) + ", " + syscall;
  if (!path.empty()) message += " '" + path + "'";
  Napi::Error thrown = Napi::Error::New(env, message);
  thrown.Set("errno", Napi::Number::New(env, -error));
  thrown.Set("code", Napi::String::New(env, code));
  thrown.Set("syscall", Napi::String::New(env, syscall));
  if (!path.empty()) thrown.Set("path", Napi::String::New(env, path));
  throw thrown;
}

std::string SystemString(const Napi::Value& value, const char* what) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), std::string(what) + " must be a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.find('\0') != std::string::npos) {
    throw Napi::TypeError::New(value.Env(), std::string(what) + " must not hold a NUL character");
  }
  return text;
}

int Descriptor(const Napi::Value& value) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), "a file descriptor must be a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  const int fd = value.As<Napi::Number>().Int32Value();
  if (fd < 0 || number != fd) throw Napi::RangeError::New(value.Env(), "a file descriptor must be a whole number >= 0");
  return fd;
}

Bytes BytesOf(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw Napi::TypeError::New(value.Env(), "bytes must be a Uint8Array");
  }
  const auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

Napi::Uint8Array CopyOut(Napi::Env env, const void* data, size_t length) {
  Napi::Uint8Array array = Napi::Uint8Array::New(env, length);
  if (length > 0) std::memcpy(array.Data(), data, length);
  return array;
}
