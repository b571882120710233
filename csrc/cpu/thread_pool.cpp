#include "cpu/thread_pool.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
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

// Torch's own team of threads, through the OpenMP runtime that torch itself is linked against.
//
// For some milliseconds after an operator of torch its threads spin on their cores and wait for the
// next one. Other threads would have to share these cores with them; the team is there at once. But
// a team returns only when each of its threads has come and gone, so on a machine that others use
// too it stands still until the last of them gets a core. Whenever that happens the team is left
// alone for a while.
class TorchTeam {
 public:
  bool run(Job& job, int threads) {
    if (parallel_ == nullptr || forked_.load(std::memory_order_relaxed)) return false;
    const int64_t start = now();
    if (start < not_before_.load(std::memory_order_relaxed)) return false;
    Call call{job, std::this_thread::get_id(), start};
    parallel_(&Call::work, &call, static_cast<unsigned>(threads), 0);
    const int64_t end = now(), waited = end - call.own_end;
    if (waited > (call.own_end - start) / 2 + kPatience) {
      const int64_t pause = std::min(2 * pause_.load(std::memory_order_relaxed), kLongestPause);
      pause_.store(pause, std::memory_order_relaxed);
      not_before_.store(end + pause, std::memory_order_relaxed);
    } else {
      pause_.store(kShortestPause, std::memory_order_relaxed);
    }
    return true;
  }

  void forget() { forked_.store(true); }

 private:
  struct Call {
    Job& job;
    std::thread::id caller;
    int64_t own_end;

    static void work(void* opaque) {
      Call& call = *static_cast<Call*>(opaque);
      call.job.work();
      if (std::this_thread::get_id() == call.caller) call.own_end = now();
    }
  };

  using Parallel = void (*)(void (*body)(void*), void* argument, unsigned threads, unsigned flags);

  // Nanoseconds.
  static constexpr int64_t kPatience = 200'000, kShortestPause = 5'000'000,
                           kLongestPause = 1'000'000'000;

  static int64_t now() {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  }

  // The function into which compilers turn a parallel region; every OpenMP runtime has it.
  static Parallel find() {
    void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch == nullptr ? nullptr : reinterpret_cast<Parallel>(dlsym(torch, "GOMP_parallel"));
  }

  const Parallel parallel_ = find();
  std::atomic<int64_t> not_before_{0}, pause_{kShortestPause};
  std::atomic<bool> forked_{false};
};

TorchTeam& torch_team() {
  static TorchTeam team;
  return team;
}

std::atomic<Pool*> current_pool{nullptr};

// A forked child has none of its parent's threads: it cannot trust the state of the old pool's
// locks, and the runtime of torch would wait for its old team for ever.
void forget_threads() {
  current_pool.store(nullptr);
  torch_team().forget();
}

// Never destroyed: workers may wait on it while the process ends.
Pool& pool() {
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
  static const int registered = pthread_atfork(nullptr, nullptr, &forget_threads);
  static_cast<void>(registered);
  Job job{.task = task,
          .context = context,
          .parts = parts,
          .wanted = static_cast<int>(std::min<int64_t>(threads, parts)) - 1};
  if (!torch_team().run(job, threads)) pool().run(job);
}

}  // namespace fastmem::cpu
