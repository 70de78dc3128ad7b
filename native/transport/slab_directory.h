// What a node serves and to whom: slabs by base id, each in one dedup domain, and grants, which say that the
// bearer of a token may read the slabs of one domain. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "store/slab.h"
#include "transport/wire.h"

namespace medes {

struct Grant {
  using Time = std::chrono::steady_clock::time_point;
  std::string domain, peer;
  std::atomic<bool> revoked{false};
  std::atomic<Time> ends{Time::max()};
  bool ended() const { return std::chrono::steady_clock::now() >= ends.load(); }
};

class SlabDirectory {
 public:
  void add(std::shared_ptr<Slab> slab, const std::string& domain);  // throws already_exists
  bool remove(uint64_t base_id);
  // Null when there is none, or when it belongs to another domain: a peer cannot tell these apart.
  std::shared_ptr<Slab> find(uint64_t base_id, const std::string& domain) const;
  size_t size() const;

  // Replaces what the token was granted for; the same again moves its end.
  void grant(const Token& token, const std::string& domain, const std::string& peer,
             Grant::Time ends = Grant::Time::max());
  std::shared_ptr<Grant> revoke(const Token& token);  // null when unknown
  std::shared_ptr<Grant> authenticate(
      const Token& token) const;  // null when refused, or when its end has come
  size_t grants() const;

 private:
  // Tokens are kept and compared as SHA-256, so that the time of a look-up tells nothing about a token.
  using TokenHash = std::array<unsigned char, 32>;
  static TokenHash hash(const Token& token);

  struct Entry {
    std::shared_ptr<Slab> slab;
    std::string domain;
  };
  mutable std::shared_mutex mutex_;
  std::unordered_map<uint64_t, Entry> slabs_;
  std::map<TokenHash, std::shared_ptr<Grant>> grants_;
  size_t forget_at_ = 64;  // so many grants: those that have ended go
};

}  // namespace medes
