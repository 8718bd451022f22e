// Torch as the bindings of the CUDA kernels see it: their operators are registered for CPU tensors, their device guards
// and streams are tokens, and every tensor whose data they take becomes a buffer that kernels may touch, written only
// if it was asked for as mutable. These definitions go before torch's own within the library that they are linked into.

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>
#include <stdexcept>

#include "simt.h"

namespace simt {
namespace {

int guards = 0;
int stream = 0;
bool on_gpu = false;

// Torch's own function of this name.
template <typename Function>
Function* original(const char* name) {
  static void* torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  void* symbol = torch ? dlsym(torch, name) : nullptr;
  if (!symbol) throw std::runtime_error(std::string("simt: torch has no ") + name);
  return reinterpret_cast<Function*>(symbol);
}

size_t bytes_spanned(AtenTensorHandle tensor) {
  int64_t dims = 0, *sizes = nullptr, *strides = nullptr, last = 0;
  int32_t dtype = 0;
  aoti_torch_get_dim(tensor, &dims);
  aoti_torch_get_sizes(tensor, &sizes);
  aoti_torch_get_strides(tensor, &strides);
  aoti_torch_get_dtype(tensor, &dtype);
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 0) return 0;
    last += (sizes[d] - 1) * strides[d];
  }
  return static_cast<size_t>(last + 1) * aoti_torch_dtype_element_size(dtype);
}

}  // namespace

void* current_stream() { return &stream; }
bool guarded() { return guards > 0; }

}  // namespace simt

extern "C" {

AOTITorchError aoti_torch_library_init_impl(const char* ns, const char* key, const char* file, uint32_t line,
                                            TorchLibraryHandle* library) {
  return simt::original<decltype(aoti_torch_library_init_impl)>("aoti_torch_library_init_impl")(
      ns, std::strcmp(key, "CUDA") ? key : "CPU", file, line, library);
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  if (simt::guards++ == 0) simt::forget_buffers();
  *guard = reinterpret_cast<DeviceGuardHandle>(&simt::guards);
  return 0;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --simt::guards;
  return 0;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = &simt::stream;
  return 0;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* type) {
  if (simt::on_gpu) {
    *type = aoti_torch_device_type_cuda();
    return 0;
  }
  return simt::original<decltype(aoti_torch_get_device_type)>("aoti_torch_get_device_type")(tensor, type);
}

AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  const auto error = simt::original<decltype(torch_get_mutable_data_ptr)>("torch_get_mutable_data_ptr")(tensor, data);
  simt::add_buffer(*data, simt::bytes_spanned(tensor), true);
  return error;
}

AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  const auto error = simt::original<decltype(torch_get_const_data_ptr)>("torch_get_const_data_ptr")(tensor, data);
  simt::add_buffer(*data, simt::bytes_spanned(tensor), false);
  return error;
}

// Whether tensors say that they are on a GPU: for bindings that read small ones where they are.
void simt_set_on_gpu(bool on_gpu) { simt::on_gpu = on_gpu; }
}
