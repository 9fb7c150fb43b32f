#pragma once
#include <sys/types.h>

// The processes that spawn() started and nobody has reaped yet. Children of Node itself are Node's to reap. One list for
// all threads: a child that one worker started may be watched by another.
void RememberChild(pid_t pid);
void ForgetChild(pid_t pid);
bool IsSpawnedHere(pid_t pid);
