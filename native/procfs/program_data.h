// Written pages of programs' and libraries' own data (.data, relocation tables): private memory in a mapping
// of a file, which userfaultfd does not take. The live driver makes it anonymous memory of equal bytes before
// it evicts (process/make_anonymous.h); this finds what may be treated so.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <vector>

#include "image/image.h"

namespace medes {

// For each mapping: whether it is part of a writable segment of the program or library it maps, and data
// (never text). Only of such a mapping is it known that nobody wants the file's bytes back: other private
// mappings of files may be reset with MADV_DONTNEED, as some run times do with their memory images. The
// segments are read from the ELF header in the process's own memory. Throws process_gone, permission_denied.
std::vector<uint8_t> find_program_data(pid_t pid, std::span<const Vma> vmas);

// Whole pages of the file behind the writable segments of a program or library that begins with `page`; none
// when that is not the start of one.
std::vector<AddressRange> writable_segments(std::span<const std::byte, kPageBytes> page);

// Splits the mappings that `runs` (ascending) lie in, so that each run is an anonymous mapping of its own:
// what the process will have after the eviction.
std::vector<Vma> with_anonymous_runs(std::span<const Vma> vmas, std::span<const FileRun> runs);

}  // namespace medes
