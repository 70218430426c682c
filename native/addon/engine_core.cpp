// See engine_core.h.
#include "engine_core.h"

#include <future>

#include "../core/check_model.h"
#include "../core/error.h"
#include "../model/forward.h"

namespace manyfold {

EngineThread::EngineThread() : thread_([this] { run(); }) {}

bool EngineThread::post(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return false;
  jobs_.push_back(std::move(job));
  wake_.notify_one();
  return true;
}

bool EngineThread::idle() {
  const std::lock_guard lock(mutex_);
  return !busy_ && jobs_.empty();
}

void EngineThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void EngineThread::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    job();
    job = nullptr;  // what it holds is freed before the thread counts as idle
    lock.lock();
    busy_ = false;
  }
}

EngineCore::EngineCore(EngineOptions&& options) : options_(std::move(options)) {}

void EngineCore::load(const LoadProgress& progress) {
  check_options(options_.backend);
  options_.backend.formats =
      weight_formats(options_.backend.model, options_.weights, options_.backend.format);
  backend_ =
      options_.cuda ? make_cuda_backend(options_.backend) : make_cpu_backend(options_.backend);
  load_weights(options_.backend.model, options_.files, options_.weights, backend_->weights(),
               [&](uint64_t done, uint64_t total) {
                 if (cancelled_)
                   fail(ErrorCode::kUnavailable, "the engine was disposed while it was loading");
                 progress(done, total);
               });
  options_.weights.clear();
  update_snapshot();
}

void EngineCore::step(const StepPlan& plan, StepResult& result) {
  {
    const std::lock_guard lock(mutex_);
    const PlanLimits limits{options_.backend.kv_pages, options_.backend.max_rows,
                            options_.backend.max_entries};
    check_plan(plan, options_.backend.model, limits, terms_);
  }
  run_step(options_.backend.model, backend_->ops(), plan, result);
  update_snapshot();
}

TermHandle EngineCore::load_terms(TermSet&& terms) {
  check_terms(options_.backend.model, terms);
  const TermFacts facts = term_facts(terms);
  const TermHandle handle = backend_->terms().load_terms(std::move(terms));
  {
    const std::lock_guard lock(mutex_);
    terms_.emplace(handle, facts);
  }
  update_snapshot();
  return handle;
}

void EngineCore::free_terms(TermHandle handle) {
  {
    const std::lock_guard lock(mutex_);
    MF_CHECK(
        terms_.erase(handle) == 1,
        "handle: expected one of loadTerms that is not freed, found " + std::to_string(handle));
  }
  // From here on no plan can name it. With a job under way the memory goes after it; else before
  // this call returns.
  const bool wait = thread_.idle();
  auto done = std::make_shared<std::promise<void>>();
  const bool posted = thread_.post([this, handle, done] {
    try {
      backend_->terms().free_terms(handle);
      update_snapshot();
      done->set_value();
    } catch (...) {
      done->set_exception(std::current_exception());
    }
  });
  if (posted && wait) done->get_future().get();
}

std::vector<float> EngineCore::read_weight(SiteRef site, WeightPart part, int32_t row0,
                                           int32_t count) const {
  const ModelConfig& model = options_.backend.model;
  MF_CHECK(has_site(model, site), site_label(site) + ": the model has no such site");
  WeightShape shape = weight_shape(model, site.site);
  MF_CHECK(shape.rows > 0, site_label(site) + ": this site holds no weight");
  if (part == WeightPart::kBias) {
    MF_CHECK(is_linear_site(site.site), site_label(site) + ": only linears have a bias");
    shape = {1, shape.rows};
    if (!backend_->weights().has_weight(site, part)) return {};
  }
  MF_CHECK(row0 < shape.rows, "row0: expected 0 to " + std::to_string(shape.rows - 1) + ", found " +
                                  std::to_string(row0));
  MF_CHECK(count <= shape.rows - row0,
           "rowCount: expected at most " + std::to_string(shape.rows - row0) + " rows from row " +
               std::to_string(row0) + " on, found " + std::to_string(count));
  std::vector<float> values(static_cast<size_t>(count) * static_cast<size_t>(shape.cols));
  backend_->weights().read_weight(site, part, row0, count, values.data());
  return values;
}

EngineSnapshot EngineCore::snapshot() const {
  const std::lock_guard lock(mutex_);
  return snapshot_;
}

void EngineCore::update_snapshot() {
  EngineSnapshot next{backend_->counters(), backend_->info(), backend_->weights().weight_bytes(),
                      backend_->terms().term_bytes(), backend_->terms().term_sets()};
  const std::lock_guard lock(mutex_);
  snapshot_ = std::move(next);
}

void EngineCore::dispose() {
  if (disposed_) return;
  disposed_ = true;
  cancelled_ = true;
  thread_.stop();
  backend_.reset();
}

}  // namespace manyfold
