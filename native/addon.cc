#include "addon.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonState());
  InitLibvirt(env, exports);
  InitLocks(env, exports);
  InitProcessWatch(env, exports);
  InitSockets(env, exports);
  InitSpawn(env, exports);
  InitXattrs(env, exports);
  return exports;
}

NODE_API_MODULE(virstream, Init)
