// The seal of a store's file: a tag that only who has the folder's key can make, over the file's unchanging
// part. What is restored into a process comes out of such files, so a file that anybody else has changed is
// corrupt before a byte of it is used. AES-256-GMAC under a random nonce; it lies in the first page's
// padding:
//   4056   12 bytes nonce | 16 bytes tag | u32 kind (0: none, 1: this one), which the tag covers as zeros, as
//   it does the rest of the page (a slab's checksum of its header covers the seal)
#pragma once

#include <optional>
#include <string>

#include "codec/page_tags.h"
#include "common/bytes.h"

namespace medes {

// Files of `folder` are sealed when written and checked when opened from now on. Without a key nothing is.
void set_store_key(const std::string& folder, Bytes key);
// Of the folder that the file lies in.
std::optional<StoreKey> store_key_of(const std::string& path);

// Seals a file of that path under construction: its first page, and what follows up to where it may change.
void seal(const std::string& path, MutableBytes header_page, Bytes body);
// Throws corrupt for a file without a seal, or with another's. Does nothing in a folder without a key.
void check_seal(const std::string& path, Bytes header_page, Bytes body);

// Seals a file that was written before its folder had a key; the caller has opened it as what it is. One that
// carries a seal is left alone. Throws what opening throws, corrupt for no file of the store.
void seal_existing(const std::string& path);

}  // namespace medes
