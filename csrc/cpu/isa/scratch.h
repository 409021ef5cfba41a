// Scratch memory of one task.
#pragma once
#include "bits.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

// Hands out 64-byte aligned parts of one block of scratch memory. From a null base only the total counts.
struct Carver {
  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(next);
    next += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  char* next;
};

static inline int64_t padded(int64_t columns) { return 32 * word_count(columns); }

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
