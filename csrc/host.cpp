// attrdrop._host: the exact random draws and bit format over NumPy, from the headers that the kernels use, and the CUDA
// kernels run by the emulator. No torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bits.h"
#include "emulator/bindings.h"
#include "philox.h"
#include "select.h"

namespace py = pybind11;
using namespace attrdrop;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// counters (..., 4) -> words (..., 4)
static py::array_t<uint32_t> philox(uint64_t seed, Array<uint32_t> counters) {
  if (counters.ndim() < 1 || counters.shape(counters.ndim() - 1) != 4)
    throw py::value_error("counters must have a last dimension of 4");
  py::array_t<uint32_t> out(std::vector<py::ssize_t>(counters.shape(), counters.shape() + counters.ndim()));
  const uint32_t* in = counters.data();
  uint32_t* result = out.mutable_data();
  for (py::ssize_t i = 0; i < counters.size(); i += 4) {
    const Philox4 r = philox4x32_10(seed, {{in[i], in[i + 1], in[i + 2], in[i + 3]}});
    for (int j = 0; j < 4; ++j) result[i + j] = r.word[j];
  }
  return out;
}

// Dropped bits of rows 0 .. n_rows of one (sample, head): (n_rows, words)
static py::array_t<uint32_t> bernoulli_words(uint64_t seed, uint32_t layer, uint32_t head, uint32_t sample,
                                             int64_t n_rows, int64_t words, double rate) {
  py::array_t<uint32_t> out({n_rows, words});
  auto at = out.mutable_unchecked<2>();
  for (int64_t row = 0; row < n_rows; ++row)
    for (int64_t word = 0; word < words; ++word)
      at(row, word) = bernoulli_word(seed, {static_cast<uint32_t>(row), head + 65536 * layer, sample},
                                     static_cast<uint32_t>(word), drop_threshold(rate));
  return out;
}

static py::array_t<uint32_t> pack_mask(Array<bool> mask) {
  if (mask.ndim() != 2) throw py::value_error("mask must have 2 dimensions");
  const int64_t rows = mask.shape(0), n = mask.shape(1);
  py::array_t<uint32_t> out({rows, word_count(n)});
  auto at = out.mutable_unchecked<2>();
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t word = 0; word < word_count(n); ++word)
      at(row, word) = pack_word(reinterpret_cast<const uint8_t*>(mask.data()) + row * n, word, n, 1);
  return out;
}

static py::array_t<bool> unpack_mask(Array<uint32_t> bits, int64_t n) {
  if (bits.ndim() != 2 || bits.shape(1) != word_count(n))
    throw py::value_error("bits must have shape (rows, ceil(n / 32))");
  py::array_t<bool> out({static_cast<int64_t>(bits.shape(0)), n});
  auto at = out.mutable_unchecked<2>();
  for (int64_t row = 0; row < bits.shape(0); ++row)
    for (int64_t j = 0; j < n; ++j) at(row, j) = test_bit(bits.data(row, 0), j);
  return out;
}

PYBIND11_MODULE(_host, m) {
  bind_emulator(m);
  bind_pack_mask(m);
  bind_keep_mask(m);
  bind_occlude_blocks(m);
  bind_farthest_point_sample(m);
  bind_ball_query(m);
  bind_group_points(m);
  bind_occlude_points(m);
  m.def("philox", &philox, py::arg("seed"), py::arg("counters"));
  m.def("bernoulli_words", &bernoulli_words, py::arg("seed"), py::arg("layer"), py::arg("head"), py::arg("sample"),
        py::arg("n_rows"), py::arg("words"), py::arg("rate"));
  m.def("pack_mask", &pack_mask, py::arg("mask"));
  m.def("unpack_mask", &unpack_mask, py::arg("bits"), py::arg("n"));
  m.def("ordered_key", &ordered_key, py::arg("value"));
  m.def("threshold_rank",
        [](int32_t n, double p, bool low) {
          return threshold_rank(n, share_below(p, low ? Region::low : Region::high));
        },
        py::arg("n"), py::arg("p"), py::arg("low") = false);
}
