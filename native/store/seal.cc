#include "store/seal.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "common/checksum.h"
#include "common/error.h"
#include "common/limits.h"
#include "store/child_file.h"
#include "store/sandbox_format.h"
#include "store/shm_file.h"
#include "store/slab_format.h"

namespace medes {

namespace {

constexpr size_t kSealOffset = 4056;
constexpr uint32_t kGmac = 1;
constexpr size_t kStepBytes = 64u << 20;  // OpenSSL counts in int

struct Seal {
  unsigned char nonce[12];
  unsigned char tag[16];
  uint32_t kind;
};
static_assert(sizeof(Seal) == 32 && kSealOffset + sizeof(Seal) + sizeof(uint64_t) == kPageBytes);

std::mutex keys_mutex;
std::map<std::string, StoreKey> keys;  // by folder

void make_tag(const StoreKey& key, const unsigned char* nonce, Bytes header_page, Bytes body,
              unsigned char* tag) {
  std::array<std::byte, kPageBytes> page{};
  std::memcpy(page.data(), header_page.data(), kSealOffset);
  const std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context(EVP_CIPHER_CTX_new(),
                                                                           EVP_CIPHER_CTX_free);
  bool ok = context && EVP_EncryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr,
                                          reinterpret_cast<const unsigned char*>(key.data()), nonce) == 1;
  const auto add = [&](Bytes part) {
    for (; ok && !part.empty(); part = part.subspan(std::min(part.size(), kStepBytes))) {
      int taken = 0;
      ok = EVP_EncryptUpdate(context.get(), nullptr, &taken,
                             reinterpret_cast<const unsigned char*>(part.data()),
                             static_cast<int>(std::min(part.size(), kStepBytes))) == 1;
    }
  };
  add(page);
  add(body);
  int rest = 0;
  ok = ok && EVP_EncryptFinal_ex(context.get(), tag, &rest) == 1;
  ok = ok && EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, sizeof(Seal::tag), tag) == 1;
  if (!ok) throw Error(Code::internal, "the store's seal cannot be made");
}

}  // namespace

void set_store_key(const std::string& folder, Bytes key) {
  if (key.size() != kStoreKeyBytes) throw Error(Code::invalid_argument, "not a store key", folder);
  StoreKey copy;
  std::memcpy(copy.data(), key.data(), copy.size());
  std::lock_guard lock(keys_mutex);
  keys[folder_of(folder + "/")] = copy;
}

std::optional<StoreKey> store_key_of(const std::string& path) {
  std::lock_guard lock(keys_mutex);
  const auto found = keys.find(folder_of(path));
  return found == keys.end() ? std::nullopt : std::optional(found->second);
}

void seal(const std::string& path, MutableBytes header_page, Bytes body) {
  const auto key = store_key_of(path);
  if (!key) return;
  Seal made{};
  made.kind = kGmac;
  if (RAND_bytes(made.nonce, sizeof made.nonce) != 1) throw Error(Code::internal, "no random bytes", path);
  make_tag(*key, made.nonce, header_page, body, made.tag);
  std::memcpy(header_page.data() + kSealOffset, &made, sizeof made);
}

void seal_existing(const std::string& path) {
  const UniqueFd folder(::open(folder_of(path).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const std::string name = path.substr(path.rfind('/') + 1);
  // A slab is read-only, to its own user too.
  if (fchmodat(folder.get(), name.c_str(), 0600, 0)) throw errno_error(errno, "cannot seal", path);
  const ShmFd fd(path, true);
  if (fd.size() < kPageBytes) throw Error(Code::corrupt, "no file of the store", path);
  ShmMapping mapping(fd.get(), 0, fd.size(), true, path);
  const MutableBytes all = mapping.writable_bytes();
  uint64_t magic = 0;
  uint32_t version = 0, kind = 0;
  std::memcpy(&magic, all.data(), sizeof magic);
  std::memcpy(&version, all.data() + sizeof magic, sizeof version);
  std::memcpy(&kind, all.data() + kSealOffset + offsetof(Seal, kind), sizeof kind);
  const bool slab = magic == kSlabMagic;
  uint64_t end = kPageBytes;  // of a child's file only the header
  if (slab) end = fd.size();
  if (magic == kSandboxMagic) {
    SandboxHeader header;
    std::memcpy(&header, all.data(), sizeof header);
    end = std::clamp<uint64_t>(header.mutable_offset, kPageBytes, fd.size());
  } else if (!slab && magic != kChildMagic) {
    throw Error(Code::corrupt, "no file of the store", path);
  }
  if (kind == 0) {
    seal(path, all.first(kPageBytes), all.subspan(kPageBytes, end - kPageBytes));
    if (slab && version > 1) {
      const uint64_t checksum = checksum64(all.first(kSlabChecksumOffset));
      std::memcpy(all.data() + kSlabChecksumOffset, &checksum, sizeof checksum);
    }
  }
  if (slab && fchmodat(folder.get(), name.c_str(), 0400, 0)) throw errno_error(errno, "cannot seal", path);
}

void check_seal(const std::string& path, Bytes header_page, Bytes body) {
  const auto key = store_key_of(path);
  if (!key) return;
  Seal found;
  std::memcpy(&found, header_page.data() + kSealOffset, sizeof found);
  if (found.kind != kGmac)
    throw Error(Code::corrupt, "carries no seal of this node", path, "somebody else has put it there");
  unsigned char tag[sizeof found.tag];
  make_tag(*key, found.nonce, header_page, body, tag);
  if (CRYPTO_memcmp(tag, found.tag, sizeof tag) != 0)
    throw Error(Code::corrupt, "its seal is not this node's", path,
                "somebody has changed it, or the store's key was lost");
}

}  // namespace medes
