// Random problems through the emulated CUDA kernels, for AddressSanitizer and UndefinedBehaviorSanitizer. Each buffer is a
// heap block of exactly the size that the kernel may use, and shared memory has red zones, so that a read or write past
// either is caught. With the argument "overrun" a kernel writes past its shared memory, which must be caught.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/ball_query.cuh"
#include "cuda/farthest_point_sample.cuh"
#include "cuda/group_points.cuh"
#include "cuda/keep_mask_launch.cuh"
#include "cuda/occlude_blocks.cuh"
#include "cuda/occlude_points.cuh"
#include "emulator/samples.cuh"

using namespace attrdrop;

static std::mt19937 generator(1);

static int64_t below(int64_t end) { return static_cast<int64_t>(generator() % end); }
static bool coin() { return below(2) == 0; }

// Elements whose bits are small integers in the type of the input, at an address that is or is not a multiple of 16.
struct Elements {
  Elements(Dtype input, int64_t count, bool is_aligned) : size(input == Dtype::f32 ? 4 : 2) {
    const int64_t offset = is_aligned ? 0 : size;  // malloc aligns to 16 bytes
    memory.reset(static_cast<unsigned char*>(std::malloc(offset + count * size)));
    data = memory.get() + offset;
    for (int64_t i = 0; i < count; ++i) {
      const float value = below(50) == 0 ? NAN : static_cast<float>(below(5) - 2);
      static const uint16_t halves[] = {0xC000, 0xBC00, 0, 0x3C00, 0x4000};
      const uint16_t bf16 = static_cast<uint16_t>(__float_as_uint(value) >> 16);
      const uint16_t f16 = value != value ? 0x7E00 : halves[static_cast<int>(value) + 2];
      if (input == Dtype::f32) std::memcpy(data + 4 * i, &value, 4);
      else std::memcpy(data + 2 * i, input == Dtype::bf16 ? &bf16 : &f16, 2);
    }
  }
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  int64_t size;
  std::unique_ptr<unsigned char, Free> memory;
  unsigned char* data = nullptr;
};

static void overrun() {
  std::vector<int> in(SAMPLE_THREADS), out(SAMPLE_THREADS);
  const int *source = in.data();
  int* target = out.data();
  ATTRDROP_LAUNCH(sample_kernel, 1, SAMPLE_THREADS, SAMPLE_THREADS * sizeof(int), Stream{1}, source, target,
                  Mistake::write_past_dynamic_shared);
}

// Blocks around cells of a relevance map that begins at any address and has rows of any length.
static void occlude(uint64_t round) {
  const Element type = static_cast<Element>(below(4)), score = static_cast<Element>(1 + below(3));
  const Dtype input = score == Element::f32 ? Dtype::f32 : score == Element::f16 ? Dtype::f16 : Dtype::bf16;
  const int64_t item = type == Element::u8 ? 1 : type == Element::f32 ? 4 : 2, n = 1 + below(3), c = 1 + below(4);
  const int32_t height = static_cast<int32_t>(1 + below(40)), width = static_cast<int32_t>(1 + below(40));
  const int32_t h = static_cast<int32_t>(1 + below(70)), w = static_cast<int32_t>(1 + below(70));
  const int64_t plane = int64_t{height} * width, channels = 1 + below(3);
  std::vector<unsigned char> images(n * c * plane * item), source(images.size()), values(c * item);
  const Elements cells(input, n * channels * h * w, coin());
  const std::vector<int64_t> index{n - 1}, from(n, n + 5), ids(n, 9);
  std::vector<int32_t> boxes(4 * n, -7);

  BlockProblem args{};
  const auto view = [&](std::vector<unsigned char>& data, bool is_last) {
    return is_last ? ImageView{data.data(), c * plane, 1, width * c, c} : ImageView{data.data(), c * plane, plane, width, 1};
  };
  args.fill.images = view(images, coin()), args.fill.type = type;
  if (coin()) {
    args.fill.source = view(source, coin()), args.fill.sources = n;
    if (coin()) args.fill.source_index = from.data(), args.fill.source_index_stride = 1;
  } else if (coin()) {
    args.fill.constant = {values.data(), 1, 0};
  }
  if (coin()) args.fill.sample_ids = {ids.data(), 1};
  args.fill.is_random = coin(), args.fill.keep = coin(), args.fill.seed = round;
  args.fill.count = n, args.fill.channels = static_cast<int32_t>(c), args.fill.height = height, args.fill.width = width;
  args.rule = {1.0, 0.2, {0.02, 0.6}, {-1.0, 1.0}, coin() ? 1 : 1 + below(9000), coin(), coin(), round};
  RelevanceView& map = args.relevance;
  map.data = cells.data, map.type = score, map.count = n, map.channels = static_cast<int32_t>(channels);
  map.height = h, map.width = w, map.is_flat = coin();
  map.row = channels * h * w, map.channel = h * w, map.line = w, map.column = 1;
  if (coin()) map.has_index = true, map.index = index.data(), map.index_stride = 1, map.count = 1;
  args.boxes = boxes.data();
  launch_occlude_blocks(args, Stream{round});
  for (int32_t& side : boxes) side += static_cast<int32_t>(below(30)) - 15;
  launch_fill_blocks(args.fill, boxes.data(), Stream{round});
}

// Points in channels first or last, all that is done with them, and the gradient back to them.
static void group(uint64_t round) {
  const auto type = static_cast<Dtype>(below(3));
  const auto clouds = static_cast<int32_t>(1 + below(2)), channels = static_cast<int32_t>(3 + below(14));
  const auto size = static_cast<int32_t>(1 + below(below(8) ? 200 : 9000));
  const int64_t centres_each = 1 + below(9), k = 1 + below(40), n = below(6), rows = clouds * centres_each * k;
  const Elements points(type, int64_t{clouds} * size * channels, coin()), centres(type, clouds * centres_each * 3, coin());
  const bool is_last = coin();
  const PointView cloud{points.data, int64_t{size} * channels, is_last ? channels : 1, is_last ? 1 : size, type};
  const PointView from{centres.data, centres_each * 3, 3, 1, type};
  const std::unique_ptr<bool[]> mask(new bool[clouds * size]);
  for (int64_t i = 0; i < int64_t{clouds} * size; ++i) mask[i] = below(4) > 0;
  const ValidView valid = coin() ? ValidView{mask.get(), size, 1} : ValidView{};
  const std::vector<int64_t> start(clouds, size + 7);
  std::vector<float> nearest(size > FARTHEST_MOST_HELD ? clouds * size : 0);
  std::vector<int64_t> chosen(clouds * n), index(rows);
  launch_farthest_point_sample({cloud, valid, coin() ? StartView{start.data(), 1} : StartView{}, clouds, size, n,
                                nearest.data(), chosen.data()}, Stream{round});

  QueryArgs query{cloud, from, valid, clouds, centres_each, size, k > 1 ? 2 : 1, static_cast<int32_t>(k), {}, {}, index.data()};
  query.radius2[0] = 1, query.radius2[1] = 4, query.k[0] = static_cast<int32_t>(k > 1 ? k / 2 : 1);
  query.k[1] = static_cast<int32_t>(k - query.k[0]);
  launch_ball_query(query, Stream{round});
  if (coin()) index[below(rows)] = 1 << 20;

  std::vector<unsigned char> grouped(rows * channels * points.size), sums(int64_t{clouds} * size * channels * points.size);
  launch_group_points({cloud, {index.data(), centres_each * k, k, 1}, coin() ? from : PointView{}, clouds, size, channels,
                       centres_each, k, grouped.data()}, Stream{round});
  std::vector<int64_t> order(rows), starts(int64_t{clouds} * size + 1);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = 0; i < starts.size(); ++i)  // all rows of a cloud belong to its first point
    starts[i] = static_cast<int64_t>((i + size - 1) / size) * centres_each * k;
  launch_scatter_points({{grouped.data(), centres_each * k * channels, k * channels, channels, 1}, {}, order.data(),
                         starts.data(), type, clouds, size, channels, centres_each, k, sums.data()}, Stream{round});
}

// Clouds in channels first or last, with relevance of its own type, and room for scratch memory where they are large.
static void drop_points(uint64_t round) {
  const auto type = static_cast<Dtype>(below(3)), guide = static_cast<Dtype>(below(3));
  const int64_t n = 1 + below(3), size = below(12) ? 1 + below(300) : 8193 + below(300), c = below(5), maps = 1 + below(3);
  const Elements points(type, n * size * c, coin()), relevance(guide, n * size * maps, coin()), values(type, c, coin());
  const std::unique_ptr<bool[]> valid(new bool[n * size]), dropped(new bool[n * size]);
  for (int64_t i = 0; i < n * size; ++i) valid[i] = below(4) > 0;
  const std::vector<int64_t> ids(n, 9);

  PointProblem p{};
  const bool is_last = coin();
  p.points = {points.data, size * c, is_last ? c : 1, is_last ? 1 : size, type};
  if (below(4)) p.relevance = {relevance.data, size * maps, maps, 1, guide};
  if (coin()) p.valid = {valid.get(), size, 1};
  p.rule = {0.3, static_cast<double>(below(11)) / 10, coin(), static_cast<Norm>(below(3)), round};
  p.replacement = static_cast<Replacement>(below(3));
  if (coin()) p.constant = {values.data, 1, 0};
  if (coin()) p.sample_ids = {ids.data(), 1};
  p.count = n, p.size = static_cast<uint32_t>(size), p.channels = static_cast<int32_t>(c);
  p.relevance_channels = static_cast<int32_t>(maps), p.dropped = dropped.get();
  std::vector<unsigned char> scratch;
  const auto new_scratch = [&](int64_t bytes) {
    scratch = std::vector<unsigned char>(bytes, 0xEE);
    return static_cast<void*>(scratch.data());
  };
  launch_occlude_points(p, new_scratch, Stream{round});
}

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "overrun") {
    overrun();
    return 0;
  }
  constexpr int problems = 60;
  for (int round = 0; round < problems; ++round) {
    const auto input = static_cast<Dtype>(below(3)), bias_type = static_cast<Dtype>(below(3));
    const int64_t longest = std::vector<int64_t>{40, 300, 600, 2500}[below(4)];
    const int64_t batch = 1 + below(2), kv_heads = 1 + below(2), heads = kv_heads * (1 + below(2));
    const int64_t n_q = 1 + below(longest > 300 ? 3 : 40), n_k = 1 + below(longest), d = below(8) ? 1 + below(140) : 0;
    const bool is_aligned = coin(), is_weighted = d > 0 && below(4) == 0, has_valid = coin();
    const int64_t stride = is_aligned ? (d + 7) / 8 * 8 : d, words = word_count(n_k), column_words = word_count(n_q);
    const auto make = [&](int64_t h, int64_t n) {  // the last row ends where its last element does
      return Elements(input, (batch * h * n - 1) * stride + d, is_aligned);
    };
    const Elements x = make(heads, n_q), y = make(kv_heads, n_k), q = make(heads, n_q), k = make(kv_heads, n_k);
    std::vector<float> lse(batch * heads * n_q, 3.0f);
    std::vector<uint32_t> valid(batch * n_q * words), rows(batch * heads * n_q * words), cols(batch * heads * n_k * column_words);
    for (uint32_t& word : valid) word = static_cast<uint32_t>(generator());
    std::vector<unsigned long long> counts(4);
    std::vector<int64_t> ids(batch, 77);

    KeepMaskArgs args{};
    args.x = {x.data, heads * n_q * stride, n_q * stride, stride};
    args.y = {y.data, kv_heads * n_k * stride, n_k * stride, stride};
    if (is_weighted) {
      args.weight_q = args.x, args.weight_q.data = q.data;
      args.weight_k = args.y, args.weight_k.data = k.data;
      args.weight_lse = lse.data(), args.d_weight = static_cast<int32_t>(d);
    }
    if (has_valid) args.valid = valid.data(), args.valid_batch = n_q * words, args.valid_row = words;
    if (coin()) args.sample_ids = ids.data(), args.sample_stride = 1;
    args.rows = rows.data(), args.cols = cols.data(), args.counts = counts.data();
    args.seed = 77, args.first_head = 2 * 65536;
    args.batch = static_cast<int32_t>(batch), args.heads = static_cast<int32_t>(heads);
    args.groups = static_cast<int32_t>(heads / kv_heads);
    args.n_q = static_cast<int32_t>(n_q), args.n_k = static_cast<int32_t>(n_k), args.d = static_cast<int32_t>(d);
    args.dtype = input, args.scale = is_weighted ? 0.1f : 1.0f;
    const Elements bias(bias_type, batch * n_k, coin());  // of all heads and queries
    if (below(3) == 0) args.bias = {bias.data, n_k, 0, 0, 1, bias_type};
    args.region = coin() ? Region::high : Region::low, args.share = share_below(static_cast<double>(below(11)) / 10, args.region);
    args.threshold = drop_threshold(static_cast<double>(below(11)) / 10);
    args.is_ranked = d > 0 || (args.bias.data && !is_weighted);
    args.is_causal = coin(), args.bf16_keys = coin(), args.is_aligned = is_aligned;
    std::vector<unsigned char> scratch;
    const auto new_scratch = [&](int64_t bytes) {
      scratch = std::vector<unsigned char>(bytes, 0xEE);
      return scratch.data();
    };
    const Limits limits{coin() ? 232448 : 110000, coin() ? SCRATCH_BYTES : 1};
    launch_keep_mask(args, limits, new_scratch, Stream{static_cast<uint64_t>(round)});

    std::vector<uint8_t> mask(n_q * n_k);
    launch_unpack_mask(rows.data(), mask.data(), n_q, n_k, words, Stream{1});
    launch_pack_mask(mask.data(), valid.data(), n_q, n_k, n_k, 1, Stream{1});
    launch_transpose_mask(rows.data(), cols.data(), batch * heads, n_q, n_k, n_q * words, words, Stream{1});
    occlude(static_cast<uint64_t>(round));
    group(static_cast<uint64_t>(round));
    drop_points(static_cast<uint64_t>(round));
  }
  std::printf("emulated: %d problems\n", problems);
}
