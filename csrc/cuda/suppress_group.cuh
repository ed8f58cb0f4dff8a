// Suppression of one group (a recording's candidates of one class) by one block of threads.
//
//   gather   the group's candidates, in the order of the input, into [start | end | score | index]: in shared memory if
//            they fit, else into their own part of a table in global memory
//   pick     the highest score, the first of the input where several are best: each thread its own places, then
//            reductions over warps and over the block; one barrier a pick
//   decay    what the pick overlaps, fused with the search for the next pick; a thread writes its own places only
//
// Read: labels and scores twice, segments once; then the table, 16 bytes a candidate and pick. Written: the picks.
// Bound by the latency of barriers and of the two reductions of a pick, not by memory, as long as the table is in shared.
//
// This file calls nothing but threadIdx, blockDim, __syncthreads and warp primitives, so that tests compile the same code
// with a host compiler (tests/cuda/emulation.h). Scores and ends must be finite, ends not before starts.
#pragma once

#include "../suppression_rule.h"

namespace tzn {

constexpr unsigned WARP = 32, ALL_LANES = 0xffffffffu, NOWHERE = 0xffffffffu;

struct Candidates {
  const float* segments;  // [R, N, 2]
  const float* scores;    // [R, N]; -inf: no candidate
  const int* labels;      // [R, N], others than 0 … groups - 1 belong to no group; null: all are of group 0
  const int64_t* counts;  // [R] candidates used; null: all
  int number, groups;     // N and C
  float above;            // only scores above it count, if positive
};

struct Picks {
  int* index;    // [R, C, K] of the recording's candidates, -1 past the last
  float* score;  // [R, C, K] when picked, -inf past the last
  int* count;    // [R, C]
  int capacity;  // K
};

struct Members {
  float *start, *end, *score;
  int* index;
};

struct Best {
  unsigned rank, place;  // rank 0: none
};

// Shared by a block's threads besides its members.
struct Workspace {
  Best best[2][WARP];  // of every warp, for picks of even and odd number: one barrier a pick is enough
  unsigned own[WARP], lower[WARP];  // members that every warp found, of the group and of those before it
};

__device__ inline unsigned lane() { return threadIdx.x % WARP; }
__device__ inline unsigned warp() { return threadIdx.x / WARP; }
__device__ inline unsigned warps() { return blockDim.x / WARP; }

// A score as an unsigned number of the same order, where -0 is 0; 0 for what cannot be picked: removed, or NaN.
__device__ inline unsigned rank_of(float score) {
  if (!(score > LOWEST<float>)) return 0;
  score += 0.0f;
  unsigned bits;
  memcpy(&bits, &score, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Highest rank, lowest place among equals; every lane has the result.
__device__ inline Best best_of_warp(Best mine) {
  const unsigned rank = __reduce_max_sync(ALL_LANES, mine.rank);
  return {rank, __reduce_min_sync(ALL_LANES, mine.rank == rank ? mine.place : NOWHERE)};
}

// The same over the block, and a barrier. `of_warps` must differ from that of the call before.
__device__ inline Best best_of_block(Best mine, Best* of_warps) {
  const Best best = best_of_warp(mine);
  if (lane() == 0) of_warps[warp()] = best;
  __syncthreads();
  return best_of_warp(lane() < warps() ? of_warps[lane()] : Best{0, NOWHERE});
}

// One recording of the candidates.
struct Recording {
  const float *segments, *scores;
  const int* labels;
  int number;
  float above;

  __device__ Recording(const Candidates& all, int64_t which)
      : segments(all.segments + which * all.number * 2), scores(all.scores + which * all.number),
        labels(all.labels ? all.labels + which * all.number : nullptr), number(all.number), above(all.above) {
    if (all.counts) {
      const int64_t used = all.counts[which];
      number = static_cast<int>(used < 0 ? 0 : used < number ? used : number);
    }
  }

  // Group of a candidate, -1: none.
  __device__ int group_of(int candidate) const {
    const float score = scores[candidate];
    const bool counts = score > LOWEST<float> && (!(above > 0.0f) || score > above);
    return !counts ? -1 : labels ? labels[candidate] : 0;
  }
};

// What a warp counts in its own part of the candidates: they go to warps in consecutive parts, so that ranks need two barriers
// for all of them and not two for every 32 of a warp.
struct Part {
  int first, last;    // candidates
  int place, before;  // where the warp's first member goes; members of lower groups in the whole recording
  int count;          // members of the group in the whole recording
};

__device__ inline Part count_members(const Recording& in, int group, Workspace& work) {
  const int each = (in.number + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x) * static_cast<int>(WARP);
  Part part{};
  part.first = static_cast<int>(warp()) * each;
  part.last = part.first + each < in.number ? part.first + each : in.number;
  unsigned own = 0, lower = 0;
  for (int i = part.first + static_cast<int>(lane()); i < part.last; i += WARP) {
    const int of = in.group_of(i);
    own += of == group;
    lower += of >= 0 && of < group;
  }
  own = __reduce_add_sync(ALL_LANES, own);
  lower = __reduce_add_sync(ALL_LANES, lower);
  if (lane() == 0) work.own[warp()] = own, work.lower[warp()] = lower;
  __syncthreads();
  const bool there = lane() < warps();
  const unsigned count = there ? work.own[lane()] : 0;
  part.count = static_cast<int>(__reduce_add_sync(ALL_LANES, count));
  part.place = static_cast<int>(__reduce_add_sync(ALL_LANES, lane() < warp() ? count : 0));
  part.before = static_cast<int>(__reduce_add_sync(ALL_LANES, there ? work.lower[lane()] : 0));
  return part;
}

__device__ inline void gather_members(const Recording& in, int group, const Part& part, const Members& members) {
  int next = part.place;
  for (int from = part.first; from < part.last; from += WARP) {
    const int i = from + static_cast<int>(lane());
    const bool mine = i < part.last && in.group_of(i) == group;
    const unsigned ballot = __ballot_sync(ALL_LANES, mine);
    const int place = next + __popc(ballot & ((1u << lane()) - 1));
    if (mine) {
      members.start[place] = in.segments[2 * static_cast<int64_t>(i)];
      members.end[place] = in.segments[2 * static_cast<int64_t>(i) + 1];
      members.score[place] = in.scores[i];
      members.index[place] = i;
    }
    next += __popc(ballot);
  }
  __syncthreads();
}

// Decays this thread's members by a pick and returns the best of what is left.
template <Method method>
__device__ inline Best decay_and_search(
    const Members& members, int count, const Picked<float>& picked, bool everywhere, const Decay<float>& decay) {
  Best best{0, NOWHERE};
  for (int m = threadIdx.x; m < count; m += blockDim.x) {
    float score = members.score[m];
    if (score == LOWEST<float>) continue;
    const float start = members.start[m], end = members.end[m];
    if (everywhere || (start < picked.end && end > picked.start)) {
      score = decayed<method>(score, start, end, (end - start) + LENGTH_EPS<float>, picked, decay);
      members.score[m] = score;
    }
    const unsigned rank = rank_of(score);
    if (rank > best.rank) best = {rank, static_cast<unsigned>(m)};
  }
  return best;
}

__device__ inline Best search(const Members& members, int count) {
  Best best{0, NOWHERE};
  for (int m = threadIdx.x; m < count; m += blockDim.x) {
    const unsigned rank = rank_of(members.score[m]);
    if (rank > best.rank) best = {rank, static_cast<unsigned>(m)};
  }
  return best;
}

// Members in `table`, `stride` apart, from place `first` on.
__device__ inline Members members_in(float* table, int64_t stride, int64_t first) {
  return {table + first, table + stride + first, table + 2 * stride + first,
          reinterpret_cast<int*>(table + 3 * stride + first)};
}

// `row`: recording * C + group. `shared`: [4, shared_places]; `table`: [4, R * N] in global memory, used where a group does
// not fit; may be null where N <= shared_places.
template <Method method>
__device__ inline void suppress_group(
    const Candidates& all, const Picks& picks, const Decay<float>& decay, float* shared, int shared_places, float* table,
    int64_t table_places, Workspace& work, int64_t row) {
  const int64_t which = row / all.groups;
  const int group = static_cast<int>(row % all.groups);
  const Recording in(all, which);
  const Part part = count_members(in, group, work);
  const int count = part.count;
  const Members members = count > shared_places ? members_in(table, table_places, which * all.number + part.before)
                                                : members_in(shared, shared_places, 0);
  gather_members(in, group, part, members);

  int* index = picks.index + row * picks.capacity;
  float* score = picks.score + row * picks.capacity;
  int made = 0;
  Best best = best_of_block(search(members, count), work.best[0]);
  while (made < picks.capacity && best.rank) {
    const int place = static_cast<int>(best.place);
    const float start = members.start[place], end = members.end[place];
    if (place % blockDim.x == threadIdx.x) {  // its owner: nobody else reads or writes its score
      index[made] = members.index[place];
      score[made] = members.score[place];
      members.score[place] = LOWEST<float>;
    }
    const Picked<float> picked{start, end, (end - start) + LENGTH_EPS<float>};
    const bool everywhere = reaches_all<method>(made == 0, decay);
    const Best next = decay_and_search<method>(members, count, picked, everywhere, decay);
    best = best_of_block(next, work.best[++made & 1]);
  }
  for (int k = made + threadIdx.x; k < picks.capacity; k += blockDim.x) {
    index[k] = -1;
    score[k] = LOWEST<float>;
  }
  if (threadIdx.x == 0) picks.count[row] = made;
}

}  // namespace tzn
