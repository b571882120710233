#include "cpu/thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastmem::cpu {
namespace {

// Long enough to bridge the gap between two kernels called from C++, too short to be felt by
// whoever else wants the core: torch's own threads are often next.
constexpr int kSpins = 200;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

template <class Condition>
bool spin_until(Condition&& condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    pause();
  }
  return false;
}

struct Job {
  void (*task)(void*, int64_t);
  void* context;
  int64_t parts;
  std::atomic<int64_t> next{0};
  int wanted;                   // helpers that may still join; guarded by the pool's mutex
  std::atomic<int> helping{0};  // helpers that have joined and not left; changed under the mutex

  void work() {
    for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;)
      task(context, part);
  }
};

// The caller works on its own job to the end, so a job never waits for a helper that is busy
// elsewhere.
class Pool {
 public:
  void run(Job& job) {
    const int helpers = job.wanted;
    {
      std::lock_guard lock(mutex_);
      start_workers(helpers);
      open_.push_back(&job);
      offers_.fetch_add(1, std::memory_order_relaxed);
    }
    for (int i = 0; i < helpers; ++i) offered_.notify_one();
    job.work();
    {
      std::lock_guard lock(mutex_);
      close(job);
    }
    const auto left = [&] { return job.helping.load(std::memory_order_acquire) == 0; };
    if (spin_until(left)) return;
    std::unique_lock lock(mutex_);
    left_.wait(lock, left);
  }

 private:
  void start_workers(int wanted) {
    if (workers_ >= wanted) return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all,
                    &before);  // signals are the interpreter's; workers inherit this mask
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: the callers do the rest.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    for (;;) {
      spin_until([&] { return offers_.load(std::memory_order_relaxed) > 0; });
      std::unique_lock lock(mutex_);
      offered_.wait(lock, [&] { return !open_.empty(); });
      Job& job = *open_.front();
      job.helping.fetch_add(1, std::memory_order_relaxed);
      if (--job.wanted == 0) close(job);
      lock.unlock();
      job.work();
      lock.lock();
      // After this the caller may return, and the job is gone.
      if (job.helping.fetch_sub(1, std::memory_order_release) == 1) left_.notify_all();
    }
  }

  void close(Job& job) {
    if (std::erase(open_, &job) > 0) offers_.fetch_sub(1, std::memory_order_relaxed);
  }

  std::mutex mutex_;
  std::condition_variable offered_, left_;
  std::vector<Job*> open_;      // jobs that want more helpers
  std::atomic<int> offers_{0};  // their number, to be read without the mutex
  int workers_ = 0;
};

std::atomic<Pool*> current_pool{nullptr};

// Never destroyed: workers may wait on it while the process ends. A forked child has none of its
// parent's threads and cannot trust the state of its locks, so it leaves the old pool behind.
Pool& pool() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { current_pool.store(nullptr); });
  static_cast<void>(registered);
  Pool* existing = current_pool.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
  Pool* fresh = new Pool;
  if (current_pool.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

}  // namespace

void run_parts(int threads, int64_t parts, void (*task)(void*, int64_t), void* context) {
  if (threads <= 1 || parts <= 1) {
    for (int64_t part = 0; part < parts; ++part) task(context, part);
    return;
  }
  Job job{.task = task,
          .context = context,
          .parts = parts,
          .wanted = static_cast<int>(std::min<int64_t>(threads, parts)) - 1};
  pool().run(job);
}

}  // namespace fastmem::cpu
