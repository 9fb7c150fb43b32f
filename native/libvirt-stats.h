#pragma once
#include <cstdint>

// Where the functions of libvirt are that DomainNumbers() is made of.
struct StatsFunctions {
  uintptr_t listGetStats;  // virDomainListGetStats
  uintptr_t getUuid;       // virDomainGetUUID
  uintptr_t freeList;      // virDomainStatsRecordListFree
};

// To be called like a function of libvirt, by the thread of a call: what libvirt tells of many domains, as numbers, so that
// nobody else has to go through its records. `domains` ends with null; `uuids` are theirs and `names` those of parameters, with
// a space between. Of each domain, in their order, as many numbers go into `numbers`; those that are not told stay as they are.
// Answers how many domains libvirt told of; negative: libvirt's error.
int DomainNumbers(const StatsFunctions* libvirt, void** domains, const char* uuids, unsigned stats, const char* names,
                  double* numbers);
