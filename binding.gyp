{
  'includes': ['sources.gypi'],
  'target_defaults': {
    'default_configuration': 'Release',
    'cflags': ['-O3', '-Wall', '-Wextra', '-fvisibility=hidden', '-ffp-contract=fast', '-fno-math-errno', '-pthread'],
    'cflags_cc': ['-std=c++17', '-fvisibility-inlines-hidden'],
    'cflags_cc!': ['-std=gnu++17', '-std=gnu++20'],
    'xcode_settings': {
      'CLANG_CXX_LANGUAGE_STANDARD': 'c++17',
      'GCC_OPTIMIZATION_LEVEL': '3',
      'GCC_SYMBOLS_PRIVATE_EXTERN': 'YES',
      'MACOSX_DEPLOYMENT_TARGET': '11.0',
      'WARNING_CFLAGS': ['-Wall', '-Wextra'],
    },
    'msvs_settings': {
      'VCCLCompilerTool': { 'AdditionalOptions': ['/std:c++17', '/Zc:__cplusplus'], 'WarningLevel': 3 },
    },
    'configurations': {
      'Debug': { 'cflags': ['-O1', '-g'] },
      'Release': {},
    },
  },
  'targets': [
    {
      'target_name': 'cpu_generic',
      'type': 'static_library',
      'sources': ['<@(cpu_family_sources)'],
      'defines': ['QT_CPU_VARIANT=generic'],
      # GCC 12.2 vectorized a loop over pairs at a stride with a load from behind the last pair, which crashes at the end of a
      # page; lanes are vectorized all the same, by the pass over straight code.
      'cflags': ['-fno-tree-loop-vectorize'],
    },
    {
      'target_name': 'quantune',
      'type': 'loadable_module',
      # Generic first: should two variants ever define one symbol, the one that runs on every CPU wins.
      'dependencies': ['cpu_generic'],
      'sources': ['<@(core_sources)', '<@(napi_sources)'],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
      'defines': ['NAPI_VERSION=8', 'NODE_ADDON_API_CPP_EXCEPTIONS'],
      'cflags_cc': ['-fexceptions'],
      'cflags!': ['-fno-exceptions'],
      'cflags_cc!': ['-fno-exceptions'],
      'xcode_settings': { 'GCC_ENABLE_CPP_EXCEPTIONS': 'YES' },
      'msvs_settings': { 'VCCLCompilerTool': { 'ExceptionHandling': 1 } },
      'conditions': [
        ['OS=="linux"', { 'sources': ['csrc/core/os_linux.cpp'], 'libraries': ['-ldl'] }],
        ['OS=="mac"', { 'sources': ['csrc/core/os_darwin.cpp'] }],
        ['OS=="win"', { 'sources': ['csrc/core/os_win32.cpp'], 'libraries': ['synchronization.lib'] }],
        ['target_arch=="x64"', { 'dependencies': ['cpu_avx2', 'cpu_avx512', 'cpu_avx512bf16'], 'defines': ['QT_WITH_X64_VARIANTS'] }],
      ],
    },
  ],
  'conditions': [
    ['target_arch=="x64"', {
      'targets': [
        {
          'target_name': 'cpu_avx2',
          'type': 'static_library',
          'sources': ['<@(cpu_family_sources)'],
          'defines': ['QT_CPU_VARIANT=avx2', 'QT_CPU_AVX2'],
          'cflags': ['-mavx2', '-mfma', '-mf16c'],
          'xcode_settings': { 'OTHER_CFLAGS': ['-mavx2', '-mfma', '-mf16c'] },
          'msvs_settings': { 'VCCLCompilerTool': { 'EnableEnhancedInstructionSet': '5' } },
        },
        {
          'target_name': 'cpu_avx512',
          'type': 'static_library',
          'sources': ['<@(cpu_family_sources)'],
          'defines': ['QT_CPU_VARIANT=avx512', 'QT_CPU_AVX512'],
          # GCC's own AVX-512 headers set off the warning that is turned off here (GCC bug 105593).
          'cflags': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx2', '-mfma', '-mf16c', '-Wno-uninitialized', '-Wno-maybe-uninitialized'],
          'xcode_settings': { 'OTHER_CFLAGS': ['-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma', '-mf16c'] },
          'msvs_settings': { 'VCCLCompilerTool': { 'AdditionalOptions': ['/arch:AVX512'] } },
        },
        {
          'target_name': 'cpu_avx512bf16',
          'type': 'static_library',
          'sources': ['<@(cpu_bf16_sources)'],
          'defines': ['QT_CPU_VARIANT=avx512bf16', 'QT_CPU_AVX512', 'QT_CPU_AVX512BF16'],
          'cflags': ['-mavx512bf16', '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx2', '-mfma', '-mf16c', '-Wno-uninitialized', '-Wno-maybe-uninitialized'],
          'xcode_settings': { 'OTHER_CFLAGS': ['-mavx512bf16', '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mfma', '-mf16c'] },
          'msvs_settings': { 'VCCLCompilerTool': { 'AdditionalOptions': ['/arch:AVX512'] } },
        },
      ],
    }],
  ],
}
