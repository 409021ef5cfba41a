// ldmatrix, and mma.sync m16n8k16 with float32 sums, for bfloat16 and float16.
//
// Fragments: lane = 4 g + t. a[0..3]: rows g, g + 8, g, g + 8 at k = 2t, 2t, 2t + 8, 2t + 8; b[0..1]: column g at k = 2t,
// 2t + 8; c[0..3]: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). A register holds two neighbours in k.
#pragma once
#include "cuda/shared.cuh"
#include "cuda/types.cuh"

namespace attrdrop {

#if defined(__CUDACC__)
// Four 8 x 8 matrices from shared memory. Lane 8 i + j gives the address of row j of matrix i, 16 bytes; lane 4 g + t gets
// elements 2t and 2t + 1 of row g of matrix i in m[i].
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (T::IS_BF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}
#else
namespace emulator {

struct Matrices {
  uint32_t* m;
  const void* row;
};

inline void combine_load_matrices(void* const* arguments) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const auto* row = static_cast<const unsigned char*>(static_cast<const Matrices*>(arguments[8 * i + lane / 4])->row);
      if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix reads a row that is not aligned to 16 bytes");
      memcpy(static_cast<const Matrices*>(arguments[lane])->m + i, row + 4 * (lane % 4), 4);
    }
}

struct Fragments {
  float* c;
  const uint32_t *a, *b;
};

template <class T>
void combine_mma(void* const* arguments) {
  float a[16][16], b[8][16];  // (row, k) and (column, k)
  for (int lane = 0; lane < 32; ++lane) {
    const auto* f = static_cast<const Fragments*>(arguments[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int k = 0; k < 2; ++k)
      for (int half = 0; half < 2; ++half) {
        const int at = 8 * k + 2 * t + half;
        a[g][at] = T::widen(static_cast<uint16_t>(f->a[2 * k] >> 16 * half));
        a[g + 8][at] = T::widen(static_cast<uint16_t>(f->a[2 * k + 1] >> 16 * half));
        b[g][at] = T::widen(static_cast<uint16_t>(f->b[k] >> 16 * half));
      }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float& sum = static_cast<const Fragments*>(arguments[lane])->c[i];
      const float *row = a[lane / 4 + 8 * (i / 2)], *column = b[2 * (lane % 4) + i % 2];
      for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
    }
}

}  // namespace emulator

inline void load_matrices(uint32_t (&m)[4], SharedAddress row, ATTRDROP_SITE) {
  emulator::Matrices mine{m, row};
  emulator::collective(~0u, &mine, &emulator::combine_load_matrices, site);
}

template <class T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ATTRDROP_SITE) {
  emulator::Fragments mine{c, a, b};
  emulator::collective(~0u, &mine, &emulator::combine_mma<T>, site);
}
#endif

}  // namespace attrdrop
