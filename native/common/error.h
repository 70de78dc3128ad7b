// The native side of the error catalogue (medes/errors.py). Errors are thrown where a caller must
// decide; hot paths (fault server, decoders) return Code values instead.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace medes {

// Names must equal the `code` strings of medes/errors.py; tests/contract checks that they do.
enum class Code : uint16_t {
  ok = 0,
  invalid_argument,        // the caller's input is wrong
  not_found,               // sandbox, base, slab or file does not exist
  already_exists,          //
  permission_denied,       // a kernel right is missing (ptrace, userfaultfd, /proc/pid/mem)
  unsupported,             // this kernel, CPU or device cannot do it
  process_gone,            // the sandbox's process exited
  traced,                  // another tracer (gdb, strace) holds the process
  store_full,              // no room in the base or patch store
  limit_exceeded,          // a bound from limits.h / limits.py was hit
  corrupt,                 // a format check or checksum failed
  lost,                    // right bytes cannot be produced: the sandbox must be cold-started
  peer_unreachable,        // transient: the other agent does not answer
  controller_unreachable,  // transient
  unauthenticated,         // token or certificate refused
  cancelled,               // activity arrived during a dedup op
  deadline_exceeded,       //
  busy,                    // admission control refused, try later
  io,                      // a system call failed; message carries errno text
  internal,                // a broken invariant: a bug
};

const char* code_name(Code code) noexcept;

// Whether the same call may succeed later, as `transient` in medes/errors.py (tests/contract compares them).
bool passes(Code code) noexcept;

// `object` names what failed ("pid 4711", "base 0x1f3…"); `hint` says what to do about it.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& what, std::string object = {}, std::string hint = {})
      : std::runtime_error(what), code(code), object(std::move(object)), hint(std::move(hint)) {}
  Code code;
  std::string object;
  std::string hint;
};

// Error from errno (saved by the caller before anything else runs).
Error errno_error(int err, const std::string& what, std::string object = {}, std::string hint = {});

}  // namespace medes
