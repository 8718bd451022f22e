// Which instruction set runs, chosen once at run time: one binary serves every x86-64 machine.
//
// A hot loop is written once as an always-inline `name_loop`, and S2D_MULTIVERSION(name, ...) compiles it for the
// portable baseline, AVX2 and AVX-512 and defines `name`, which calls the widest the machine has.
// S2D_CPU_ISA=baseline|avx2|avx512 lowers the choice (a machine is never asked for what it lacks).
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#define S2D_X86 1
#define S2D_TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt,fma,f16c")))
#define S2D_TARGET_AVX512                                                                                            \
  __attribute__((                                                                                                    \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,bmi,bmi2,lzcnt,popcnt,fma,f16c,prefer-vector-" \
             "width=512")))
#endif

#define S2D_LOOP static inline __attribute__((always_inline))

namespace s2d {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

inline Isa detect_isa() {
#if defined(S2D_X86)
  Isa widest = Isa::baseline;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma")) {
    widest = Isa::avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq")) {
      widest = Isa::avx512;
    }
  }
  Isa asked = widest;
  if (const char* name = std::getenv("S2D_CPU_ISA")) {
    if (std::strcmp(name, "baseline") == 0) asked = Isa::baseline;
    if (std::strcmp(name, "avx2") == 0) asked = Isa::avx2;
  }
  return asked < widest ? asked : widest;
#else
  return Isa::baseline;
#endif
}

inline Isa isa() {
  static const Isa chosen = detect_isa();
  return chosen;
}

}  // namespace s2d

#if defined(S2D_X86)
#define S2D_MULTIVERSION(result, name, parameters, arguments)                                \
  static result name##_baseline parameters { return name##_loop arguments; }                 \
  S2D_TARGET_AVX2 static result name##_avx2 parameters { return name##_loop arguments; }     \
  S2D_TARGET_AVX512 static result name##_avx512 parameters { return name##_loop arguments; } \
  [[maybe_unused]] static result name parameters {                                           \
    switch (::s2d::isa()) {                                                                  \
      case ::s2d::Isa::avx512:                                                               \
        return name##_avx512 arguments;                                                      \
      case ::s2d::Isa::avx2:                                                                 \
        return name##_avx2 arguments;                                                        \
      default:                                                                               \
        return name##_baseline arguments;                                                    \
    }                                                                                        \
  }
#else
#define S2D_MULTIVERSION(result, name, parameters, arguments) \
  [[maybe_unused]] static result name parameters { return name##_loop arguments; }
#endif
