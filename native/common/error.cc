#include "common/error.h"

#include <cerrno>
#include <system_error>

namespace medes {

const char* code_name(Code code) noexcept {
  switch (code) {
    case Code::ok: return "ok";
    case Code::invalid_argument: return "invalid_argument";
    case Code::not_found: return "not_found";
    case Code::already_exists: return "already_exists";
    case Code::permission_denied: return "permission_denied";
    case Code::unsupported: return "unsupported";
    case Code::process_gone: return "process_gone";
    case Code::traced: return "traced";
    case Code::store_full: return "store_full";
    case Code::limit_exceeded: return "limit_exceeded";
    case Code::corrupt: return "corrupt";
    case Code::lost: return "lost";
    case Code::peer_unreachable: return "peer_unreachable";
    case Code::controller_unreachable: return "controller_unreachable";
    case Code::unauthenticated: return "unauthenticated";
    case Code::cancelled: return "cancelled";
    case Code::deadline_exceeded: return "deadline_exceeded";
    case Code::busy: return "busy";
    case Code::io: return "io";
    case Code::internal: return "internal";
  }
  return "internal";
}

bool passes(Code code) noexcept {
  switch (code) {
    case Code::store_full:
    case Code::peer_unreachable:
    case Code::controller_unreachable:
    case Code::unauthenticated:
    case Code::cancelled:
    case Code::deadline_exceeded:
    case Code::busy: return true;
    default: return false;
  }
}

Error errno_error(int err, const std::string& what, std::string object, std::string hint) {
  Code code = Code::io;
  switch (err) {
    case ESRCH: code = Code::process_gone; break;
    case EPERM:
    case EACCES: code = Code::permission_denied; break;
    case ENOENT: code = Code::not_found; break;
    case EEXIST: code = Code::already_exists; break;
    case ENOSPC:
    case EDQUOT: code = Code::store_full; break;
    case ENOMEM: code = Code::limit_exceeded; break;
    case EINVAL: code = Code::invalid_argument; break;
    case ENOSYS:
    case EOPNOTSUPP: code = Code::unsupported; break;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ENETUNREACH: code = Code::peer_unreachable; break;
    default: break;
  }
  return Error(code, what + ": " + std::generic_category().message(err), std::move(object), std::move(hint));
}

}  // namespace medes
