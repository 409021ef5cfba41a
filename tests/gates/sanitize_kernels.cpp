// Random problems through every CPU kernel, for AddressSanitizer and UndefinedBehaviorSanitizer. Each buffer is a heap
// block of exactly the documented size, so that a read or write past it is caught.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "bits.h"
#include "cpu/kernels.h"
#include "occlude_blocks.h"
#include "occlude_points.h"
#include "points.h"

using namespace attrdrop;

static std::mt19937 generator(1);

static int64_t below(int64_t end) { return static_cast<int64_t>(generator() % end); }
static bool coin() { return below(2) == 0; }

static std::vector<float> small_integers(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(below(7) - 3);
  if (below(4) == 0) values[below(count)] = NAN;
  return values;
}

// Scratch memory as the operators give it: aligned, and exactly as large as asked for.
struct Scratch {
  explicit Scratch(int64_t bytes) : data(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
  ~Scratch() { std::free(data); }
  void* data;
};

// A cloud of whole blocks, the last of them partly filled, and what is chosen of it and found in it.
static void sample(const Kernels& kernel) {
  const int64_t blocks = 1 + below(4), size = blocks * CLOUD_BLOCK, scales = 1 + below(4), n = below(40);
  std::vector<float> x(size, NAN), y(size, NAN), z(size, NAN), nearest(size);
  for (int64_t i = 0; i < size - below(CLOUD_BLOCK); ++i) {
    x[i] = below(9) == 0 ? NAN : static_cast<float>(below(7) - 3);
    y[i] = static_cast<float>(below(7) - 3), z[i] = static_cast<float>(below(7) - 3);
  }
  const Cloud cloud{x.data(), y.data(), z.data(), size};
  std::vector<int64_t> chosen(n), k(scales), found(scales);
  kernel.farthest_points({cloud, below(size), n, nearest.data(), chosen.data()});
  std::vector<float> radius2(scales);
  int64_t columns = 0;
  for (int64_t i = 0; i < scales; ++i) columns += k[i] = 1 + below(90), radius2[i] = static_cast<float>(below(12));
  std::vector<int64_t> index(columns);
  kernel.ball_query({cloud, 1, static_cast<float>(below(9) - 4), -1, radius2.data(), k.data(), scales, found.data(),
                     index.data()});
}

// One cloud of two, of which a part may be padding.
static void drop_points(const Kernels& kernel) {
  const int64_t size = below(200), channels = 1 + below(3);
  std::vector<float> points = small_integers(2 * size * channels + 1);
  const std::vector<float> relevance = small_integers(2 * size * channels + 1);
  const std::unique_ptr<bool[]> valid(new bool[2 * size]), dropped(new bool[2 * size]);
  for (int64_t i = 0; i < 2 * size; ++i) valid[i] = below(4) > 0;
  PointProblem p{};
  p.points = {points.data(), size * channels, 1, size, Dtype::f32}, p.channels = static_cast<int32_t>(channels);
  p.replacement = static_cast<Replacement>(below(3));
  if (below(4)) p.relevance = {relevance.data(), size * channels, channels, 1, Dtype::f32};
  if (coin()) p.valid = {valid.get(), size, 1};
  p.rule = {0.3, static_cast<double>(below(11)) / 10, coin(), static_cast<Norm>(below(3)), 5};
  p.count = 2, p.size = static_cast<uint32_t>(size), p.relevance_channels = static_cast<int32_t>(channels);
  p.dropped = dropped.get();
  const int64_t cloud = below(2);
  if (!kernel.choose_points(p, cloud, Scratch(kernel.points_scratch(p)).data)) return;
  kernel.replace_points(p, cloud, static_cast<uint32_t*>(Scratch(2 * sizeof(uint32_t) * size).data));
}

// Groups of points, some of them out of range, and the gradient back to all points or some channels of them.
static void group(const Kernels& kernel) {
  const int64_t size = 1 + below(60), channels = 3 + below(40), each = 1 + below(9), k = 1 + below(20);
  const bool is_half = coin(), is_last = coin();
  const Dtype type = is_half ? coin() ? Dtype::f16 : Dtype::bf16 : Dtype::f32;
  const int64_t item = is_half ? 2 : 4;
  const std::vector<unsigned char> points(2 * size * channels * item, 7), centres(2 * each * 3 * item, 5);
  std::vector<int64_t> index(2 * each * k);
  for (int64_t& at : index) at = below(30) ? below(size) : size;
  std::vector<unsigned char> grouped(2 * each * k * channels * item), sums(2 * size * channels * item);
  GroupProblem p{};
  p.points = {points.data(), size * channels, is_last ? channels : 1, is_last ? 1 : size, type};
  p.index = {index.data(), each * k, k, 1};
  if (coin()) p.centres = {centres.data(), each * 3, 3, 1, type};
  p.clouds = 2, p.size = static_cast<int32_t>(size), p.channels = static_cast<int32_t>(channels);
  p.centres_each = each, p.k = k, p.out = grouped.data();
  kernel.gather_rows(p, 0, 2 * each);
  const RowView grad{grouped.data(), each * k * channels, k * channels, channels, 1};
  const ScatterProblem scatter{grad, p.index, nullptr, nullptr, type, 2, p.size, p.channels, each, k, sums.data()};
  const int64_t first = channels == 3 ? 0 : below(channels), width = channels == 3 ? 3 : 1 + below(channels - first);
  std::vector<float> room(size * width);
  kernel.add_rows(scatter, below(2), first, width, room.data());
}

// A block around a cell of a relevance map of its own size, and one of anywhere.
static void occlude(const Kernels& kernel) {
  const Element type = static_cast<Element>(below(4));
  const int64_t item = type == Element::u8 ? 1 : type == Element::f32 ? 4 : 2, c = 1 + below(4);
  const auto height = static_cast<int32_t>(1 + below(40)), width = static_cast<int32_t>(1 + below(40));
  const auto h = static_cast<int32_t>(1 + below(50)), w = static_cast<int32_t>(1 + below(50));
  const int64_t plane = int64_t{height} * width, channels = 1 + below(3);
  std::vector<unsigned char> images(2 * c * plane * item), source(images.size()), values(c * item);
  const std::vector<float> cells = small_integers(2 * channels * h * w);
  std::vector<int32_t> boxes(8);
  BlockProblem p{};
  const auto view = [&](std::vector<unsigned char>& data) {
    return coin() ? ImageView{data.data(), c * plane, 1, width * c, c} : ImageView{data.data(), c * plane, plane, width, 1};
  };
  p.fill.images = view(images), p.fill.type = type;
  if (coin()) p.fill.source = view(source), p.fill.sources = 2;
  else if (coin()) p.fill.constant = {values.data(), 1, 0};
  p.fill.is_random = coin(), p.fill.keep = coin(), p.fill.seed = 3;
  p.fill.count = 2, p.fill.channels = static_cast<int32_t>(c), p.fill.height = height, p.fill.width = width;
  p.rule = {1.0, 0.2, {0.02, 0.6}, {-1.0, 1.0}, coin() ? 1 : 1 + below(9000), coin(), coin(), generator()};
  RelevanceView& map = p.relevance;
  map.data = cells.data(), map.type = Element::f32, map.count = 2, map.channels = static_cast<int32_t>(channels);
  map.height = h, map.width = w, map.is_flat = coin();
  map.row = channels * h * w, map.channel = h * w, map.line = w, map.column = 1;
  p.boxes = boxes.data();
  const int64_t image = below(2);
  kernel.choose_block(p, image, below(3) - 1, Scratch(kernel.block_scratch(p)).data);
  int32_t* box = boxes.data() + 4 * image;
  kernel.fill_block(p.fill, image, {box[0], box[1], box[2], box[3]});
  const auto top = static_cast<int32_t>(below(height)), left = static_cast<int32_t>(below(width));
  kernel.fill_block(p.fill, image, {top, left, static_cast<int32_t>(1 + below(height - top)),
                                    static_cast<int32_t>(1 + below(width - left))});
}

static void attend(const Kernels& kernel) {
  const int64_t n_q = 1 + below(110), n_k = 1 + below(420), d = 1 + below(40), d_v = 1 + below(40), words = word_count(n_k);
  const std::vector<float> q = small_integers(n_q * d), k = small_integers(n_k * d), v = small_integers(n_k * d_v);
  const std::vector<float> bias = small_integers(n_q * n_k), grad_out = small_integers(n_q * d_v);
  std::vector<float> out(n_q * d_v), lse(n_q), grad_q(n_q * d), grad_bias(n_q * n_k);
  std::vector<float> grad_k(n_k * kernel.padded_width(d)), grad_v(n_k * kernel.padded_width(d_v));
  std::vector<uint32_t> keep(n_q * words);
  for (uint32_t& word : keep) word = below(3) ? static_cast<uint32_t>(generator()) : 0u;
  AttentionBackwardProblem b{};
  AttentionProblem& p = b.forward;
  p.q = {q.data(), d, Dtype::f32}, p.k = {k.data(), d, Dtype::f32}, p.v = {v.data(), d_v, Dtype::f32};
  p.keep = keep.data(), p.keep_row_stride = coin() ? words : 0;
  if (coin()) p.bias = {bias.data(), n_k, Dtype::f32}, p.bias_column_stride = coin();
  p.scale = 0.3f, p.draw = {5, 0, 1, coin() ? 0u : static_cast<uint32_t>(below(65537))};
  p.n_q = n_q, p.n_k = n_k, p.d = d, p.d_v = d_v;
  p.out = {out.data(), d_v, Dtype::f32}, p.lse = lse.data();
  std::vector<uint32_t> rows(n_q * words);
  KeepMaskProblem ranked{};
  ranked.n_q = n_q, ranked.n_k = n_k, ranked.valid = {keep.data(), p.keep_row_stride, false};
  ranked.draw = {6, 0, 1, static_cast<uint32_t>(below(65537))}, ranked.region = coin() ? Region::high : Region::low;
  ranked.share_below = share_below(below(11) / 10.0, ranked.region), ranked.round_to_bf16 = coin();
  ranked.rows = rows.data();
  if (coin()) b.ranked = &ranked;
  const Walk walk = b.ranked ? Walk::ranked_backward : Walk::backward;
  const Scratch forward(kernel.attention_scratch(p, Walk::forward)), backward(kernel.attention_scratch(p, walk));
  kernel.pack_keys(p, Walk::forward, forward.data);
  kernel.attention(p, 0, n_q, forward.data);
  b.grad_out = {grad_out.data(), d_v, Dtype::f32}, b.grad_q = {grad_q.data(), d, Dtype::f32};
  b.grad_k = grad_k.data(), b.grad_v = grad_v.data();
  if (coin()) b.grad_bias = grad_bias.data(), b.grad_bias_row_stride = n_k, b.grad_bias_column_stride = coin();
  kernel.pack_keys(p, walk, backward.data);
  Counts counts{};
  kernel.attention_backward(b, 0, n_q, backward.data, counts);
  kernel.write_rows(b.grad_q, 0, n_q, d, q.data(), d, nullptr);
}

int main() {
  const Kernels& kernel = kernels();
  for (int round = 0; round < 400; ++round) {
    sample(kernel);
    drop_points(kernel);
    group(kernel);
    occlude(kernel);
    attend(kernel);
    const int64_t n_q = 1 + below(70), n_k = 1 + below(140), d = 1 + below(20), k = 1 + below(30);
    const int64_t words = word_count(n_k), column_words = word_count(n_q);
    std::vector<float> x = small_integers(n_q * d), y = small_integers(n_k * d), lse(n_q);
    std::vector<uint32_t> valid(n_q * words), rows(n_q * words), cols(n_k * column_words);
    for (uint32_t& word : valid) word = static_cast<uint32_t>(generator());

    KeepMaskProblem keep{};
    keep.x = {x.data(), d, Dtype::f32};
    keep.y = {y.data(), d, Dtype::f32};
    keep.n_q = n_q, keep.n_k = n_k, keep.d = d;
    if (below(3) == 0) {
      keep.weight_q = keep.x, keep.weight_k = keep.y, keep.d_weight = d;
      keep.weight_lse = lse.data();
    }
    const std::vector<float> keep_bias = small_integers(n_q * n_k);
    if (below(3) == 0) keep.bias = {keep_bias.data(), n_k, Dtype::f32}, keep.bias_column_stride = 1;
    keep.scale = 0.1f;
    keep.valid = {coin() ? valid.data() : nullptr, words, coin()};
    keep.draw = {77, 1, 2, static_cast<uint32_t>(below(65537))};
    keep.region = coin() ? Region::high : Region::low;
    keep.share_below = static_cast<float>(below(101)) / 100.0f;
    keep.round_to_bf16 = coin();
    keep.rows = rows.data();
    Counts counts{};
    kernel.keep_mask(keep, 0, n_q, Scratch(kernel.keep_mask_scratch(keep)).data, counts);

    kernel.transpose_groups({rows.data(), n_q * words, words, n_q, n_k, cols.data()}, 0, column_words);
    const std::vector<uint8_t> mask(n_q * n_k, 1);
    kernel.pack_words({mask.data(), n_k, 1, n_k, rows.data()}, 0, n_q * words);

    std::vector<float> values(k > n_k ? k : n_k);
    std::vector<int64_t> indices(k);
    const Reduction reduction = coin() ? Reduction::topk : Reduction::sum;
    AttributionProblem attribution{keep};
    if (keep.weight_lse && coin()) attribution.x = attribution.y = {}, attribution.d = 0, attribution.is_weight_alone = true;
    attribution.reduction = reduction, attribution.values = values.data(), attribution.indices = indices.data();
    attribution.k = k;
    kernel.attribution(attribution, Scratch(kernel.attribution_scratch(attribution)).data);
  }
  std::printf("%s: 400 problems\n", kernel.isa);
}
