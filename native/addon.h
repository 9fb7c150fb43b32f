#pragma once
#include <napi.h>

#include <memory>

class Watches;

// What one environment (the main thread or one worker) owns; destroyed with it.
struct AddonState {
  Napi::FunctionReference processWatch;
  std::shared_ptr<Watches> watches;
};

void InitLibvirt(Napi::Env env, Napi::Object exports);
void InitLocks(Napi::Env env, Napi::Object exports);
void InitProcessWatch(Napi::Env env, Napi::Object exports);
void InitSockets(Napi::Env env, Napi::Object exports);
void InitSpawn(Napi::Env env, Napi::Object exports);
void InitXattrs(Napi::Env env, Napi::Object exports);
