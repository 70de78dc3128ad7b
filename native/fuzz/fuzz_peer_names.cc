// Any text as a peer's address, and its lines as the URIs of a certificate: a host and a port that were in
// it, and the one node that is named, or nobody.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "transport/socket.h"
#include "transport/tls/tls.h"

using namespace medes;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const HostPort address = parse_address(text);
    if (address.port.empty() || address.host.size() + address.port.size() >= size ||
        address.port.find(':') != address.port.npos)
      __builtin_trap();
  } catch (const Error& e) {
    if (e.code != Code::invalid_argument) __builtin_trap();
  }
  std::vector<std::string_view> uris;
  size_t parties = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    uris.push_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    parties += uris.back().starts_with("medes://node/");
  }
  const std::string node = node_named_by(uris);
  if (!node.empty() && (parties != 1 || text.find("medes://node/" + node) == text.npos)) __builtin_trap();
  return 0;
}
