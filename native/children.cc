#include "children.h"

#include <mutex>
#include <unordered_set>

namespace {

std::mutex guard;

std::unordered_set<pid_t>& Children() {
  static auto* children = new std::unordered_set<pid_t>();  // never destroyed: workers may outlive static objects
  return *children;
}

}  // namespace

void RememberChild(pid_t pid) {
  const std::lock_guard lock(guard);
  Children().insert(pid);
}

void ForgetChild(pid_t pid) {
  const std::lock_guard lock(guard);
  Children().erase(pid);
}

bool IsSpawnedHere(pid_t pid) {
  const std::lock_guard lock(guard);
  return Children().contains(pid);
}
