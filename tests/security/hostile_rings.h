#pragma once

#include <stddef.h>

// Runs for ever; -1 where there is no io_uring.
int storm_of_rings(unsigned char* area, size_t pages);
