// Runs a package of `tzn export --to aoti` without Python: features in, the program's outputs out (docs/export.md).
//
//   run_package package.pt2 _native.abi3.so features.f32 outputs.f32 [depth_shift]
//
// features.f32: float32 [T, C], little-endian, C as the package's description says; outputs.f32: all outputs one after the other
// as float32, in the order that is printed with their sizes.
//
//   T=$(python -c 'import torch; print(torch.__path__[0])')
//   g++ -std=c++20 -O2 run_package.cpp -o run_package -I$T/include -I$T/include/torch/csrc/api/include -L$T/lib -Wl,-rpath,$T/lib \
//     -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

// A number in the description, which is JSON; 0: it is not there.
long number_of(const std::string& description, const std::string& name) {
  const std::string key = "\"" + name + "\": ";
  const size_t at = description.find(key);
  return at == std::string::npos ? 0 : std::atol(description.c_str() + at + key.size());
}

int run(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(stderr, "usage: run_package package.pt2 _native.abi3.so features.f32 outputs.f32 [depth_shift]\n");
    return 2;
  }
  // The package's blocks are an op of this library, which registers itself with PyTorch when it is loaded.
  if (!dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  torch::inductor::AOTIModelPackageLoader package(arguments[1]);
  const std::string description = package.get_metadata()["tzn"];
  const long channels = number_of(description, "feature_channels");
  std::ifstream file(arguments[3], std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (channels < 1 || bytes.empty() || bytes.size() % (4 * channels)) {
    std::fprintf(stderr, "%s: %zu bytes, expected rows of %ld float32\n", arguments[3], bytes.size(), channels);
    return 2;
  }
  const long steps = static_cast<long>(bytes.size()) / (4 * channels);
  std::vector<at::Tensor> inputs{at::from_blob(bytes.data(), {1, steps, channels}, at::kFloat).clone()};
  if (description.find("\"depth_shift\"") != std::string::npos)
    inputs.push_back(at::full({1, 1}, count > 5 ? std::atof(arguments[5]) : 0.0, at::kFloat));
  std::ofstream out(arguments[4], std::ios::binary);
  for (const at::Tensor& output : package.run(inputs)) {
    const at::Tensor values = output.to(at::kFloat).contiguous();
    for (const int64_t size : values.sizes()) std::printf("%ld ", static_cast<long>(size));
    std::printf("\n");
    out.write(static_cast<const char*>(values.data_ptr()), static_cast<std::streamsize>(values.nbytes()));
  }
  return out ? 0 : 2;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
