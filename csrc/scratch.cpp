// See scratch.h. A block is taken out of its slot while it is leased, so that nobody else can have it.
#include "scratch.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(LTH_SCRATCH_FENCES)
#include <sanitizer/asan_interface.h>
#endif

namespace lth {

struct Block {
  size_t capacity;
  int oversized;  // leases in a row that needed less than a quarter of it
  char* data;
};

namespace {

constexpr int kSlots = 8;
constexpr int kPatience =
    64;  // such leases before a block is freed: a large layer that returns every step keeps its block
constexpr size_t kPage = 4096;
std::atomic<Block*> slots[kSlots];

void destroy(Block* block) {
  std::free(block->data);
  delete block;
}

Block* create(size_t bytes) {
  const size_t capacity = (bytes + bytes / 8 + kPage - 1) / kPage * kPage;
  char* const data = static_cast<char*>(std::aligned_alloc(64, capacity));
  if (data == nullptr) throw std::bad_alloc();
  return new Block{capacity, 0, data};
}

}  // namespace

Scratch::Scratch(const Plan& plan) : block_(nullptr) {
  const size_t bytes = plan.bytes() == 0 ? 64 : plan.bytes();
  for (std::atomic<Block*>& slot : slots) {
    block_ = slot.exchange(nullptr, std::memory_order_acquire);
    if (block_ != nullptr) break;
  }
  if (block_ != nullptr) {
    block_->oversized = bytes < block_->capacity / 4 ? block_->oversized + 1 : 0;
    if (block_->capacity < bytes || block_->oversized > kPatience) {
      destroy(block_);
      block_ = nullptr;
    }
  }
  if (block_ == nullptr) block_ = create(bytes);
  data_ = block_->data;
#if defined(LTH_SCRATCH_FENCES)
  ASAN_POISON_MEMORY_REGION(data_, block_->capacity);
  for (const Plan::Piece& piece : plan.pieces_) ASAN_UNPOISON_MEMORY_REGION(data_ + piece.offset, piece.bytes);
#endif
}

Scratch::~Scratch() {
#if defined(LTH_SCRATCH_FENCES)
  ASAN_UNPOISON_MEMORY_REGION(data_, block_->capacity);
#endif
  for (std::atomic<Block*>& slot : slots) {
    Block* expected = nullptr;
    if (slot.compare_exchange_strong(expected, block_, std::memory_order_release)) return;
  }
  destroy(block_);
}

int64_t trim() {
  int64_t freed = 0;
  for (std::atomic<Block*>& slot : slots) {
    Block* const block = slot.exchange(nullptr, std::memory_order_acquire);
    if (block == nullptr) continue;
    freed += static_cast<int64_t>(block->capacity);
    destroy(block);
  }
  return freed;
}

}  // namespace lth
