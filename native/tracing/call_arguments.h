// What the arguments of the call that a thread sleeps in point at, and how long it may still sleep. Registers
// and memory are the program's: any number in them may be anything.
#pragma once

#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "image/image.h"

namespace medes {

// Memory of the program. False when not all of it is there.
using ReadMemory = std::function<bool(uint64_t address, void* out, size_t bytes)>;

// The whole pages of [at - before, at + after), as far as there is memory.
AddressRange pages_around(uint64_t at, uint64_t before, uint64_t after);

// A robust list (set_robust_list(2)), in part: it may be a circle of any length.
void add_robust_list(uint64_t head, const ReadMemory& read, std::vector<AddressRange>& out);
// Sizes come from the program too, so all of it is bounded: what is beyond the bounds may wake the sandbox,
// and nothing worse.
void add_call_ranges(const user_regs_struct& registers, const ReadMemory& read,
                     std::vector<AddressRange>& out);

// Of a timespec or timeval, by its units a second. Nothing for one that no kernel takes.
std::optional<std::array<int64_t, 2>> time_left(const std::array<int64_t, 2>& given, int64_t units_per_s,
                                                int64_t waited_ns);

}  // namespace medes
