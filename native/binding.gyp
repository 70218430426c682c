# The native addon. The only place with conditions: processor and CUDA pick file lists, no source asks which it is.
# Built by scripts/build-addon.mjs: node-gyp rebuild --directory=native [-- -Dcuda=1 -Dcuda_home=FOLDER].
{
  'variables': {
    'cuda%': 0,
    'cuda_home%': '/usr/local/cuda',
    # A100, L4 and RTX 40, H100 and H200; PTX for what comes later. The oldest is in open_device of cuda_backend.cpp.
    'nvcc_flags': [
      '-std=c++20',
      '-O3',
      '-gencode', 'arch=compute_80,code=sm_80',
      '-gencode', 'arch=compute_89,code=sm_89',
      '-gencode', 'arch=compute_90a,code=sm_90a',
      '-gencode', 'arch=compute_90,code=compute_90',
      '--compiler-options', '-fPIC,-fvisibility=hidden,-Wall',
    ],
    'core_sources': [
      'core/check_model.cpp',
      'core/check_plan.cpp',
      'core/check_terms.cpp',
      'core/sampler.cpp',
      'model/dequant.cpp',
      'model/forward.cpp',
      'model/weight_loader.cpp',
      'cpu/cpu_factory.cpp',
      'cpu/int8_rows.cpp',
      'cpu/q4_rows.cpp',
      'cpu/reference/block_chain.cpp',
      'cpu/reference/reference_backend.cpp',
      'cpu/reference/reference_ops.cpp',
      'cpu/reference/reference_stores.cpp',
      'cpu/reference/term_ops.cpp',
      'cpu/reference/unpacked_terms.cpp',
    ],
    # The fast backend. Each file of isa/ turns its instructions on itself, after the shared headers; cpu/dispatch.cpp asks
    # the machine before it names one.
    'x64_sources': [
      'cpu/base_product.cpp',
      'cpu/dispatch.cpp',
      'cpu/fast_attention.cpp',
      'cpu/fast_backend.cpp',
      'cpu/fast_linear.cpp',
      'cpu/fast_ops.cpp',
      'cpu/fast_terms.cpp',
      'cpu/fast_weights.cpp',
      'cpu/huge_memory.cpp',
      'cpu/packed_rare.cpp',
      'cpu/packed_stack.cpp',
      'cpu/shared_blocks.cpp',
      'cpu/sliced_rows.cpp',
      'cpu/thread_pool.cpp',
      'cpu/isa/amx.cpp',
      'cpu/isa/amx_attention.cpp',
      'cpu/isa/avx2.cpp',
      'cpu/isa/avx512.cpp',
      'cpu/isa/avx512bf16.cpp',
      'cpu/isa/avx512vnni.cpp',
      'cpu/isa/avxvnni.cpp',
    ],
    'cuda_sources': [
      'cuda/cuda_backend.cpp',
      'cuda/cuda_ops.cpp',
      'cuda/cuda_terms.cpp',
      'cuda/cuda_weights.cpp',
      'cuda/handles.cpp',
      'cuda/pack_terms.cpp',
      'cuda/step_buffers.cpp',
      'cuda/step_upload.cpp',
      'cuda/kernels/adapter_inputs.cu',
      'cuda/kernels/adapter_reduce.cu',
      'cuda/kernels/adapter_spread.cu',
      'cuda/kernels/attention.cu',
      'cuda/kernels/bottleneck.cu',
      'cuda/kernels/chains.cu',
      'cuda/kernels/gemm.cu',
      'cuda/kernels/rows.cu',
    ],
    'addon_sources': [
      'addon/addon.cpp',
      'addon/arguments.cpp',
      'addon/convert_load.cpp',
      'addon/convert_plan.cpp',
      'addon/convert_terms.cpp',
      'addon/engine_core.cpp',
      'addon/engine_wrap.cpp',
      'addon/errors.cpp',
      'addon/js_queue.cpp',
    ],
  },
  'targets': [
    {
      'target_name': 'manyfold',
      'sources': ['<@(core_sources)', '<@(addon_sources)'],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'defines': [
        'NAPI_VERSION=8',
        'NAPI_CPP_EXCEPTIONS',
        # A worker that is being terminated cannot take an exception; node-addon-api would end the process.
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
        "MANYFOLD_VERSION=\"<!(node -p \"require('../package.json').version\")\"",
      ],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
      'cflags_cc': [
        '-std=c++20',
        # Block formats must decode to the same bits everywhere; kernels fuse where they say so.
        '-ffp-contract=off',
        # Nobody looks at floating-point exception flags; without it loops with a comparison stay scalar.
        '-fno-trapping-math',
        '-fvisibility=hidden',
        '-fstack-protector-strong',
        '-Wall',
        '-Wextra',
        # GCC 12 warns of memcpy in std::string operator+ where there is no overlap.
        '-Wno-restrict',
      ],
      'configurations': {
        'Release': {
          'cflags_cc': ['-O3', '-U_FORTIFY_SOURCE', '-D_FORTIFY_SOURCE=2'],
        },
      },
      'ldflags': ['-Wl,-z,relro', '-Wl,-z,now'],
      'xcode_settings': {
        'CLANG_CXX_LANGUAGE_STANDARD': 'c++20',
        'GCC_ENABLE_CPP_EXCEPTIONS': 'YES',
        'GCC_ENABLE_CPP_RTTI': 'YES',
        'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
        'MACOSX_DEPLOYMENT_TARGET': '12.0',
      },
      'conditions': [
        ['target_arch=="x64"', {
          'sources': ['<@(x64_sources)'],
        }, {
          'sources': ['cpu/portable/scalar_only.cpp'],
        }],
        ['cuda==0', {
          'sources': ['cuda/no_cuda.cpp'],
        }, {
          'sources': ['<@(cuda_sources)'],
          'include_dirs': ['<(cuda_home)/include'],
          # The runtime is linked in; the driver and cuBLAS are found when they are wanted.
          'libraries': ['-L<(cuda_home)/lib64', '-L<(cuda_home)/lib', '-lcudart_static', '-ldl', '-lrt', '-lpthread'],
          'rules': [
            {
              'rule_name': 'nvcc',
              'extension': 'cu',
              'inputs': ['<(cuda_home)/bin/nvcc'],
              'outputs': ['<(INTERMEDIATE_DIR)/<(RULE_INPUT_ROOT).cu.o'],
              'process_outputs_as_sources': 1,
              'message': 'compiles <(RULE_INPUT_PATH)',
              'action': [
                '<(cuda_home)/bin/nvcc', '<@(nvcc_flags)', '-c', '<(RULE_INPUT_PATH)', '-o', '<@(_outputs)',
              ],
            },
          ],
        }],
      ],
    },
  ],
}
