// Reading userfaultfd messages so that no kill of the agent loses one: into the ChangeRecord's log, where
// they stay until what they say is committed (store/change_record.h).
#pragma once

#include <linux/userfaultfd.h>

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "serving/uffd.h"
#include "store/change_record.h"

namespace medes {

class CallLog {
 public:
  // The record must outlive this; without one (a store that is full) what was read dies with the agent.
  void keep_in(ChangeRecord& record) { record_ = &record; }

  // Reads up to out.size() messages of the set under way.
  size_t read(const Uffd& uffd, std::span<uffd_msg> out);
  // The same where some may be the driver's own, which no agent may ever apply: only those that `keep` says
  // yes to go to the log and to `out`; returns how many were read. A kill in these microseconds loses the
  // sandbox.
  size_t read_some(const Uffd& uffd, std::span<uffd_msg> out, size_t& kept,
                   const std::function<bool(const uffd_msg&)>& keep);
  // Says how the messages of this set are to be applied, by a later agent too.
  void decide(ChangeRecord::Order order);
  // They are applied. `moves`: where all moved pages are now; nothing when none moved.
  void commit(const std::optional<std::vector<MovedPages>>& moves);

  // What agents before us left: messages that were read and not committed, each with who has its descriptor.
  struct Left {
    uffd_msg message;
    Holder holder;
    uint32_t number;  // in the log
  };
  static std::optional<std::vector<Left>> left_in(const ChangeRecord& record);
  // Nothing when it cannot be known. What is read from here on belongs to the same set.
  std::optional<std::vector<Left>> take_left();
  ChangeRecord::Order left_order() const { return static_cast<ChangeRecord::Order>(record_->order.load()); }
  // Nothing when there were more moves than are kept, or the record is damaged.
  std::optional<std::vector<MovedPages>> moves() const;
  bool untouched() const { return record_->sets() == 0; }

 private:
  void begin_set();
  void add_part();
  std::unique_ptr<ChangeRecord> own_ = std::make_unique<ChangeRecord>();
  ChangeRecord* record_ = own_.get();
  uint32_t used_ = 0;  // messages of the log that must stay
};

}  // namespace medes
