// A number that changes with the arguments of any op here, so that tzn notices the build of another version: LAYOUT of
// tzn/ops/_backend.py. It belongs to no op, hence a file of its own.
#include "common.h"

namespace tzn {
namespace {

int64_t layout() { return 5; }

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) { m.def("layout() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CompositeImplicitAutograd, m) { m.impl("layout", TORCH_BOX(&tzn::layout)); }
