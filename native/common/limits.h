// Every bound of the native core in one place. medes/limits.py holds the Python side's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace medes {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kChunkBytes = 64;  // redundancy is identified at this size (paper §4.1)
inline constexpr size_t kWindowStep = 16;  // alignment of sampled chunks and of base windows
inline constexpr size_t kMaxRanges = 8;    // address ranges kept with an image
inline constexpr size_t kMaxSamples = 16;  // k, hashes per page fingerprint
inline constexpr size_t kDefaultSamples = 8;
inline constexpr size_t kMaxLocations = 2;  // registry locations kept per hash
inline constexpr size_t kMaxWindows = 4;    // base windows that may serve one page
inline constexpr size_t kMaxBasesPerImage = 4096;
inline constexpr uint64_t kMaxImagePages = 1ull << 26;  // 256 GiB
inline constexpr uint64_t kMaxBasePages = 1ull << 26;
inline constexpr size_t kMaxProcesses = 4096;  // processes of one sandbox
inline constexpr size_t kMaxVmas = 1u << 20;
inline constexpr size_t kMaxThreads = 1u << 16;
// Mappings that a process may have after its written library data was made anonymous: well below
// vm.max_map_count (65,530), which the program may need itself.
inline constexpr size_t kMaxVmasAfterSplit = 32768;

// page server
inline constexpr size_t kMaxReadsPerBatch = 8192;
inline constexpr size_t kMaxReadBytes = 8u << 20;  // one coalesced read
inline constexpr size_t kMaxBatchBytes = 256u << 20;
inline constexpr size_t kMaxConnectionsPerServer = 4096;
inline constexpr size_t kTokenBytes = 32;

}  // namespace medes
