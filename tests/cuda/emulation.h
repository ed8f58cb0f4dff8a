// One block of CUDA threads on the host: every thread is a fibre that runs until it has to wait for others.
//
// Which fibre runs next is a permutation drawn from a seed, so that a kernel that lacks a barrier, or lets two threads
// write one place, gives different results for different seeds. Waiting for a barrier that not all reach ends the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __device__

struct Dim {
  unsigned x;
};
inline Dim threadIdx{}, blockDim{};

namespace emulation {

constexpr unsigned LANES = 32;
constexpr size_t STACK = 64 * 1024;

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

// Waiting until all of a set have come; `generation` counts how often they have.
struct Meeting {
  unsigned members = 0, arrived = 0, generation = 0;
};

struct Block {
  std::vector<Fibre> fibres;
  std::vector<Meeting> of_warp;
  std::vector<unsigned> exchanged;  // what each thread brings to its warp's next primitive
  Meeting of_block;
  ucontext_t scheduler;
  std::function<void()> body;
  uint64_t progress = 0;  // arrivals and ends: if a round makes none, all wait for ever
};
inline Block* block = nullptr;

inline void wait(Meeting& meeting) {
  const unsigned generation = meeting.generation, me = threadIdx.x;
  ++block->progress;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  while (meeting.generation == generation) swapcontext(&block->fibres[me].context, &block->scheduler);
}

inline void run_fibre() {
  block->body();
  block->fibres[threadIdx.x].done = true;
  ++block->progress;
  swapcontext(&block->fibres[threadIdx.x].context, &block->scheduler);
}

inline void run(unsigned threads, unsigned seed, std::function<void()> body) {
  Block all;
  all.body = std::move(body);
  all.fibres.resize(threads);
  all.of_warp.assign(threads / LANES, Meeting{LANES});
  all.exchanged.resize(threads);
  all.of_block.members = threads;
  block = &all;
  blockDim.x = threads;
  for (Fibre& fibre : all.fibres) {
    fibre.stack.reset(new char[STACK]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = STACK;
    makecontext(&fibre.context, run_fibre, 0);
  }
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937 random(seed);
  for (unsigned left = threads; left > 0;) {
    std::shuffle(order.begin(), order.end(), random);
    const uint64_t before = all.progress;
    for (unsigned t : order) {
      if (all.fibres[t].done) continue;
      threadIdx.x = t;
      swapcontext(&all.scheduler, &all.fibres[t].context);
      left -= all.fibres[t].done;
    }
    if (all.progress == before) {
      std::fprintf(stderr, "emulation: %u threads wait for others that never come\n", left);
      std::abort();
    }
  }
  block = nullptr;
}

// Every lane brings a value; `combine` sees all 32 of its warp.
template <typename Combine> unsigned with_warp(unsigned mask, unsigned value, Combine combine) {
  if (mask != 0xffffffffu) std::abort();  // kernels here use whole warps
  const unsigned me = threadIdx.x, warp = me / LANES;
  block->exchanged[me] = value;
  wait(block->of_warp[warp]);
  const unsigned result = combine(&block->exchanged[warp * LANES]);
  wait(block->of_warp[warp]);  // before anybody brings the next value
  return result;
}

}  // namespace emulation

inline void __syncthreads() {
#ifndef TZN_EMULATE_WITHOUT_BARRIERS  // set by the test that wants to see a missing barrier noticed
  emulation::wait(emulation::block->of_block);
#endif
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return emulation::with_warp(mask, value, [](const unsigned* all) { return *std::max_element(all, all + 32); });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return emulation::with_warp(mask, value, [](const unsigned* all) { return *std::min_element(all, all + 32); });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return emulation::with_warp(mask, value, [](const unsigned* all) { return std::accumulate(all, all + 32, 0u); });
}
inline unsigned __ballot_sync(unsigned mask, bool yes) {
  return emulation::with_warp(mask, yes, [](const unsigned* all) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) votes |= all[lane] << lane;
    return votes;
  });
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
