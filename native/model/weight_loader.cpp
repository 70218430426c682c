// See weight_loader.h. Bytes are taken by pread in chunks, never by mmap: a file that shrinks
// meanwhile is an error, not a SIGBUS, and pages of the file do not stay in this process.
#include "weight_loader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "../core/check_terms.h"
#include "../core/error.h"
#include "dequant.h"

namespace manyfold {

namespace {

constexpr uint64_t kChunkBytes = 1 << 20;

// A file that is open for reading, with its size at that time.
class WeightFile {
 public:
  explicit WeightFile(const std::string& path)
      : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail(ErrorCode::kIo, "cannot open " + path + ": " + std::strerror(errno));
    struct stat info;
    if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
      close(fd_);
      fail(ErrorCode::kIo, "cannot read " + path + ": expected a regular file");
    }
    size_ = static_cast<uint64_t>(info.st_size);
  }
  WeightFile(WeightFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(other.fd_), size_(other.size_) {
    other.fd_ = -1;
  }
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;
  ~WeightFile() {
    if (fd_ >= 0) close(fd_);
  }

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

  // Safe from several threads. `what` names the tensor in messages.
  void read(uint64_t offset, uint64_t length, uint8_t* out, const std::string& what) const {
    while (length > 0) {
      const ssize_t got = pread(fd_, out, length, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0)
        fail(ErrorCode::kIo, what + ": cannot read " + path_ + ": " + std::strerror(errno));
      if (got == 0) {
        fail(ErrorCode::kIo, what + ": " + path_ + " ends at byte " + std::to_string(offset) +
                                 ", expected " + std::to_string(length) +
                                 " more; the file changed, load it again");
      }
      offset += static_cast<uint64_t>(got);
      out += got;
      length -= static_cast<uint64_t>(got);
    }
  }

 private:
  std::string path_;
  int fd_;
  uint64_t size_ = 0;
};

// Row of the file that holds row `row` of the model, when `heads` heads of q or k are in GGUF's
// Llama order.
int32_t permuted_row(int32_t row, int32_t rows, int32_t heads) {
  const int32_t head_dim = rows / heads, half = head_dim / 2;
  const int32_t head = row / head_dim, place = row % head_dim;
  return head * head_dim + place % half * 2 + place / half;
}

// One tensor, checked against model and file at construction; then rows as float32.
class TensorReader {
 public:
  TensorReader(const ModelConfig& model, const WeightSource& source,
               const std::vector<WeightFile>& files)
      : source_(source),
        what_(site_label(source.site) + (source.part == WeightPart::kBias ? " bias" : " weight")),
        file_(file_of(source, files)) {
    check_site(model);
    check_bytes();
    check_permutation();
  }

  const std::string& what() const { return what_; }

  void rows(int32_t row0, int32_t count, float* out) const {
    in_chunks(row0, count, [&](int32_t done, int32_t n, const uint8_t* bytes, size_t length) {
      const size_t values = static_cast<size_t>(n) * static_cast<size_t>(source_.cols);
      float* to = out + static_cast<size_t>(done) * static_cast<size_t>(source_.cols);
      dequantize(source_.dtype, bytes, length, values, to);
      finish(to, values);
    });
    if (source_.permuted_heads > 0 && source_.rows == 1) permute_values(out);
  }

  // Whether q4_rows has the tensor's values.
  bool keeps_q4() const {
    return is_q4(source_.dtype) && source_.part == WeightPart::kWeight && source_.add == 0.0f;
  }

  // The same rows as codes, scales and minima.
  void q4_rows(int32_t row0, int32_t count, const Q4Rows& out) const {
    const auto groups = static_cast<size_t>(q4_groups(source_.cols));
    in_chunks(row0, count, [&](int32_t done, int32_t n, const uint8_t* bytes, size_t length) {
      const auto first = static_cast<size_t>(done);
      const Q4Rows to{out.codes + first * static_cast<size_t>(source_.cols), out.d + first * groups,
                      out.m + first * groups};
      decode_q4(source_.dtype, bytes, length, n, source_.cols, to);
      check_finite(to.d, static_cast<size_t>(n) * groups);
      check_finite(to.m, static_cast<size_t>(n) * groups);
    });
  }

 private:
  // Calls use(rows done, rows, bytes, their length) for chunks of rows in the model's order.
  template <class Use>
  void in_chunks(int32_t row0, int32_t count, const Use& use) const {
    const uint64_t row_bytes = source_.byte_length / static_cast<uint64_t>(source_.rows);
    const bool by_row = source_.permuted_heads > 0 && source_.rows > 1;
    const int32_t chunk =
        by_row
            ? 1
            : static_cast<int32_t>(std::clamp<uint64_t>(kChunkBytes / row_bytes, 1, kChunkBytes));
    std::vector<uint8_t> bytes(row_bytes * static_cast<uint64_t>(std::min(chunk, count)));
    for (int32_t done = 0; done < count; done += chunk) {
      const int32_t n = std::min(chunk, count - done);
      int32_t row = row0 + done;
      if (by_row) row = permuted_row(row, source_.rows, source_.permuted_heads);
      const uint64_t length = row_bytes * static_cast<uint64_t>(n);
      file_.read(source_.offset + row_bytes * static_cast<uint64_t>(row), length, bytes.data(),
                 what_);
      use(done, n, bytes.data(), length);
    }
  }

  const WeightFile& file_of(const WeightSource& source,
                            const std::vector<WeightFile>& files) const {
    MF_CHECK(source.file >= 0 && static_cast<size_t>(source.file) < files.size(),
             what_ + ": file: expected an index into " + std::to_string(files.size()) +
                 " files, found " + std::to_string(source.file));
    return files[static_cast<size_t>(source.file)];
  }

  void check_site(const ModelConfig& model) const {
    MF_CHECK(has_site(model, source_.site), what_ + ": the model has no such site (layer " +
                                                std::to_string(source_.site.layer) + ")");
    WeightShape shape = weight_shape(model, source_.site.site);
    if (source_.part == WeightPart::kBias) {
      MF_CHECK(is_linear_site(source_.site.site), what_ + ": only linears have a bias");
      shape = {1, shape.rows};
    }
    MF_CHECK(shape.rows > 0, what_ + ": this site holds no weight");
    MF_CHECK(!(model.tied_head && source_.site.site == Site::kHead &&
               source_.part == WeightPart::kWeight),
             what_ + ": the head is tied to the embedding, expected no weight of its own");
    MF_CHECK(source_.rows == shape.rows && source_.cols == shape.cols,
             what_ + ": expected shape [" + std::to_string(shape.rows) + ", " +
                 std::to_string(shape.cols) + "], found [" + std::to_string(source_.rows) + ", " +
                 std::to_string(source_.cols) + "]");
    MF_CHECK(std::isfinite(source_.add), what_ + ": add: expected a finite number");
  }

  void check_bytes() const {
    const BlockShape block = block_shape(source_.dtype);
    MF_CHECK(source_.cols % block.values == 0,
             what_ + ": " + dtype_name(source_.dtype) + " expects rows of a multiple of " +
                 std::to_string(block.values) + " values, found " + std::to_string(source_.cols));
    const uint64_t bytes = static_cast<uint64_t>(source_.rows) *
                           static_cast<uint64_t>(source_.cols / block.values) *
                           static_cast<uint64_t>(block.bytes);
    MF_CHECK(source_.byte_length == bytes, what_ + ": expected " + std::to_string(bytes) +
                                               " bytes, found " +
                                               std::to_string(source_.byte_length));
    MF_CHECK(source_.offset <= file_.size() && bytes <= file_.size() - source_.offset,
             what_ + ": expected bytes " + std::to_string(source_.offset) + " to " +
                 std::to_string(source_.offset + bytes) + " of " + file_.path() +
                 ", which has only " + std::to_string(file_.size()));
  }

  void check_permutation() const {
    const int32_t heads = source_.permuted_heads;
    if (heads == 0) return;
    MF_CHECK(source_.site.site == Site::kQ || source_.site.site == Site::kK,
             what_ + ": permutedHeads: expected 0 beside q and k, found " + std::to_string(heads));
    const int32_t width = source_.part == WeightPart::kBias ? source_.cols : source_.rows;
    MF_CHECK(heads > 0 && width % heads == 0 && width / heads % 2 == 0,
             what_ + ": permutedHeads: expected heads of an even size that fill " +
                 std::to_string(width) + " rows, found " + std::to_string(heads));
  }

  void check_finite(const float* values, size_t count) const {
    bool finite = true;
    for (size_t i = 0; i < count; ++i) finite &= std::isfinite(values[i]);
    MF_CHECK(finite, what_ + ": expected finite values, found NaN or infinity in " + file_.path());
  }

  void finish(float* values, size_t count) const {
    check_finite(values, count);
    if (source_.add == 0.0f) return;
    for (size_t i = 0; i < count; ++i) values[i] += source_.add;
  }

  void permute_values(float* values) const {
    const std::vector<float> from(values, values + source_.cols);
    for (int32_t i = 0; i < source_.cols; ++i) {
      values[i] = from[static_cast<size_t>(permuted_row(i, source_.cols, source_.permuted_heads))];
    }
  }

  const WeightSource& source_;
  std::string what_;
  const WeightFile& file_;
};

void add_tensor(const TensorReader& reader, const WeightSource& source, WeightStore& store) {
  if (reader.keeps_q4() && store.holds_q4(source.site)) {
    store.add_q4_weight(source.site, source.rows, source.cols,
                        [&reader](int32_t row0, int32_t count, const Q4Rows& out) {
                          reader.q4_rows(row0, count, out);
                        });
    return;
  }
  store.add_weight(
      source.site, source.part, source.rows, source.cols,
      [&reader](int32_t row0, int32_t count, float* out) { reader.rows(row0, count, out); });
}

// Every weight that the model needs, by site_index; biases are the family's choice.
void check_complete(const ModelConfig& model, const std::vector<WeightSource>& sources) {
  std::vector<uint8_t> weights((model.layers.size() + 1) * kSiteCount, 0), biases = weights;
  for (const WeightSource& source : sources) {
    uint8_t& seen =
        (source.part == WeightPart::kBias ? biases
                                          : weights)[static_cast<size_t>(site_index(source.site))];
    MF_CHECK(seen == 0, site_label(source.site) + ": expected one tensor, found a second");
    seen = 1;
  }
  for (int32_t layer = -1; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (int32_t number = 0; number < kSiteCount; ++number) {
      const SiteRef site{layer, static_cast<Site>(number)};
      if (!has_site(model, site) || weight_shape(model, site.site).rows == 0) continue;
      if (site.site == Site::kHead && model.tied_head) continue;
      MF_CHECK(weights[static_cast<size_t>(site_index(site))] != 0,
               site_label(site) + ": expected a weight in the files, found none");
    }
  }
}

}  // namespace

std::vector<WeightFormat> weight_formats(const ModelConfig& model,
                                         const std::vector<WeightSource>& sources,
                                         WeightFormat format) {
  std::vector<WeightFormat> formats((model.layers.size() + 1) * kSiteCount);
  for (size_t i = 0; i < formats.size(); ++i) {
    formats[i] = matrix_format(format, static_cast<Site>(i % kSiteCount));
  }
  const auto packed = [](const WeightSource& source) {
    return is_q4(source.dtype) && source.part == WeightPart::kWeight;
  };
  if (!is_q4(format) || std::none_of(sources.begin(), sources.end(), packed)) return formats;
  std::fill(formats.begin(), formats.end(), WeightFormat::kInt8);
  for (const WeightSource& source : sources) {
    // A site that the model lacks is refused, by name, when its tensor is loaded.
    if (!packed(source) || !has_site(model, source.site)) continue;
    formats[static_cast<size_t>(site_index(source.site))] =
        source.dtype == Dtype::kQ4_K ? WeightFormat::kQ4Wide : WeightFormat::kQ4;
  }
  return formats;
}

void load_weights(const ModelConfig& model, const std::vector<std::string>& files,
                  const std::vector<WeightSource>& sources, WeightStore& store,
                  const LoadProgress& progress) {
  std::vector<WeightFile> open_files;
  open_files.reserve(files.size());
  for (const std::string& path : files) open_files.emplace_back(path);
  std::vector<TensorReader> readers;
  readers.reserve(sources.size());
  uint64_t total = 0, done = 0;
  for (const WeightSource& source : sources) {
    readers.emplace_back(model, source, open_files);
    total += source.byte_length;
  }
  check_complete(model, sources);
  for (size_t i = 0; i < sources.size(); ++i) {
    add_tensor(readers[i], sources[i], store);
    done += sources[i].byte_length;
    progress(done, total);
  }
}

}  // namespace manyfold
