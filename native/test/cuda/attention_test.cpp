// launch_attention against softmax in double over the same rounded keys, values and prefixes: every
// element type, grouped heads, head_dims, windows, pages out of order, shared and gated prefixes,
// layers without them; bits of a row alone and in batches, split and not; misuse.
#include "../../core/error.h"
#include "../../core/step.h"
#include "../../cuda/kernels.h"
#include "../check.h"
#include "aligned_data.h"

namespace manyfold {
namespace {

using namespace cuda;
using test::AlignedArray;

constexpr int32_t kLayer = 1, kLayers = 3;

// A prefix of a set, absent where n is 0, and the sequence's run over it.
struct PrefixCase {
  int32_t n;
  bool gated;
  int32_t positions;  // that a shared run takes
};
struct SequenceCase {
  std::vector<PrefixCase> prefixes;
  int32_t tokens;                  // in pages
  std::vector<int32_t> row_slots;  // a row for each of these tokens
};

// Sequences laid out as a step's tables. Memory of pages that no token has written is NaN.
template <class T>
class AttentionData {
 public:
  AttentionData(AttentionShape shape, const std::vector<SequenceCase>& cases, unsigned seed)
      : shape_(shape), random_(seed), cases_(cases) {
    for (const SequenceCase& sequence : cases) add_sequence(sequence);
    prefix_start_.push_back(static_cast<int32_t>(runs_.size()));
    fill_pool();
    q_stride_ = shape.heads * shape.head_dim + 5;
    q_.resize(row_position_.size() * static_cast<size_t>(q_stride_));
    for (float& value : q_) value = static_cast<float>(1.5 * test::normal(random_));
    counts_.rows = static_cast<int32_t>(row_position_.size());
  }

  int32_t rows() const { return static_cast<int32_t>(row_position_.size()); }
  int32_t longest() const {
    return *std::max_element(row_position_.begin(), row_position_.end()) + 1;
  }

  // Context of rows first .. first + count - 1 as they are laid out in a launch of `capacity` rows;
  // what is behind them stays poisoned.
  std::vector<T> run(int32_t first, int32_t count, int32_t capacity, int32_t most_keys,
                     bool batch_invariant) {
    counts_.rows = count;
    AttentionArgs args;
    args.shape = shape_;
    args.layer = kLayer;
    args.tables = tables(first);
    args.rows = capacity;
    args.most_keys = most_keys;
    args.kv = {reinterpret_cast<std::byte*>(pool_->data()), page_values() * sizeof(T)};
    args.q = q_.data() + static_cast<size_t>(first) * static_cast<size_t>(q_stride_);
    args.q_stride = q_stride_;
    args.context_stride = context_stride();
    AlignedArray<T> context(static_cast<size_t>(capacity) * static_cast<size_t>(context_stride()));
    AlignedArray<std::byte> scratch(attention_scratch_bytes(shape_, capacity, most_keys));
    std::memset(scratch.data(), 0xff, scratch.size());
    args.context = context.data();
    args.scratch = scratch.data();
    args.batch_invariant = batch_invariant;
    launch_attention(args, nullptr);
    return {context.data(), context.data() + context.size()};
  }

  int32_t context_stride() const { return shape_.heads * shape_.head_dim + 3; }

  // Context of one row and head in double.
  std::vector<double> expected(int32_t row, int32_t head) const {
    const int32_t sequence = row_sequence_[static_cast<size_t>(row)];
    const int32_t last = row_position_[static_cast<size_t>(row)];
    const int32_t kv_head = head / (shape_.heads / shape_.kv_heads);
    const int32_t first = shape_.window > 0 ? std::max(0, last - shape_.window + 1) : 0;
    std::vector<Key> keys;
    for (int32_t p = first; p <= last; ++p) {
      const Key key = key_at(sequence, p, kv_head);
      if (!key.k.empty()) keys.push_back(key);
    }
    std::vector<double> out = attend(row, head, keys);
    for (int32_t n = prefix_start_[static_cast<size_t>(sequence)];
         n < prefix_start_[static_cast<size_t>(sequence) + 1]; ++n) {
      const DevicePrefix& prefix = prefix_of(n);
      if (prefix.n == 0 || prefix.gated == 0) continue;
      std::vector<Key> own;
      for (int32_t i = 0; i < prefix.n; ++i) own.push_back(prefix_key(prefix, i, kv_head));
      const std::vector<double> part = attend(row, head, own);
      for (size_t d = 0; d < out.size(); ++d) out[d] += double{prefix.gate} * part[d];
    }
    return out;
  }

 private:
  struct Key {
    std::vector<double> k, v;
  };

  size_t page_values() const {
    return static_cast<size_t>(2 * shape_.kv_heads * kPageTokens * shape_.head_dim);
  }

  void add_sequence(const SequenceCase& sequence) {
    const auto index = static_cast<int32_t>(base_.size());
    prefix_start_.push_back(static_cast<int32_t>(runs_.size()));
    int32_t base = 0;
    for (const PrefixCase& prefix : sequence.prefixes) {
      add_set(prefix);
      runs_.push_back(
          {static_cast<int32_t>(sets_.size()) - 1, prefix.gated ? 0 : base, prefix.gated ? 1 : 0});
      base += prefix.gated ? 0 : prefix.positions;
    }
    base_.push_back(base);
    page0_.push_back(static_cast<int32_t>(pages_.size()));
    for (int32_t t = 0; t < sequence.tokens; t += kPageTokens)
      pages_.push_back(static_cast<int32_t>(pages_.size()));
    for (const int32_t slot : sequence.row_slots) {
      row_sequence_.push_back(index);
      row_position_.push_back(base + slot);
    }
  }

  // n 0: a set that has a prefix at another layer only.
  void add_set(const PrefixCase& prefix) {
    const auto count =
        static_cast<size_t>(std::max(prefix.n, 4) * shape_.kv_heads * shape_.head_dim);
    auto values = std::make_unique<std::vector<float>>(2 * count);
    for (float& value : *values) value = static_cast<float>(test::normal(random_));
    auto site = std::make_unique<DeviceSite>();
    site->prefix = {values->data(), values->data() + count, std::max(prefix.n, 4),
                    prefix.gated ? 1 : 0, prefix.gated ? 0.7f : 0.0f};
    auto places = std::make_unique<std::vector<int32_t>>((kLayers + 1) * kSiteCount, -1);
    const int32_t layer = prefix.n > 0 ? kLayer : kLayer + 1;
    (*places)[static_cast<size_t>(site_index({layer, Site::kAttention}))] = 0;
    sets_.push_back({places->data(), site.get()});
    prefix_at_layer_.push_back(prefix.n > 0 ? site->prefix : DevicePrefix{});
    prefix_values_.push_back(std::move(values));
    sites_.push_back(std::move(site));
    places_.push_back(std::move(places));
  }

  void fill_pool() {
    std::shuffle(pages_.begin(), pages_.end(), random_);
    pool_ = std::make_unique<AlignedArray<T>>(std::max<size_t>(1, pages_.size()) * page_values());
    std::memset(pool_->data(), 0xff, pool_->size() * sizeof(T));
    for (size_t s = 0; s < cases_.size(); ++s) {
      for (int32_t t = 0; t < cases_[s].tokens; ++t) {
        for (int32_t h = 0; h < shape_.kv_heads; ++h) {
          for (int32_t d = 0; d < shape_.head_dim; ++d) {
            T* key = slot_values(static_cast<int32_t>(s), t, h);
            key[d] = round_to<T>(static_cast<float>(test::normal(random_)));
            key[d + value_offset()] = round_to<T>(static_cast<float>(test::normal(random_)));
          }
        }
      }
    }
  }

  int32_t value_offset() const { return shape_.kv_heads * kPageTokens * shape_.head_dim; }
  T* slot_values(int32_t sequence, int32_t slot, int32_t kv_head) const {
    const size_t place =
        static_cast<size_t>(page0_[static_cast<size_t>(sequence)] + slot / kPageTokens);
    return pool_->data() + static_cast<size_t>(pages_[place]) * page_values() +
           (kv_head * kPageTokens + slot % kPageTokens) * shape_.head_dim;
  }

  StepTables tables(int32_t first_row) {
    StepTables tables{};
    tables.counts = &counts_;
    tables.row_position = row_position_.data() + first_row;
    tables.row_sequence = row_sequence_.data() + first_row;
    tables.sets = sets_.data();
    tables.sequence_base = base_.data();
    tables.sequence_page0 = page0_.data();
    tables.pages = pages_.data();
    tables.sequence_prefixes = prefix_start_.data();
    tables.prefixes = runs_.data();
    return tables;
  }

  const DevicePrefix& prefix_of(int32_t run) const {
    return prefix_at_layer_[static_cast<size_t>(runs_[static_cast<size_t>(run)].set)];
  }

  Key prefix_key(const DevicePrefix& prefix, int32_t i, int32_t kv_head) const {
    const int32_t at = (i * shape_.kv_heads + kv_head) * shape_.head_dim;
    return {{prefix.k + at, prefix.k + at + shape_.head_dim},
            {prefix.v + at, prefix.v + at + shape_.head_dim}};
  }

  // Empty where a shared run has no prefix at this layer.
  Key key_at(int32_t sequence, int32_t position, int32_t kv_head) const {
    const int32_t base = base_[static_cast<size_t>(sequence)];
    if (position < base) {
      for (int32_t n = prefix_start_[static_cast<size_t>(sequence)];
           n < prefix_start_[static_cast<size_t>(sequence) + 1]; ++n) {
        const PrefixRun& run = runs_[static_cast<size_t>(n)];
        const int32_t i = position - run.first;
        if (run.gated == 0 && i >= 0 && i < prefix_of(n).n)
          return prefix_key(prefix_of(n), i, kv_head);
      }
      return {};
    }
    const T* k = slot_values(sequence, position - base, kv_head);
    Key key;
    for (int32_t d = 0; d < shape_.head_dim; ++d) {
      key.k.push_back(load(k[d]));
      key.v.push_back(load(k[d + value_offset()]));
    }
    return key;
  }

  std::vector<double> attend(int32_t row, int32_t head, const std::vector<Key>& keys) const {
    const float* q = q_.data() + static_cast<size_t>(row) * static_cast<size_t>(q_stride_) +
                     head * shape_.head_dim;
    std::vector<double> scores, out(static_cast<size_t>(shape_.head_dim));
    double most = -INFINITY, sum = 0.0;
    for (const Key& key : keys) {
      double score = 0.0;
      for (size_t d = 0; d < out.size(); ++d) score += double{q[d]} * key.k[d];
      scores.push_back(score * double{shape_.scale});
      most = std::max(most, scores.back());
    }
    for (double& score : scores) sum += score = std::exp(score - most);
    for (size_t i = 0; i < keys.size(); ++i) {
      for (size_t d = 0; d < out.size(); ++d) out[d] += scores[i] / sum * keys[i].v[d];
    }
    return out;
  }

  AttentionShape shape_;
  std::mt19937 random_;
  std::vector<SequenceCase> cases_;
  StepCounts counts_{};
  std::vector<int32_t> row_position_, row_sequence_, base_, page0_, pages_, prefix_start_;
  std::vector<PrefixRun> runs_;
  std::vector<DeviceSet> sets_;
  std::vector<DevicePrefix> prefix_at_layer_;
  std::vector<std::unique_ptr<std::vector<float>>> prefix_values_;
  std::vector<std::unique_ptr<DeviceSite>> sites_;
  std::vector<std::unique_ptr<std::vector<int32_t>>> places_;
  std::unique_ptr<AlignedArray<T>> pool_;
  std::vector<float> q_;
  int32_t q_stride_ = 0;
};

template <class T>
AttentionShape shape_of(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t window) {
  AttentionShape shape;
  shape.dtype = sizeof(T) == 4 ? Dtype::kF32 : std::is_same_v<T, Bf16> ? Dtype::kBf16 : Dtype::kF16;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.window = window;
  shape.scale = static_cast<float>(1.0 / std::sqrt(head_dim));
  return shape;
}

std::vector<int32_t> slots(int32_t first, int32_t count) {
  std::vector<int32_t> result;
  for (int32_t i = 0; i < count; ++i) result.push_back(first + i);
  return result;
}

// Sequences of every sort: one token, a long one, prefixes of two sets of which one has nothing at
// this layer, gated prefixes beside shared ones, the end of a prefill.
std::vector<SequenceCase> sequences() {
  return {{{}, 1, {0}},
          {{}, 530, {529}},
          {{{5, false, 5}, {0, false, 9}, {70, false, 70}}, 33, {31, 32}},
          {{{0, true, 0}, {7, true, 0}, {3, false, 3}, {66, true, 0}}, 20, {19}},
          {{}, 81, slots(75, 6)}};
}

template <class T>
double tolerance() {
  return sizeof(T) == 4 ? 2e-6 : std::is_same_v<T, Bf16> ? 2.2e-3 : 3e-4;
}

template <class T>
void check_attention(AttentionShape shape, const std::vector<SequenceCase>& cases, unsigned seed) {
  simt::set_seed(seed);
  AttentionData<T> data(shape, cases, seed);
  const int32_t capacity = data.rows() + 2;
  const std::vector<T> found = data.run(0, data.rows(), capacity, data.longest(), false);
  test::RelativeError error;
  bool untouched = true;
  for (int32_t r = 0; r < capacity; ++r) {
    const T* row = found.data() + r * data.context_stride();
    for (int32_t h = 0; h < shape.heads && r < data.rows(); ++h) {
      const std::vector<double> expected = data.expected(r, h);
      for (int32_t d = 0; d < shape.head_dim; ++d)
        error.add(load(row[h * shape.head_dim + d]), expected[static_cast<size_t>(d)]);
    }
    T poison;
    std::memset(&poison, 0xcb, sizeof(T));
    for (int32_t i = r < data.rows() ? shape.heads * shape.head_dim : 0; i < data.context_stride();
         ++i)
      untouched = untouched && std::memcmp(row + i, &poison, sizeof(T)) == 0;
  }
  const std::string name = std::to_string(shape.heads) + " heads of " +
                           std::to_string(shape.kv_heads) + " x " + std::to_string(shape.head_dim) +
                           ", window " + std::to_string(shape.window);
  CHECK_THAT(untouched, name + ": something was written outside the live rows");
  CHECK_THAT(error.value() < tolerance<T>(), name + ": error " + std::to_string(error.value()));
  simt::set_seed(1);
}

template <class T>
void check_shapes() {
  check_attention<T>(shape_of<T>(4, 2, 24, 0), sequences(), 1);
  check_attention<T>(shape_of<T>(9, 3, 64, 0), sequences(), 2);
  check_attention<T>(shape_of<T>(12, 1, 80, 0), sequences(), 3);
  check_attention<T>(shape_of<T>(8, 2, 128, 100), sequences(), 4);
  check_attention<T>(shape_of<T>(2, 2, 256, 0), sequences(), 5);
  check_attention<T>(shape_of<T>(3, 1, 20, 17), sequences(), 6);
  check_attention<T>(shape_of<T>(2, 1, 7, 1), sequences(), 7);
}

TEST(attention_f32) {
  check_shapes<float>();
}
TEST(attention_bf16) {
  check_shapes<Bf16>();
}
TEST(attention_f16) {
  check_shapes<F16>();
}

// Prefills beside decoding rows, in a launch for so many rows that full tiles of one sequence are
// taken together. Queries and weights are rounded there, so the bits differ.
template <class T>
void check_prefill(AttentionShape shape, int32_t prefill, unsigned seed) {
  const std::vector<SequenceCase> cases = {
      {{}, 40, {39}},
      {{{5, false, 5}, {0, false, 4}, {3, true, 0}}, prefill + 20, slots(20, prefill)},
      {{}, 70, {69}},
      {{{66, false, 66}}, 250, slots(225, 25)}};
  AttentionData<T> data(shape, cases, seed);
  simt::set_seed(seed);
  const std::vector<T> exact = data.run(0, data.rows(), 300, data.longest(), true);
  const std::vector<T> found = data.run(0, data.rows(), 300, data.longest(), false);
  simt::set_seed(1);
  test::RelativeError error, exact_error;
  size_t other_bits = 0;
  for (int32_t r = 0; r < data.rows(); ++r) {
    for (int32_t h = 0; h < shape.heads; ++h) {
      const std::vector<double> expected = data.expected(r, h);
      for (int32_t d = 0; d < shape.head_dim; ++d) {
        const size_t at = static_cast<size_t>(r * data.context_stride() + h * shape.head_dim + d);
        error.add(load(found[at]), expected[static_cast<size_t>(d)]);
        exact_error.add(load(exact[at]), expected[static_cast<size_t>(d)]);
        other_bits += found[at].bits != exact[at].bits ? 1 : 0;
      }
    }
  }
  CHECK_THAT(error.value() < 4e-3, "prefill's error " + std::to_string(error.value()));
  CHECK_THAT(exact_error.value() < tolerance<T>(),
             "exact error " + std::to_string(exact_error.value()));
  CHECK(other_bits > found.size() / 100);
}

TEST(attention_prefill) {
  check_prefill<Bf16>(shape_of<Bf16>(8, 2, 64, 0), 35, 21);
  check_prefill<Bf16>(shape_of<Bf16>(3, 1, 80, 0), 45, 22);
  check_prefill<Bf16>(shape_of<Bf16>(12, 1, 24, 50), 20, 23);
  check_prefill<F16>(shape_of<F16>(8, 1, 16, 90), 20, 26);
  check_prefill<Bf16>(shape_of<Bf16>(1, 1, 40, 0), 130, 24);
  check_prefill<Bf16>(shape_of<Bf16>(8, 1, 136, 0), 18, 25);
}

// A row's bits alone, in a batch, where a block takes several of a row's chunks, and where the rows
// are too many to be split into chunks.
template <class T>
void check_row_bits(int32_t head_dim) {
  AttentionData<T> data(shape_of<T>(2, 1, head_dim, 0), sequences(), 11);
  const int32_t rows = data.rows(), keys = data.longest();
  const size_t stride = static_cast<size_t>(data.context_stride());
  const size_t width = static_cast<size_t>(2 * head_dim) * sizeof(T);
  const std::vector<T> batch = data.run(0, rows, rows, keys, true);
  const std::vector<T> unsplit = data.run(0, rows, 5000, keys, true);
  const std::vector<T> shared_out = data.run(0, rows, 2000, keys, true);
  const std::vector<T> longer = data.run(0, rows, rows, 4 * keys, true);
  for (int32_t r = 0; r < rows; ++r) {
    const std::vector<T> alone = data.run(r, 1, 1, keys, true);
    const size_t at = static_cast<size_t>(r) * stride;
    CHECK(std::memcmp(alone.data(), batch.data() + at, width) == 0);
    CHECK(std::memcmp(alone.data(), unsplit.data() + at, width) == 0);
    CHECK(std::memcmp(alone.data(), shared_out.data() + at, width) == 0);
    CHECK(std::memcmp(alone.data(), longer.data() + at, width) == 0);
  }
}

TEST(attention_row_bits) {
  check_row_bits<float>(24);
  check_row_bits<Bf16>(64);
  check_row_bits<F16>(20);
}

bool refused(const AttentionArgs& args) {
  try {
    launch_attention(args, nullptr);
  } catch (const Error& error) {
    return error.code() == ErrorCode::kBug;
  }
  return false;
}

TEST(attention_misuse) {
  float values[64] = {};
  StepCounts counts{};
  AttentionArgs args;
  args.shape = shape_of<float>(2, 1, 4, 0);
  args.kv = {reinterpret_cast<std::byte*>(values), 2 * kPageTokens * 4 * sizeof(float)};
  args.q = values;
  args.context = args.scratch = values;
  args.tables.counts = &counts;
  args.q_stride = args.context_stride = 8;
  args.most_keys = 1;
  CHECK(!refused(args));
  const auto with = [&](auto change) {
    AttentionArgs changed = args;
    change(changed);
    return refused(changed);
  };
  CHECK(with([](AttentionArgs& a) { a.shape.heads = 3, a.shape.kv_heads = 2; }));
  CHECK(with([](AttentionArgs& a) { a.shape.head_dim = 257; }));
  CHECK(with([](AttentionArgs& a) { a.shape.dtype = Dtype::kQ4_0; }));
  CHECK(with([](AttentionArgs& a) { a.shape.window = -1; }));
  CHECK(with([](AttentionArgs& a) { a.most_keys = 0; }));
  CHECK(with([](AttentionArgs& a) { a.q_stride = 7; }));
  CHECK(with([](AttentionArgs& a) { a.kv.page_bytes -= 4; }));
  CHECK(with([](AttentionArgs& a) { a.scratch = nullptr; }));
}

}  // namespace
}  // namespace manyfold
