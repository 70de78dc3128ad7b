// SIMD levels and the choice between them. Every kernel has a scalar reference; faster levels must give
// bit-identical results, since nodes with different CPUs share a registry and read each other's patches.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace medes {

enum class SimdLevel : unsigned char { scalar, avx2, avx512 };

const char* simd_name(SimdLevel level) noexcept;
std::vector<SimdLevel> simd_levels();  // those this CPU and build run, best last
SimdLevel best_simd() noexcept;
// "best" or a level's name. Throws invalid_argument for an unknown name and unsupported for a level that
// this CPU cannot run: a forced choice never falls back.
SimdLevel parse_simd(std::string_view name);

}  // namespace medes
