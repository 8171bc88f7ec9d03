# The source lists that binding.gyp and CMakeLists.txt share: one name per line.
{
  'variables': {
    'cpu_family_sources': [
      '<!@(node -p "require(\'fs\').readdirSync(\'csrc/cpu\').filter((f) => f.endsWith(\'.cpp\') && f !== \'backend.cpp\' && f !== \'stream.cpp\').map((f) => \'csrc/cpu/\' + f).join(\' \')")',
    ],
    'core_sources': [
      'csrc/core/allocator.cpp',
      'csrc/core/backends.cpp',
      'csrc/core/check.cpp',
      'csrc/core/convert.cpp',
      'csrc/core/device.cpp',
      'csrc/core/execute.cpp',
      'csrc/core/host.cpp',
      'csrc/core/late_backend.cpp',
      'csrc/core/op_checks.cpp',
      'csrc/core/op_checks_basic.cpp',
      'csrc/core/op_checks_models.cpp',
      'csrc/core/op_table.cpp',
      'csrc/core/plugin.cpp',
      'csrc/core/records.cpp',
      'csrc/core/thread_pool.cpp',
      'csrc/cpu/backend.cpp',
      'csrc/cpu/stream.cpp',
    ],
    'napi_sources': [
      'csrc/napi/addon.cpp',
      'csrc/napi/device_binding.cpp',
    ],
  },
}
