#pragma once
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include <string>
#include <vector>

struct FdMapping {
  int source;
  int target;
};

// Everything that the child needs, laid out before it exists: the child must not allocate.
struct SpawnPlan {
  std::string file;
  std::vector<char*> argv;  // ends with nullptr
  std::vector<char*> envp;  // ends with nullptr
  std::string cwd;          // empty: stay
  std::vector<FdMapping> fds;  // sorted by target
  std::vector<int> moved;      // room for one descriptor per mapping
  bool setGroups = false;
  std::vector<gid_t> groups;
  bool setGid = false;
  gid_t gid = 0;
  bool setUid = false;
  uid_t uid = 0;
  std::string selinuxLabel;     // empty: none
  std::string apparmorCommand;  // "exec PROFILE"; empty: none
  bool setUmask = false;
  mode_t mask = 0;
  bool newSession = false;
  int errorPipe = -1;  // close-on-exec
  int control = -1;       // our end of a pair of sockets when it is to stop before exec; close-on-exec
  int controlOther = -1;  // the parent's end
  bool connects = false;
  sockaddr_un connectTo{};
  socklen_t connectLength = 0;
};

// What a child that failed writes into its error pipe. `syscall` points to a literal, `what` says which path belongs to it.
enum class FailedPath { none, file, cwd, selinux, apparmor, connection };
struct SpawnFailure {
  int error;
  const char* syscall;
  FailedPath path;
};

extern const char kSelinuxExecPath[];
extern const char kApparmorExecPath[];

// Runs in the child with all signals blocked. Makes async-signal-safe calls only, and never returns.
[[noreturn]] void RunSpawnChild(SpawnPlan& plan);
