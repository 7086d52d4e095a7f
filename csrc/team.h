// Threads where there is no OpenMP (Apple's clang ships none) or where its barriers cannot be seen into
// (ThreadSanitizer, and gcc's libgomp). Defining LTH_SPARSE_STD_THREADS chooses these even where OpenMP is at hand.
//
// Workers are started when they are first needed and kept. A worker that has nothing to do watches for work for some
// tens of microseconds, so that the layers of a network find it awake, and then sleeps. Callers on several threads
// lease workers of their own, as they do with OpenMP. Unlike with libgomp, a process may fork at any time: a child
// starts with no workers and makes new ones.
#pragma once

namespace lth {

// Calls body(context, thread, threads) on each thread of a team, of which the caller is thread 0; returns when all are
// done. The team is smaller than asked for only where the system refuses a thread. `body` must not throw.
void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context) noexcept;

// The threads of the innermost team that the caller is part of wait for each other.
void team_barrier() noexcept;

}  // namespace lth
