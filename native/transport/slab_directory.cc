#include "transport/slab_directory.h"

#include <openssl/sha.h>

#include <algorithm>
#include <mutex>

namespace medes {

SlabDirectory::TokenHash SlabDirectory::hash(const Token& token) {
  TokenHash out;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), out.data());
  return out;
}

void SlabDirectory::add(std::shared_ptr<Slab> slab, const std::string& domain) {
  if (!slab) throw Error(Code::invalid_argument, "no slab");
  const uint64_t id = slab->base_id();
  std::unique_lock lock(mutex_);
  if (!slabs_.try_emplace(id, Entry{std::move(slab), domain}).second)
    throw Error(Code::already_exists, "base is served already", "base " + std::to_string(id));
}

bool SlabDirectory::remove(uint64_t base_id) {
  std::unique_lock lock(mutex_);
  return slabs_.erase(base_id) > 0;
}

std::shared_ptr<Slab> SlabDirectory::find(uint64_t base_id, const std::string& domain) const {
  std::shared_lock lock(mutex_);
  const auto found = slabs_.find(base_id);
  if (found == slabs_.end() || found->second.domain != domain) return nullptr;
  return found->second.slab;
}

size_t SlabDirectory::grants() const {
  std::shared_lock lock(mutex_);
  return grants_.size();
}

size_t SlabDirectory::size() const {
  std::shared_lock lock(mutex_);
  return slabs_.size();
}

void SlabDirectory::grant(const Token& token, const std::string& domain, const std::string& peer,
                          Grant::Time ends) {
  auto grant = std::make_shared<Grant>();
  grant->ends = ends;
  grant->domain = domain;
  grant->peer = peer;
  const TokenHash key = hash(token);
  std::unique_lock lock(mutex_);
  if (grants_.size() >= forget_at_) {
    std::erase_if(grants_, [](const auto& entry) { return entry.second->ended(); });
    forget_at_ = std::max<size_t>(64, 2 * grants_.size());
  }
  auto& slot = grants_[key];
  if (slot && slot->domain == domain && slot->peer == peer) {
    slot->ends = ends;
    return;
  }
  if (slot) slot->revoked = true;
  slot = std::move(grant);
}

std::shared_ptr<Grant> SlabDirectory::revoke(const Token& token) {
  std::unique_lock lock(mutex_);
  const auto found = grants_.find(hash(token));
  if (found == grants_.end()) return nullptr;
  auto grant = found->second;
  grant->revoked = true;
  grants_.erase(found);
  return grant;
}

std::shared_ptr<Grant> SlabDirectory::authenticate(const Token& token) const {
  const TokenHash key = hash(token);
  std::shared_lock lock(mutex_);
  const auto found = grants_.find(key);
  return found == grants_.end() || found->second->ended() ? nullptr : found->second;
}

}  // namespace medes
