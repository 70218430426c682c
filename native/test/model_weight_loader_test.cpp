// The weight loader over a real file: values, GGUF's row order, what is added, and each refusal by
// name.
#include "../model/weight_loader.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>

#include "../core/check_terms.h"
#include "../core/error.h"
#include "../cpu/q4_rows.h"
#include "check.h"
#include "tiny_model.h"

namespace manyfold {
namespace {

// Keeps what it is given, by site and part.
class MapStore final : public WeightStore {
 public:
  void add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                  const RowReader& read) override {
    std::vector<float>& values = values_[{site_index(site), static_cast<int>(part)}];
    values.resize(static_cast<size_t>(rows) * static_cast<size_t>(cols));
    // In two pieces and backwards: readers must not depend on the order.
    const int32_t half = rows / 2;
    read(half, rows - half, values.data() + static_cast<size_t>(half) * static_cast<size_t>(cols));
    if (half > 0) read(0, half, values.data());
  }
  // Sites are held as 4-bit matrices once this is set.
  bool q4 = false;
  bool holds_q4(SiteRef) const override { return q4; }
  void add_q4_weight(SiteRef site, int32_t rows, int32_t cols, const Q4Reader& read) override {
    Q4Matrix matrix(rows, cols);
    const int32_t half = rows / 2;
    read(half, rows - half, matrix.from(half));
    if (half > 0) read(0, half, matrix.from(0));
    std::vector<float>& values = values_[{site_index(site), static_cast<int>(WeightPart::kWeight)}];
    values.resize(static_cast<size_t>(rows) * static_cast<size_t>(cols));
    for (int32_t row = 0; row < rows; ++row) {
      dequantize_q4_weight(matrix.from(row), cols, values.data() + int64_t{row} * cols);
    }
    ++q4_weights;
  }
  int32_t q4_weights = 0;
  void read_weight(SiteRef, WeightPart, int32_t, int32_t, float*) const override {}
  bool has_weight(SiteRef site, WeightPart part) const override {
    return values_.contains({site_index(site), static_cast<int>(part)});
  }
  size_t weight_bytes() const override { return 0; }
  const std::vector<float>& get(SiteRef site, WeightPart part) {
    return values_[{site_index(site), static_cast<int>(part)}];
  }

 private:
  std::map<std::pair<int32_t, int>, std::vector<float>> values_;
};

// A file with every weight of the tiny model as f32; value i of the file is i / 8.
struct File {
  ModelConfig model = test::tiny_model();
  std::string path;
  std::vector<WeightSource> sources;
  std::vector<float> values;

  File() {
    for (int32_t layer = -1; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
      for (int32_t number = 0; number < kSiteCount; ++number) {
        const SiteRef site{layer, static_cast<Site>(number)};
        const WeightShape shape = weight_shape(model, site.site);
        if (has_site(model, site) && shape.rows > 0)
          add(site, WeightPart::kWeight, shape.rows, shape.cols);
      }
    }
    add({0, Site::kK}, WeightPart::kBias, 1, model.kv_width());
    char name[] = "/tmp/manyfold-weights-XXXXXX";
    const int fd = mkstemp(name);
    path = name;
    close(fd);
    write();
  }
  ~File() { std::remove(path.c_str()); }

  void add(SiteRef site, WeightPart part, int32_t rows, int32_t cols) {
    WeightSource source;
    source.offset = values.size() * 4;
    source.byte_length = static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols) * 4;
    source.rows = rows;
    source.cols = cols;
    source.site = site;
    source.part = part;
    sources.push_back(source);
    for (int32_t i = 0; i < rows * cols; ++i)
      values.push_back(static_cast<float>(values.size()) / 8);
  }

  void write() const {
    std::FILE* file = std::fopen(path.c_str(), "wb");
    std::fwrite(values.data(), 4, values.size(), file);
    std::fclose(file);
  }

  WeightSource& source(SiteRef site, WeightPart part = WeightPart::kWeight) {
    for (WeightSource& s : sources) {
      if (s.site == site && s.part == part) return s;
    }
    std::abort();
  }

  void load(WeightStore& store) const {
    load_weights(model, {path}, sources, store, [](uint64_t, uint64_t) {});
  }

  // The message that loading fails with.
  std::string refusal(ErrorCode code) const {
    MapStore store;
    try {
      load(store);
    } catch (const Error& error) {
      return error.code() == code ? error.what() : std::string("another code: ") + error.what();
    }
    return "loaded";
  }
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST(model_weight_loader_values) {
  File file;
  MapStore store;
  file.load(store);
  for (const WeightSource& s : file.sources) {
    const std::vector<float>& found = store.get(s.site, s.part);
    CHECK(found.size() == s.byte_length / 4);
    CHECK(std::equal(found.begin(), found.end(),
                     file.values.begin() + static_cast<ptrdiff_t>(s.offset / 4)));
  }
  uint64_t calls = 0, last = 0;
  load_weights(file.model, {file.path}, file.sources, store, [&](uint64_t done, uint64_t total) {
    ++calls;
    CHECK(done > last && done <= total);
    last = done;
  });
  CHECK(calls == file.sources.size());
  CHECK(last == file.values.size() * 4);
}

TEST(model_weight_loader_permutation_and_add) {
  File file;
  MapStore plain, permuted;
  file.load(plain);
  const SiteRef q{1, Site::kQ}, k{0, Site::kK}, norm{2, Site::kMlpNorm};
  file.source(q).permuted_heads = file.model.heads;
  file.source(k, WeightPart::kBias).permuted_heads = file.model.kv_heads;
  file.source(norm).add = 1;
  file.load(permuted);
  const int32_t d = file.model.head_dim;
  const size_t cols = static_cast<size_t>(file.model.hidden);
  for (int32_t h = 0; h < file.model.heads; ++h) {
    for (int32_t i = 0; i < d / 2; ++i) {
      for (int32_t j = 0; j < 2; ++j) {
        // Row h·d + 2i + j of the file is row h·d + j·d/2 + i of the model.
        const size_t from = static_cast<size_t>(h * d + 2 * i + j) * cols,
                     to = static_cast<size_t>(h * d + j * d / 2 + i) * cols;
        CHECK(plain.get(q, WeightPart::kWeight)[from] == permuted.get(q, WeightPart::kWeight)[to]);
        CHECK(plain.get(q, WeightPart::kWeight)[from + cols - 1] ==
              permuted.get(q, WeightPart::kWeight)[to + cols - 1]);
        if (h >= file.model.kv_heads) continue;
        CHECK(plain.get(k, WeightPart::kBias)[static_cast<size_t>(h * d + 2 * i + j)] ==
              permuted.get(k, WeightPart::kBias)[static_cast<size_t>(h * d + j * d / 2 + i)]);
      }
    }
  }
  CHECK(permuted.get(norm, WeightPart::kWeight)[3] == plain.get(norm, WeightPart::kWeight)[3] + 1);
}

TEST(model_weight_loader_refusals) {
  {
    File file;
    file.source({0, Site::kQ}).rows -= 1;
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument),
              "layer 0 q weight: expected shape [60, 40], found [59, 40]"));
  }
  {
    File file;
    file.source({0, Site::kQ}).offset = file.values.size() * 4 - 16;
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument), "layer 0 q weight"));
    file.source({0, Site::kQ}).offset = std::numeric_limits<uint64_t>::max() - 4;
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument), "layer 0 q weight"));
  }
  {
    File file;
    std::erase_if(file.sources,
                  [](const WeightSource& s) { return s.site == SiteRef{2, Site::kUp}; });
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument),
              "layer 2 up: expected a weight in the files, found none"));
  }
  {
    File file;
    file.sources.push_back(file.sources.front());
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument),
              "embedding: expected one tensor, found a second"));
  }
  {
    File file;
    file.values[file.source({1, Site::kDown}).offset / 4 + 77] = std::nanf("");
    file.write();
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument),
              "layer 1 down weight: expected finite values"));
  }
  {
    File file;
    CHECK(truncate(file.path.c_str(), 1000) == 0);
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument), "which has only 1000"));
    std::remove(file.path.c_str());
    CHECK(has(file.refusal(ErrorCode::kIo), "cannot open"));
  }
  {
    File file;
    file.source({0, Site::kV}).permuted_heads = 2;
    CHECK(has(file.refusal(ErrorCode::kInvalidArgument), "layer 0 v weight: permutedHeads"));
  }
}

TEST(model_weight_loader_stops) {
  File file;
  MapStore store;
  bool stopped = false;
  try {
    load_weights(file.model, {file.path}, file.sources, store,
                 [](uint64_t, uint64_t) { fail(ErrorCode::kUnavailable, "stop"); });
  } catch (const Error& error) {
    stopped = error.code() == ErrorCode::kUnavailable;
  }
  CHECK(stopped);
}

}  // namespace manyfold
