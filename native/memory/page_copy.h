// Other processes' pages into an image, on all cores. Internal to memory/.
#pragma once

#include <span>
#include <vector>

#include "memory/image.h"
#include "memory/pagemap.h"

namespace medes {

// Copies wanted[i] (ascending runs of pids[i]) and enters what came as the image's runs and page count; the
// image has room for all. A run whose reading stops short (the process unmapped it meanwhile) is cut there.
// Throws process_gone, permission_denied.
void copy_pages(std::span<const pid_t> pids, std::span<const std::vector<PageSpan>> wanted,
                MemoryImage& image);

}  // namespace medes
