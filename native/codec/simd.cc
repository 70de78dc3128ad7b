#include "codec/simd.h"

#include "common/error.h"

namespace medes {

const char* simd_name(SimdLevel level) noexcept {
  switch (level) {
    case SimdLevel::scalar: return "scalar";
    case SimdLevel::avx2: return "avx2";
    case SimdLevel::avx512: return "avx512";
  }
  return "scalar";
}

SimdLevel best_simd() noexcept {
#if defined(__x86_64__)
  static const SimdLevel best = [] {
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (!avx2) return SimdLevel::scalar;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512cd");
    return avx512 ? SimdLevel::avx512 : SimdLevel::avx2;
  }();
  return best;
#else
  return SimdLevel::scalar;
#endif
}

std::vector<SimdLevel> simd_levels() {
  std::vector<SimdLevel> levels;
  for (int i = 0; i <= static_cast<int>(best_simd()); ++i) levels.push_back(static_cast<SimdLevel>(i));
  return levels;
}

SimdLevel parse_simd(std::string_view name) {
  if (name == "best") return best_simd();
  for (SimdLevel level : {SimdLevel::scalar, SimdLevel::avx2, SimdLevel::avx512}) {
    if (name != simd_name(level)) continue;
    if (level > best_simd()) {
      throw Error(Code::unsupported, "this CPU does not run the asked-for SIMD level", std::string(name),
                  std::string("use best or ") + simd_name(best_simd()));
    }
    return level;
  }
  throw Error(Code::invalid_argument, "unknown SIMD level", std::string(name),
              "best, scalar, avx2 or avx512");
}

}  // namespace medes
