{
  'targets': [
    {
      'target_name': 'virstream',
      'sources': [
        'native/addon.cc',
        'native/children.cc',
        'native/errors.cc',
        'native/libvirt.cc',
        'native/libvirt-calls.cc',
        'native/libvirt-loop.cc',
        'native/libvirt-stats.cc',
        'native/locks.cc',
        'native/process-watch.cc',
        'native/sockets.cc',
        'native/spawn.cc',
        'native/spawn-child.cc',
        'native/xattrs.cc',
      ],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'defines': ['NAPI_VERSION=9', 'NAPI_CPP_EXCEPTIONS', 'NODE_ADDON_API_CPP_EXCEPTIONS_ALL', '_FILE_OFFSET_BITS=64'],
      'cflags': ['-Wall', '-Wextra', '-Werror', '-fvisibility=hidden'],
      'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-fno-exceptions'],
      'cflags_cc': ['-std=c++20'],
      # one file is to serve machines with another C++ library
      'ldflags': ['-static-libstdc++', '-static-libgcc'],
    },
  ],
}
