#include "libvirt-stats.h"

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace {

// virTypedParameterType
constexpr int kInt = 1, kUint = 2, kLlong = 3, kUllong = 4, kDouble = 5, kBoolean = 6;

// struct _virTypedParameter
struct Parameter {
  char name[80];
  int type;
  union {
    int i;
    unsigned ui;
    long long l;
    unsigned long long ul;
    double d;
    char b;
    char* s;
  } value;
};

// struct _virDomainStatsRecord
struct Record {
  void* domain;
  const Parameter* parameters;
  int count;
};

using Uuid = std::array<unsigned char, 16>;
using ListGetStats = int (*)(void** domains, unsigned stats, Record*** records, unsigned flags);
using GetUuid = int (*)(void* domain, unsigned char* uuid);
using FreeList = void (*)(Record** records);

std::vector<std::string_view> Split(std::string_view names) {
  std::vector<std::string_view> all;
  while (!names.empty()) {
    const size_t end = names.find(' ');
    all.push_back(names.substr(0, end));
    names.remove_prefix(end == std::string_view::npos ? names.size() : end + 1);
  }
  return all;
}

Uuid Parse(std::string_view text) {
  Uuid uuid{};
  size_t digits = 0;
  for (const char digit : text) {
    if (digit == '-' || digits == 2 * uuid.size()) continue;
    const int value = digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10;
    unsigned char& byte = uuid[digits++ / 2];
    byte = static_cast<unsigned char>(byte << 4 | value);
  }
  return uuid;
}

std::optional<double> NumberOf(const Parameter& parameter) {
  switch (parameter.type) {
    case kInt:
      return parameter.value.i;
    case kUint:
      return parameter.value.ui;
    case kLlong:
      return static_cast<double>(parameter.value.l);
    case kUllong:
      return static_cast<double>(parameter.value.ul);
    case kDouble:
      return parameter.value.d;
    case kBoolean:
      return parameter.value.b != 0;
    default:
      return std::nullopt;
  }
}

void Fill(const Record& record, const std::vector<std::string_view>& names, double* numbers) {
  for (int i = 0; i < record.count; i++) {
    const Parameter& parameter = record.parameters[i];
    for (size_t at = 0; at < names.size(); at++)
      if (names[at] == parameter.name) numbers[at] = NumberOf(parameter).value_or(numbers[at]);
  }
}

// Finds domains among those that were asked for: libvirt leaves some out, and promises no order.
class Asked {
 public:
  // libvirt could be asked for them, which takes longer: it writes each for its log first
  explicit Asked(std::string_view uuids) {
    for (const auto text : Split(uuids)) uuids_.push_back(Parse(text));
  }

  std::optional<size_t> Find(const Uuid& uuid) {
    for (size_t tried = 0; tried < uuids_.size(); tried++) {
      // most come in the order of the question
      const size_t at = next_;
      next_ = (next_ + 1) % uuids_.size();
      if (uuids_[at] == uuid) return at;
    }
    return std::nullopt;
  }

 private:
  std::vector<Uuid> uuids_;
  size_t next_ = 0;
};

}  // namespace

int DomainNumbers(const StatsFunctions* libvirt, void** domains, const char* uuids, unsigned stats, const char* names,
                  double* numbers) {
  Record** records = nullptr;
  const int count = reinterpret_cast<ListGetStats>(libvirt->listGetStats)(domains, stats, &records, 0);
  if (count < 0) return count;
  const auto getUuid = reinterpret_cast<GetUuid>(libvirt->getUuid);
  const std::vector<std::string_view> wanted = Split(names);
  Asked asked(uuids);
  for (int nth = 0; nth < count; nth++) {
    Uuid uuid{};
    getUuid(records[nth]->domain, uuid.data());
    const auto at = asked.Find(uuid);
    if (at) Fill(*records[nth], wanted, numbers + *at * wanted.size());
  }
  // its handles are not the last on the connection: those who ask hold theirs
  reinterpret_cast<FreeList>(libvirt->freeList)(records);
  return count;
}
